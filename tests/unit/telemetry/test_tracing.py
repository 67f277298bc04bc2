"""Traces, as a collector receives them: a real HTTP server takes the OTLP messages and reads them back."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from otlp_collector import Collector, attribute

from app.telemetry.tracing import Message, Receive, Scope, Send, TracedMetrics, TraceRequests, Tracing

CALLER_TRACE, CALLER_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def scope_of(path: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Scope:
    return {"type": "http", "method": "POST", "path": path, "headers": list(headers)}


def serve(tracing: Tracing, metrics: TracedMetrics, scope: Scope, *, status: int = 200, batch: bool = True) -> None:
    """One request through the traced layers, whose application reports what serving reports for one file."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        metrics.stage_duration("m", "upload", 0.001)
        origin = metrics.origin()
        began = time.monotonic()
        await asyncio.to_thread(metrics.batch_ran, "m", 2, began, began + 0.01, [origin, origin] if batch else [])
        for stage, seconds in (("decode", 0.003), ("queue", 0.002), ("inference", 0.01), ("postprocess", 0.0005)):
            metrics.stage_duration("m", stage, seconds)
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        """The client's side, which is not looked at."""

    traced = TraceRequests(
        application, tracing, {"/classify/image": "/classify/image"}.get, lambda scope: {"hiera.request_id": "r1"}
    )
    asyncio.run(traced(scope, receive, send))


def seconds_of(span: Span) -> float:
    return (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9


def test_a_request_arrives_as_a_span_with_one_span_for_each_stage(collector: Collector) -> None:
    tracing = Tracing.to_otlp(collector.endpoint)
    serve(tracing, TracedMetrics(tracing), scope_of("/classify/image"))
    tracing.close()
    request = collector.named("POST /classify/image")
    assert request.kind == Span.SpanKind.SPAN_KIND_SERVER
    assert attribute(request, "http.response.status_code") == 200
    assert attribute(request, "hiera.request_id") == "r1"
    durations = {"upload": 0.001, "decode": 0.003, "queue": 0.002, "inference": 0.01, "postprocess": 0.0005}
    for stage, seconds in durations.items():
        span = collector.named(stage)
        assert (span.trace_id, span.parent_span_id) == (request.trace_id, request.span_id), stage
        assert seconds_of(span) == pytest.approx(seconds, abs=1e-5), stage
    order = ("decode", "queue", "inference", "postprocess")
    starts = [collector.named(stage).start_time_unix_nano for stage in order]
    assert starts == sorted(starts)
    assert collector.service == "hiera-serve"


def test_spans_stay_together_when_the_wall_clock_is_set(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    tracing = Tracing.to_otlp(collector.endpoint)
    hour_ns, time_ns = 3600 * 10**9, time.time_ns
    for clock in ("time.time_ns", "opentelemetry.sdk.trace.time_ns"):
        monkeypatch.setattr(clock, lambda: time_ns() + hour_ns)
    serve(tracing, TracedMetrics(tracing), scope_of("/classify/image"))
    tracing.close()
    began_ns = collector.named("POST /classify/image").start_time_unix_nano
    for name in ("upload", "decode", "queue", "inference", "postprocess", "batch"):
        assert abs(collector.named(name).start_time_unix_nano - began_ns) < hour_ns / 2, name


def test_the_batch_is_linked_to_its_requests_once_each(collector: Collector) -> None:
    tracing = Tracing.to_otlp(collector.endpoint)
    serve(tracing, TracedMetrics(tracing), scope_of("/classify/image"))
    tracing.close()
    request, batch = collector.named("POST /classify/image"), collector.named("batch")
    assert [link.span_id for link in batch.links] == [request.span_id]
    assert batch.trace_id != request.trace_id
    assert attribute(batch, "hiera.batch.rows") == 2


def test_the_callers_trace_context_is_taken_over(collector: Collector) -> None:
    tracing = Tracing.to_otlp(collector.endpoint)
    header = (b"traceparent", f"00-{CALLER_TRACE}-{CALLER_SPAN}-01".encode())
    serve(tracing, TracedMetrics(tracing), scope_of("/classify/image", (header,)))
    tracing.close()
    request = collector.named("POST /classify/image")
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (CALLER_TRACE, CALLER_SPAN)


def test_a_caller_that_does_not_sample_is_not_traced(collector: Collector) -> None:
    tracing = Tracing.to_otlp(collector.endpoint)
    header = (b"traceparent", f"00-{CALLER_TRACE}-{CALLER_SPAN}-00".encode())
    serve(tracing, TracedMetrics(tracing), scope_of("/classify/image", (header,)))
    tracing.close()
    assert collector.spans == []


def test_a_failed_request_is_an_error_and_a_refused_one_is_not(collector: Collector) -> None:
    tracing = Tracing.to_otlp(collector.endpoint)
    metrics = TracedMetrics(tracing)
    serve(tracing, metrics, scope_of("/classify/image"), status=500, batch=False)
    serve(tracing, metrics, scope_of("/classify/image"), status=429, batch=False)
    tracing.close()
    codes = {attribute(span, "http.response.status_code"): span.status.code
             for span in collector.spans if span.name == "POST /classify/image"}  # fmt: skip
    assert codes[500] == 2
    assert codes[429] == 0


def test_other_routes_are_not_traced(collector: Collector) -> None:
    tracing = Tracing.to_otlp(collector.endpoint)
    serve(tracing, TracedMetrics(tracing), scope_of("/metrics"), batch=False)
    tracing.close()
    assert collector.spans == []


def test_without_tracing_the_server_loads_none_of_it() -> None:
    script = "import sys, app.main; print([m for m in sys.modules if m.startswith('opentelemetry.sdk')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_collector_that_never_answers_is_not_waited_for_at_the_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes connections, and that is all
        tracing = Tracing.to_otlp(f"http://127.0.0.1:{silent.getsockname()[1]}")
        serve(tracing, TracedMetrics(tracing), scope_of("/classify/image"))
        tracing.close()
        assert "end-traces" in {thread.name for thread in threading.enumerate()}  # it still tries


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "hiera-serve"),
        ({"OTEL_SERVICE_NAME": "photos"}, "photos"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=photos,team=a"}, "photos"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "team=a"}, "hiera-serve"),
    ],
)
def test_the_service_is_called_as_the_environment_says(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], name: str
) -> None:
    for variable in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    tracing = Tracing.to_otlp(collector.endpoint)
    serve(tracing, TracedMetrics(tracing), scope_of("/classify/image"))
    tracing.close()
    assert collector.service == name
