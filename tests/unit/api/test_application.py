"""The whole application over a service that is steered: what a real one does only on a bad day."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import httpx
import pytest
from asgi_double import Channel
from fastapi import FastAPI

from app.api.application import build_application
from app.api.body import UploadPace
from app.api.classify import ClassifyBounds
from app.api.gate import Gate
from app.api.keys import KeyRing
from app.api.middleware import AnswerFailures, RecordExchanges
from app.api.query import QueryLimits
from app.api.routes import Parts
from app.api.uploads import UploadLimits
from app.errors import BrokenMedia, DeadlineExceeded, EngineError, HieraError, Overloaded, Unavailable
from app.serving.changes import Administer, Order, Report
from app.serving.demand import Arrival
from app.serving.results import Classification, Latency, ModelIdentity, Prediction
from app.serving.service import Service
from app.telemetry import logs
from app.telemetry.metrics import Metrics

IDENTITY = ModelIdentity("m", 3, "noop", "fp32", demo=True, random_weights=True, noop=True)
ANSWER = Classification(IDENTITY, (Prediction(7, "cat", 0.75),), Latency(0.004, 0.003, 0.002, 0.001), 4)


class SteeredTicket:
    """Counts its releases; the model is always `m`."""

    def __init__(self) -> None:
        self.released = 0
        self.deadline = float("inf")
        self.model = type("Model", (), {"name": "m"})()
        self.grown: list[dict[str, int]] = []
        self.noted: list[str] = []

    def grow(self, **more: int) -> None:
        self.grown.append(more)

    def set_aside(self) -> None:
        self.noted.append("set aside")

    def resume(self) -> None:
        self.noted.append("resumed")

    def __enter__(self) -> SteeredTicket:
        return self

    def __exit__(self, *error: object) -> None:
        self.released += 1


class SteeredService:
    """Answers each file with the next of `outcomes`, the last one for ever; `refusal` refuses at the door."""

    def __init__(self, *outcomes: object, refusal: HieraError | None = None) -> None:
        self._outcomes = list(outcomes) or [ANSWER]
        self._refusal = refusal
        self.tickets: list[SteeredTicket] = []
        self.admitted: list[Arrival] = []
        self.cancelled = 0

    def admit(self, arrival: Arrival) -> SteeredTicket:
        if self._refusal is not None:
            raise self._refusal
        self.admitted.append(arrival)
        self.tickets.append(SteeredTicket())
        return self.tickets[-1]

    async def classify(self, ticket: SteeredTicket, body: object) -> Classification:
        outcome = self._outcomes.pop(0) if len(self._outcomes) > 1 else self._outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        if callable(outcome):
            try:
                return cast(Classification, await outcome())
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return cast(Classification, outcome)


class Condition:
    """Both reasons, as given."""

    def __init__(self, unready: str | None = None, hopeless: str | None = None) -> None:
        self._unready, self._hopeless = unready, hopeless

    def unready_reason(self) -> str | None:
        return self._unready

    def hopeless_reason(self) -> str | None:
        return self._hopeless

    def models(self) -> list[Any]:
        raise RuntimeError("a bug with a password in it: hunter2")


async def nobody(order: Order) -> Report:
    raise AssertionError("no order was expected")


def build(
    service: SteeredService,
    condition: Condition | None = None,
    metrics: Metrics | None = None,
    *,
    keys: KeyRing | None = None,
    admin_keys: KeyRing | None = None,
    administer: Administer = nobody,
    gate: Gate | None = None,
    metrics_need_key: bool = False,
    cors_origins: tuple[str, ...] = (),
) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> Any:
        yield

    condition, metrics = condition or Condition(), metrics or Metrics()
    bounds = ClassifyBounds(QueryLimits(60_000, 8), UploadLimits(1000, 4000, 4), UploadPace(30, 30, 1))
    parts = Parts(
        gate=gate or Gate(cast(Service, service), {}, {}, KeyRing()),
        service=cast(Service, service),
        models=condition,
        condition=condition,
        metrics=metrics,
        exposition=metrics.exposition,
        keys=keys or KeyRing(),
        admin_keys=admin_keys or KeyRing(),
        administer=administer,
        bounds={"image": bounds, "video": bounds},
        metrics_need_key=metrics_need_key,
        cors_origins=cors_origins,
    )
    return build_application(parts, lifespan)


def ask(app: FastAPI, method: str, path: str, **request: Any) -> httpx.Response:
    async def scenario() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.request(method, path, **request)

    return asyncio.run(scenario())


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What is logged meanwhile, as JSON lines."""
    stream = io.StringIO()
    root = logging.getLogger()
    before, level = root.handlers, root.level
    logs.configure("json", "info", stream)
    yield stream
    root.handlers = before
    root.setLevel(level)
    logging.captureWarnings(False)


