"""One exposition for several processes."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.telemetry.metrics import Metrics
from app.telemetry.totals import Totals, encode_samples


def metrics() -> Metrics:
    made = Metrics(worker_states=("idle",), restart_reasons=("crashed",))
    made.expect_models([("image", "model")])
    return made


def values_of(text: bytes) -> dict[str, float]:
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def without_values(text: bytes) -> list[str]:
    return [line if line.startswith("#") else line.rpartition(" ")[0] for line in text.decode().splitlines()]


def test_counts_histograms_and_gauges_of_all_processes_are_added_up() -> None:
    host, first, second = metrics(), metrics(), metrics()
    for worker, requests in ((first, 2), (second, 3)):
        worker.workers("idle", requests)
        for _ in range(requests):
            worker.request("image", "model", 200, 0.02)
    host.batch_ran("model", 5, 0.0, 1.0, [])
    text, _ = Totals(host.registry).render([encode_samples(each.registry) for each in (first, second)], "")
    values = values_of(text)
    model = ("model", "model")
    assert values[f"hiera_requests_total{[('code', '200'), model, ('task', 'image')]}"] == 5
    assert values[f"hiera_request_duration_seconds_count{[model, ('task', 'image')]}"] == 5
    assert values[f"hiera_request_duration_seconds_bucket{[('le', '0.01'), model, ('task', 'image')]}"] == 0
    assert values[f"hiera_request_duration_seconds_bucket{[('le', '0.025'), model, ('task', 'image')]}"] == 5
    assert values[f"hiera_media_workers{[('state', 'idle')]}"] == 5
    assert values[f"hiera_batch_rows_sum{[model]}"] == 5


def test_it_has_every_series_and_help_text_of_one_process_in_both_formats() -> None:
    host, worker = metrics(), metrics()
    for accept in ("", "application/openmetrics-text"):
        alone, content_type = host.render(accept)
        total, total_type = Totals(host.registry).render([encode_samples(worker.registry)], accept)
        assert total_type == content_type
        assert without_values(total) == without_values(alone)


@pytest.mark.parametrize("accept", ["text/plain; version=x", "application/openmetrics-text; version=1.x"])
def test_a_header_that_cannot_be_read_asks_for_nothing(accept: str) -> None:
    host = metrics()
    for render in (host.render, lambda accept: Totals(host.registry).render([], accept)):
        (text, content_type), (_, usual_type) = render(accept), render("")
        assert content_type == usual_type
        assert "hiera_rows_total" in text.decode()


def test_what_a_process_counted_outlives_it_and_its_gauges_do_not() -> None:
    host, dead, alive = metrics(), metrics(), metrics()
    for worker in (dead, alive):
        worker.workers("idle", 1)
        worker.restarted("crashed")
    totals = Totals(host.registry)
    totals.retire(encode_samples(dead.registry))
    values = values_of(totals.render([encode_samples(alive.registry)], "")[0])
    assert values[f"hiera_media_worker_restarts_total{[('reason', 'crashed')]}"] == 2
    assert values[f"hiera_media_workers{[('state', 'idle')]}"] == 1


def test_what_several_processes_counted_outlives_them_all() -> None:
    host, *dead = metrics(), metrics(), metrics()
    totals = Totals(host.registry)
    for worker in dead:
        worker.restarted("crashed")
        totals.retire(encode_samples(worker.registry))
    values = values_of(totals.render([], "")[0])
    assert values[f"hiera_media_worker_restarts_total{[('reason', 'crashed')]}"] == 2


def test_a_start_time_is_not_a_sum() -> None:
    host = metrics()
    alone = values_of(host.render("")[0])
    total = values_of(Totals(host.registry).render([encode_samples(host.registry)], "")[0])
    assert total["process_start_time_seconds[]"] == alone["process_start_time_seconds[]"]
