"""Every metric's definition."""

from __future__ import annotations

import re

from prometheus_client.parser import text_string_to_metric_families

from app.telemetry.metrics import CODES, Metrics

CONTRACT = {
    "hiera_requests_total": {"task", "model", "code"},
    "hiera_key_requests_total": {"key", "code"},
    "hiera_request_duration_seconds": {"task", "model"},
    "hiera_stage_duration_seconds": {"model", "stage"},
    "hiera_batch_rows": {"model"},
    "hiera_queue_rows": {"model"},
    "hiera_in_flight_rows": set(),
    "hiera_in_flight_bytes": set(),
    "hiera_rows_total": {"model"},
    "hiera_close_calls_total": {"model"},
    "hiera_rejected_total": {"model", "reason"},
    "hiera_cancelled_total": {"model", "stage"},
    "hiera_media_workers": {"state"},
    "hiera_media_worker_restarts_total": {"reason"},
    "hiera_model_ready": {"model", "version"},
    "hiera_engine_info": {"model", "version", "engine", "precision", "device"},
    "hiera_batch_cost_seconds": {"model", "rows"},
}


def full() -> Metrics:
    """Metrics with every series there is."""
    metrics = Metrics(worker_states=("idle",), restart_reasons=("crashed",))
    metrics.expect_models([("image", "m")])
    metrics.expect_keys(["alice"])
    metrics.model_ready("m", 1, True)
    metrics.engine_info("m", 1, "openvino", "bf16", "cpu")
    metrics.batch_cost("m", 4, 0.02)
    return metrics


def series(metrics: Metrics) -> dict[str, float]:
    text = metrics.render("text/plain")[0].decode()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}


def test_names_and_labels_are_those_of_the_contract() -> None:
    families = text_string_to_metric_families(full().render("text/plain")[0].decode())
    labels: dict[str, set[str]] = {}
    for family in families:
        for sample in family.samples:
            if sample.name.startswith("hiera_"):
                name = re.sub("_(bucket|count|sum)$", "", sample.name)
                labels.setdefault(name, set()).update(set(sample.labels) - {"le"})
    assert labels == CONTRACT


def test_every_metric_is_described_and_no_creation_times_clutter_the_text() -> None:
    text = full().render("text/plain")[0].decode()
    for name in CONTRACT:
        assert re.search(rf"^# HELP {name} .+\.$", text, re.MULTILINE)
    assert "_created" not in text


def test_what_is_reported_arrives_in_its_series() -> None:
    metrics = full()
    before = series(metrics)
    metrics.request("image", "m", 200, 0.02)
    metrics.refused("video", 0.001, "alice")
    metrics.refused("video", 0.001, None)
    metrics.stage_duration("m", "decode", 0.004)
    metrics.batch_ran("m", 6, 0.0, 1.0, [])
    metrics.close_calls("m", 2)
    metrics.queue_rows("m", 3)
    metrics.in_flight(5, 700)
    metrics.rejected("m", "deadline")
    metrics.cancelled("m", "queue")
    metrics.workers("idle", 2)
    metrics.restarted("crashed")
    after = series(metrics)
    changed = {name: value - before[name] for name, value in after.items() if value != before[name] and "hiera" in name}
    assert {name: value for name, value in changed.items() if "_bucket" not in name} == {
        'hiera_requests_total{code="200",model="m",task="image"}': 1,
        'hiera_requests_total{code="429",model="none",task="video"}': 2,
        'hiera_key_requests_total{code="429",key="alice"}': 1,
        'hiera_key_requests_total{code="429",key="none"}': 1,
        'hiera_key_requests_total{code="200",key="none"}': 1,
        'hiera_request_duration_seconds_count{model="none",task="video"}': 2,
        'hiera_request_duration_seconds_sum{model="none",task="video"}': 0.002,
        'hiera_request_duration_seconds_count{model="m",task="image"}': 1,
        'hiera_request_duration_seconds_sum{model="m",task="image"}': 0.02,
        'hiera_stage_duration_seconds_count{model="m",stage="decode"}': 1,
        'hiera_stage_duration_seconds_sum{model="m",stage="decode"}': 0.004,
        'hiera_batch_rows_count{model="m"}': 1,
        'hiera_batch_rows_sum{model="m"}': 6,
        'hiera_queue_rows{model="m"}': 3,
        "hiera_in_flight_rows": 5,
        "hiera_in_flight_bytes": 700,
        'hiera_rows_total{model="m"}': 6,
        'hiera_close_calls_total{model="m"}': 2,
        'hiera_rejected_total{model="m",reason="deadline"}': 1,
        'hiera_cancelled_total{model="m",stage="queue"}': 1,
        'hiera_media_workers{state="idle"}': 2,
        'hiera_media_worker_restarts_total{reason="crashed"}': 1,
    }


def test_nothing_that_is_reported_of_an_expected_model_makes_a_new_series() -> None:
    metrics = full()
    before = set(series(metrics))
    for code in CODES:
        metrics.request("image", "m", code, 0.1)
        metrics.request("video", "none", code, 0.1)
    assert set(series(metrics)) == before


def test_expecting_a_model_again_keeps_its_counts() -> None:
    metrics = full()
    metrics.batch_ran("m", 5, 0.0, 1.0, [])
    metrics.expect_models([("image", "m")])
    assert series(metrics)['hiera_rows_total{model="m"}'] == 5


def test_a_model_that_becomes_ready_later_gets_its_series_then() -> None:
    metrics = full()
    metrics.expect_model("image", "late")
    metrics.model_ready("late", 2, True)
    assert series(metrics)['hiera_rows_total{model="late"}'] == 0
    assert series(metrics)['hiera_requests_total{code="200",model="late",task="image"}'] == 0
    metrics.model_ready("late", 2, False)
    assert series(metrics)['hiera_model_ready{model="late",version="2"}'] == 0


def test_a_version_that_is_gone_disappears_and_its_counts_stay() -> None:
    metrics = full()
    before = series(metrics)
    metrics.version_gone("m", 1)
    gone = {name.partition("{")[0] for name in before.keys() - series(metrics).keys()}
    assert gone == {"hiera_model_ready", "hiera_engine_info", "hiera_batch_cost_seconds"}
    metrics.model_gone("m")
    gone = {name.partition("{")[0] for name in before.keys() - series(metrics).keys()}
    assert gone == {"hiera_model_ready", "hiera_engine_info", "hiera_batch_cost_seconds", "hiera_queue_rows"}
    metrics.queue_rows("m", 5)  # it was loaded again
    assert series(metrics)['hiera_queue_rows{model="m"}'] == 5


def test_openmetrics_is_given_to_who_asks_for_it() -> None:
    text, kind = full().render("application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert kind.startswith("application/openmetrics-text")
    assert text.endswith(b"# EOF\n")