def lines(log: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


def test_an_answer_that_means_little_says_so_loudly() -> None:
    result = ask(build(SteeredService()), "POST", "/classify/image", files={"file": b"x"}).json()
    assert result["model"] == {
        "name": "m",
        "version": 3,
        "engine": "noop",
        "precision": "fp32",
        "demo": True,
        "random_weights": True,
        "noop": True,
    }
    assert result["predictions"] == [{"class_id": 7, "label": "cat", "probability": 0.75}]
    assert result["batch_rows"] == 4


@pytest.mark.parametrize("error", [EngineError("CUDA error at 0xdead"), ValueError("hunter2")])
def test_a_failure_of_ours_is_a_500_whose_stack_trace_is_in_the_log_alone(log: io.StringIO, error: Exception) -> None:
    service = SteeredService(error)
    response = ask(build(service), "POST", "/classify/image", files={"file": b"x"}, headers={"X-Request-ID": "r-77"})
    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    assert response.headers["x-request-id"] == "r-77"
    assert str(error) not in response.text
    failed = next(line for line in lines(log) if line["level"] == "error")
    assert failed["request_id"] == "r-77"
    assert str(error) in failed["exception"]
    assert "Traceback" in failed["exception"]
    assert [ticket.released for ticket in service.tickets] == [1]


def test_a_bug_in_a_plain_route_is_a_500_too(log: io.StringIO) -> None:
    response = ask(build(SteeredService()), "GET", "/models")
    assert (response.status_code, response.headers["content-type"]) == (500, "application/problem+json")
    assert "hunter2" not in response.text
    assert "hunter2" in log.getvalue()


def test_a_failure_before_the_body_was_read_lets_its_sender_read_why(log: io.StringIO) -> None:
    class Failing(SteeredService):
        def admit(self, arrival: Arrival) -> SteeredTicket:
            raise ValueError("hunter2")

    async def scenario() -> Channel:
        channel = Channel([b"x" * 500] * 4, {"content-type": "image/png", "transfer-encoding": "chunked"})
        channel.scope |= {"path": "/classify/image", "raw_path": b"/classify/image", "root_path": ""}
        await build(Failing())(channel.scope, channel.receive, channel.send)
        return channel

    channel = asyncio.run(scenario())
    assert (channel.status, channel.headers[b"connection"], channel.taken) == (500, b"close", 4)


def test_of_several_files_one_that_fails_inside_costs_the_others_nothing(log: io.StringIO) -> None:
    service = SteeredService(ANSWER, EngineError("inside"), BrokenMedia("cut off"), ANSWER)
    response = ask(build(service), "POST", "/classify/image", files=[("file", b"x")] * 4)
    results = response.json()["results"]
    assert response.status_code == 200
    assert [each.get("code", "ok") for each in results] == ["ok", "internal_error", "broken_media", "ok"]
    assert "inside" not in response.text
    assert "inside" in log.getvalue()
    assert service.tickets[0].grown == [{"files": 1}] * 3
    assert service.tickets[0].released == 1


@pytest.mark.parametrize("count", [2, 4])
def test_an_empty_file_among_several_costs_itself_alone(count: int) -> None:
    service = SteeredService()
    files = [("file", b"x")] * (count - 1) + [("file", b"")]
    response = ask(build(service), "POST", "/classify/image", files=files)
    results = response.json()["results"]
    assert response.status_code == 200
    assert [each.get("status", 200) for each in results] == [200] * (count - 1) + [400]
    assert (results[-1]["code"], results[-1]["detail"]) == ("malformed_request", "the file is empty.")
    alone = ask(build(service), "POST", "/classify/image", files=[("file", b"")])
    assert (alone.status_code, alone.json()["code"]) == (400, "malformed_request")


def test_a_deadline_and_an_overload_while_working_reach_the_caller() -> None:
    late = ask(build(SteeredService(DeadlineExceeded("too late"))), "POST", "/classify/image", files={"file": b"x"})
    assert (late.status_code, late.json()["detail"]) == (504, "too late.")
    full = SteeredService(refusal=Overloaded("full", retry_after_s=7.2))
    refused = ask(build(full), "POST", "/classify/image", files={"file": b"x"})
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "8")
    assert (refused.headers["content-type"], refused.json()["detail"]) == ("application/problem+json", "full.")
    away = SteeredService(refusal=Unavailable("shutting down", code="draining"))
    drained = ask(build(away), "POST", "/classify/video", files={"file": b"x"})
    assert (drained.status_code, drained.json()["code"]) == (503, "draining")
    assert int(drained.headers["retry-after"]) >= 1


