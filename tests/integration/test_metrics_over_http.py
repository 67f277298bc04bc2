"""The metrics contract, as a scraper of a real server sees it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import httpx
from colours import RED, image_of, video_of
from prometheus_client.parser import text_string_to_metric_families
from raw_http import connect, post_head
from running_server import RunningServer

from app.media.pool import RESTART_REASONS, WORKER_STATES
from app.telemetry.metrics import CODES, REJECTION_REASONS, STAGES

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(url: str) -> Series:
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def test_every_series_of_the_contract_is_there_from_the_start(start_server, colour_repository: Path) -> None:  # type: ignore[no-untyped-def]
    running = start_server().wait_until_ready()
    series = scrape(running.url)
    for model, task in (("colours", "image"), ("colours_video", "video")):
        expected = [key("hiera_requests_total", task=task, model=model, code=str(code)) for code in CODES]
        expected += [key("hiera_request_duration_seconds_count", task=task, model=model)]
        expected += [key("hiera_stage_duration_seconds_count", model=model, stage=stage) for stage in STAGES]
        expected += [key("hiera_batch_rows_count", model=model), key("hiera_queue_rows", model=model)]
        expected += [key("hiera_rows_total", model=model), key("hiera_close_calls_total", model=model)]
        expected += [key("hiera_rejected_total", model=model, reason=reason) for reason in REJECTION_REASONS]
        expected += [key("hiera_cancelled_total", model=model, stage=stage) for stage in STAGES]
        assert {each: series[each] for each in expected} == dict.fromkeys(expected, 0.0)
        assert series[key("hiera_model_ready", model=model, version="1")] == 1
        engine = {"engine": "onnxruntime", "precision": "fp32", "device": "cpu"}
        assert series[key("hiera_engine_info", model=model, version="1", **engine)] == 1
        assert series[key("hiera_batch_cost_seconds", model=model, rows="1")] > 0
    assert series[key("hiera_in_flight_rows")] == series[key("hiera_in_flight_bytes")] == 0
    assert sum(series[key("hiera_media_workers", state=state)] for state in WORKER_STATES) == 2
    restarts = [key("hiera_media_worker_restarts_total", reason=reason) for reason in RESTART_REASONS]
    assert [series[each] for each in restarts] == [0.0] * len(restarts)


def test_requests_rows_and_stages_are_counted(client: httpx.Client) -> None:
    url = str(client.base_url).rstrip("/")
    before = scrape(url)
    assert client.post("/classify/image", files=[("file", image_of(RED))] * 2).status_code == 200
    assert client.post("/classify/image", files={"file": b"no picture"}).status_code == 415
    assert client.post("/classify/video?clips=2", files={"file": video_of(RED)}).status_code == 200
    assert client.post("/classify/image?model=nothing", files={"file": b"x"}).status_code == 404
    after = scrape(url)

    def rise(name: str, **labels: str) -> float:
        return after[key(name, **labels)] - before[key(name, **labels)]

    assert rise("hiera_requests_total", task="image", model="colours", code="200") == 1
    assert rise("hiera_requests_total", task="image", model="colours", code="415") == 1
    assert rise("hiera_requests_total", task="video", model="colours_video", code="200") == 1
    assert rise("hiera_requests_total", task="image", model="none", code="404") == 1
    assert rise("hiera_rows_total", model="colours") == 2
    assert rise("hiera_rows_total", model="colours_video") == 2
    assert rise("hiera_stage_duration_seconds_count", model="colours", stage="decode") == 2
    assert rise("hiera_stage_duration_seconds_count", model="colours", stage="upload") == 2
    assert rise("hiera_batch_rows_sum", model="colours") == 2
    assert rise("hiera_request_duration_seconds_count", task="image", model="colours") == 2


def test_what_admission_holds_is_seen_while_it_does(server: RunningServer) -> None:
    held = (key("hiera_in_flight_rows"), key("hiera_in_flight_bytes"))
    with connect(server.port) as connection:
        connection.sendall(post_head("/classify/image", "image/jpeg", "Content-Length: 5000") + b"x")
        _wait_until(lambda: [scrape(server.url)[each] for each in held] == [1.0, 5000 + 8 * 8 * 3])
    _wait_until(lambda: [scrape(server.url)[each] for each in held] == [0.0, 0.0])


def _wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_openmetrics_is_given_when_it_is_asked_for(client: httpx.Client) -> None:
    plain = client.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=")
    asked = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert asked.headers["content-type"].startswith("application/openmetrics-text")
    assert asked.text.endswith("# EOF\n")