def test_only_a_lack_of_room_or_time_puts_the_gate_on_guard() -> None:
    class Guarded(Gate):
        def __init__(self) -> None:
            self.guarded = 0

        def guard(self) -> None:
            self.guarded += 1

    gate = Guarded()
    for error in (DeadlineExceeded("late"), Unavailable("away"), BrokenMedia("half")):
        ask(build(SteeredService(refusal=error), gate=gate), "POST", "/classify/image", files={"file": b"x"})
    assert gate.guarded == 0
    full = SteeredService(refusal=Overloaded("full", retry_after_s=1))
    ask(build(full, gate=gate), "POST", "/classify/image", files={"file": b"x"})
    assert gate.guarded == 1


def test_room_is_reserved_by_the_announced_length_or_as_the_bytes_come() -> None:
    announced = SteeredService()
    ask(build(announced), "POST", "/classify/image", content=b"x" * 500)
    assert announced.admitted[0].body_bytes == 500
    assert announced.tickets[0].grown == []

    async def chunks() -> Any:
        yield b"x" * 100
        yield b"y" * 50

    streamed = SteeredService()
    headers = {"content-type": "image/png"}
    ask(build(streamed), "POST", "/classify/image", content=chunks(), headers=headers)
    assert streamed.admitted[0].body_bytes == 0
    assert sum(more["body_bytes"] for more in streamed.tickets[0].grown) == 150


def test_a_caller_that_leaves_ends_the_work_and_gives_the_room_back(log: io.StringIO) -> None:
    service = SteeredService(lambda: asyncio.sleep(60))
    metrics = Metrics()

    async def scenario() -> Channel:
        channel = Channel([b"x"], {"content-type": "image/png"})
        channel.scope |= {"path": "/classify/image", "raw_path": b"/classify/image", "root_path": ""}
        asyncio.get_running_loop().call_later(0.05, channel.leave)
        await build(service, metrics=metrics)(channel.scope, channel.receive, channel.send)
        return channel

    asyncio.run(scenario())
    assert (service.cancelled, service.tickets[0].released) == (1, 1)
    counted = metrics.registry.get_sample_value("hiera_requests_total", {"task": "image", "model": "m", "code": "499"})
    assert counted == 1
    assert lines(log)[-1]["code"] == "cancelled"


def test_probes_that_went_well_are_no_news(log: io.StringIO) -> None:
    for path in ("/health/ready", "/health/live", "/v2/health/ready", "/metrics"):
        assert ask(build(SteeredService()), "GET", path).status_code == 200
    ask(build(SteeredService(), Condition(unready="loading")), "GET", "/health/ready")
    assert [line["status"] for line in lines(log) if line["logger"] == "hiera.access"] == [503]


def test_health_says_why_not() -> None:
    app = build(SteeredService(), Condition(unready="the models are being loaded", hopeless="the engine hangs"))
    ready, live = ask(app, "GET", "/health/ready"), ask(app, "GET", "/health/live")
    assert (ready.status_code, ready.json()["code"], ready.json()["detail"]) == (
        503,
        "not_ready",
        "the models are being loaded.",
    )
    assert (live.status_code, live.json()["code"], live.json()["detail"]) == (503, "not_live", "the engine hangs.")


@pytest.mark.parametrize("sent", ["abc", "A.b_c-9", "x" * 128])
def test_a_sound_request_id_of_the_caller_is_kept(sent: str) -> None:
    assert (
        ask(build(SteeredService()), "GET", "/health/live", headers={"X-Request-ID": sent}).headers["x-request-id"]
        == sent
    )


@pytest.mark.parametrize("sent", ["", "a b", "x" * 129, "ab\u00e9", 'a"b', "<script>", "a,b"])
def test_an_unsound_one_is_replaced(sent: str) -> None:
    headers = [(b"X-Request-ID", sent.encode("latin-1"))]
    given = ask(build(SteeredService()), "GET", "/health/live", headers=headers).headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{32}", given)
    assert given != ask(build(SteeredService()), "GET", "/health/live", headers=headers).headers["x-request-id"]


def test_the_access_line_has_the_stages_and_neither_query_nor_payload(log: io.StringIO) -> None:
    ask(build(SteeredService()), "POST", "/classify/image?top_k=2", files={"file": b"private bytes"})
    line = next(line for line in lines(log) if line["logger"] == "hiera.access")
    assert (line["method"], line["path"], line["status"], line["model"], line["files"]) == (
        "POST",
        "/classify/image",
        200,
        "m",
        1,
    )
    stages = ["upload_ms", "decode_ms", "queue_ms", "inference_ms", "postprocess_ms"]
    assert [name for name in line if name.endswith("_ms") and name != "duration_ms"] == stages
    assert line["decode_ms"] == 4.0
    assert line["client"] == "127.0.0.1"
    assert "private" not in log.getvalue()
    assert "top_k" not in str(line)


def test_the_access_line_has_the_milliseconds_the_id_and_no_more_than_200_letters_of_the_path(log: io.StringIO) -> None:
    service = SteeredService(lambda: asyncio.sleep(0.05, ANSWER))
    ask(build(service), "POST", "/classify/image", files={"file": b"x"}, headers={"X-Request-ID": "r-5"})
    ask(build(SteeredService()), "GET", "/" + "x" * 500)
    posted, got = (line for line in lines(log) if line["logger"] == "hiera.access")
    assert (posted["request_id"], posted["duration_ms"] >= 50) == ("r-5", True)
    assert got["path"] == "/" + "x" * 199


def test_the_access_line_names_the_key_that_opened_or_else_the_one_that_did_not_fit(log: io.StringIO) -> None:
    service = SteeredService()
    app = build(service, keys=KeyRing(["alice:secret"]), admin_keys=KeyRing(["op:admin-secret"]))
    for headers in (
        {"X-API-Key": "secret"},
        {"X-API-Key": "admin-secret"},
        {"X-API-Key": "secret", "Authorization": "Bearer admin-secret"},
    ):
        ask(app, "POST", "/classify/image", files={"file": b"x"}, headers=headers)
    access = [line for line in lines(log) if line["logger"] == "hiera.access"]
    assert [(line["status"], line["key"]) for line in access] == [(200, "alice"), (403, "op"), (200, "alice")]
    assert [arrival.caller for arrival in service.admitted] == ["alice", "alice"]


def test_a_head_needs_a_key_as_a_get_does() -> None:
    locked = build(SteeredService(), keys=KeyRing(["alice:secret"]), metrics_need_key=True)
    for path in ("/models", "/models/m", "/metrics", "/v2/models/m"):
        assert (ask(locked, "HEAD", path).status_code, ask(locked, "GET", path).status_code) == (401, 401)
    assert ask(locked, "HEAD", "/metrics", headers={"X-API-Key": "secret"}).status_code == 200


def test_a_problem_is_told_to_each_protocol_as_it_has_it() -> None:
    locked = build(SteeredService(), keys=KeyRing(["alice:secret"]))
    inference = ask(locked, "GET", "/v2/models/m").json()
    assert inference["error"] == inference["detail"]
    assert "error" not in ask(locked, "GET", "/models").json()


def test_the_document_tells_of_keys_that_are_for_other_calls() -> None:
    keys, admin_keys = KeyRing(["alice:secret"]), KeyRing(["op:admin-secret"])
    locked = build(SteeredService(), keys=keys, admin_keys=admin_keys, metrics_need_key=True)
    paths = ask(locked, "GET", "/openapi.json").json()["paths"]
    for path, method in (
        ("/classify/image", "post"),
        ("/classify/video", "post"),
        ("/models", "get"),
        ("/models/{name}", "get"),
        ("/metrics", "get"),
        ("/v2/models/{name}", "get"),
        ("/v2/models/{name}/ready", "get"),
        ("/v2/models/{name}/infer", "post"),
    ):
        operation = paths[path][method]
        for status, headers in ((401, {}), (403, {"X-API-Key": "admin-secret"})):
            answer = ask(locked, method.upper(), path, headers=headers)
            assert answer.status_code == status
            assert answer.headers["content-type"] in operation["responses"][str(status)]["content"], path
        assert operation["security"] == [{"key": []}, {"bearer": []}]


def test_the_document_asks_for_no_key_where_none_is_needed() -> None:
    metrics = ask(build(SteeredService(), keys=KeyRing(["alice:secret"])), "GET", "/openapi.json").json()["paths"]
    assert set(metrics["/metrics"]["get"]["responses"]) == {"200"}
    assert "security" not in metrics["/metrics"]["get"]
    paths = ask(build(SteeredService(), metrics_need_key=True), "GET", "/openapi.json").json()["paths"]
    assert not [path for path in paths if "security" in str(paths[path]) and not path.startswith("/admin/")]


def test_every_problem_that_the_document_knows_is_counted_from_zero() -> None:
    metrics = Metrics()
    document = ask(build(SteeredService(), metrics=metrics), "GET", "/openapi.json").json()
    for task in ("image", "video"):
        for status in document["paths"][f"/classify/{task}"]["post"]["responses"]:
            labels = {"task": task, "model": "none", "code": status}
            assert metrics.registry.get_sample_value("hiera_requests_total", labels) == 0, status


def test_a_page_of_a_named_origin_may_read_why_it_was_refused(log: io.StringIO) -> None:
    metrics = Metrics()
    app = build(
        SteeredService(),
        metrics=metrics,
        keys=KeyRing(["alice:secret"]),
        admin_keys=KeyRing(["op:admin-secret"]),
        cors_origins=("https://app.example",),
    )
    for status, headers in ((401, {}), (403, {"X-API-Key": "admin-secret"}), (200, {"X-API-Key": "secret"})):
        origin = {"Origin": "https://app.example"}
        response = ask(app, "POST", "/classify/image", files={"file": b"x"}, headers=headers | origin)
        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == "https://app.example"
        assert "x-request-id" in response.headers["access-control-expose-headers"]
        assert response.headers["x-request-id"]
        model = "m" if status == 200 else "none"
        labels = {"task": "image", "model": model, "code": str(status)}
        assert metrics.registry.get_sample_value("hiera_requests_total", labels) == 1
        assert [line["status"] for line in lines(log) if line["logger"] == "hiera.access"][-1] == status
    stranger = ask(app, "POST", "/classify/image", headers={"Origin": "https://evil.example"})
    assert stranger.status_code == 401
    assert "access-control-allow-origin" not in stranger.headers


def test_a_preflight_needs_no_key_and_is_logged(log: io.StringIO) -> None:
    app = build(SteeredService(), keys=KeyRing(["alice:secret"]), cors_origins=("https://app.example",))
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    friend = ask(app, "OPTIONS", "/classify/image", headers={"Origin": "https://app.example", **asked})
    assert (friend.status_code, friend.headers["access-control-allow-origin"]) == (200, "https://app.example")
    assert friend.headers["x-request-id"]
    stranger = ask(app, "OPTIONS", "/classify/image", headers={"Origin": "https://evil.example", **asked})
    assert (stranger.status_code, stranger.headers["content-type"]) == (403, "application/problem+json")
    problem = stranger.json()
    assert (problem["code"], problem["request_id"]) == ("cors_refused", stranger.headers["x-request-id"])
    assert "(origin)" in problem["detail"]
    access = [line for line in lines(log) if line["logger"] == "hiera.access"]
    assert [(line["method"], line["status"]) for line in access] == [("OPTIONS", 200), ("OPTIONS", 403)]
    assert access[1]["code"] == "cors_refused"
    asked["Access-Control-Request-Method"] = "PUT"
    admin = ask(app, "OPTIONS", "/admin/models/m", headers={"Origin": "https://app.example", **asked})
    assert "(method)" in admin.json()["detail"]


@pytest.mark.parametrize("origins", [("https://app.example",), ("*",)])
def test_a_page_may_read_of_a_failure_of_ours(origins: tuple[str, ...], log: io.StringIO) -> None:
    app = build(SteeredService(RuntimeError("a bug")), cors_origins=origins)
    for method, path in (("POST", "/classify/image"), ("GET", "/models")):
        response = ask(app, method, path, files={"file": b"x"}, headers={"Origin": "https://app.example"})
        assert (response.status_code, response.json()["code"]) == (500, "internal_error")
        assert response.headers["access-control-allow-origin"] == origins[0]
        assert "x-request-id" in response.headers["access-control-expose-headers"]
        assert response.headers["x-request-id"] == response.json()["request_id"]
    stranger = ask(build(SteeredService()), "GET", "/models", headers={"Origin": "https://app.example"})
    assert "access-control-allow-origin" not in stranger.headers


def test_an_upload_that_takes_long_is_set_aside_until_it_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.api.upload_stage._SLOW_UPLOAD_S", 0.01)

    async def chunks() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(0.1)
        yield b"y"

    service = SteeredService()
    ask(build(service), "POST", "/classify/image", content=chunks(), headers={"content-type": "image/png"})
    assert service.tickets[0].noted == ["set aside", "resumed"]


def test_a_request_of_several_files_tells_of_the_slowest_of_each_stage() -> None:
    slow = replace(ANSWER, latency=Latency(0.5, 0.001, 0.4, 0.001))
    response = ask(build(SteeredService(slow, ANSWER)), "POST", "/classify/image", files=[("file", b"x")] * 2)
    assert "decode;dur=500.000, queue;dur=3.000, inference;dur=400.000" in response.headers["server-timing"]


@pytest.mark.parametrize("error", [asyncio.CancelledError, ValueError])
def test_what_ends_an_answer_halfway_is_no_second_answer_and_is_logged(
    error: type[BaseException], log: io.StringIO
) -> None:
    async def half(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise error

    channel = Channel()
    with pytest.raises(error):
        asyncio.run(RecordExchanges(AnswerFailures(half), Metrics(), {})(channel.scope, channel.receive, channel.send))
    assert [message["type"] for message in channel.sent] == ["http.response.start"]
    assert (b"x-content-type-options", b"nosniff") in channel.sent[0]["headers"]
    assert [line["status"] for line in lines(log) if line["logger"] == "hiera.access"] == [200]


def test_a_request_without_an_answer_is_not_counted_as_one() -> None:
    async def silent(scope: Any, receive: Any, send: Any) -> None:
        raise asyncio.CancelledError

    channel, metrics = Channel(), Metrics()
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(RecordExchanges(silent, metrics, {"/": "image"})(channel.scope, channel.receive, channel.send))
    labels = {"task": "image", "model": "none", "code": "0"}
    assert metrics.registry.get_sample_value("hiera_requests_total", labels) is None
