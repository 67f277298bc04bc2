"""Traces of a real server, as a collector receives them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import httpx
from colours import BLUE, GREEN, RED, image_of
from otlp_collector import Collector, attribute
from running_server import RunningServer

CALLER_TRACE, CALLER_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
StartServer = Callable[..., RunningServer]
STAGES = ("upload", "decode", "queue", "inference", "postprocess")


def test_a_request_is_traced_from_the_caller_to_its_batch(start_server: StartServer, collector: Collector) -> None:
    server = start_server(otlp_endpoint=collector.endpoint).wait_until_ready()
    headers = {"traceparent": f"00-{CALLER_TRACE}-{CALLER_SPAN}-01", "x-request-id": "mine-1"}
    answer = httpx.post(f"{server.url}/classify/image", content=image_of(RED), headers=headers)
    assert answer.status_code == 200
    assert server.stop() == 0, server.log

    request = collector.named("POST /classify/image")
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (CALLER_TRACE, CALLER_SPAN)
    assert attribute(request, "hiera.request_id") == "mine-1"
    assert attribute(request, "hiera.model") == "colours"
    spans = [collector.named(stage) for stage in STAGES]
    assert [span.parent_span_id for span in spans] == [request.span_id] * len(STAGES)
    assert spans == sorted(spans, key=lambda span: span.start_time_unix_nano)
    batch = collector.named("batch")
    assert [link.span_id for link in batch.links] == [request.span_id]
    assert attribute(batch, "hiera.model") == "colours"
    assert attribute(batch, "hiera.batch.rows") == 1


def test_every_file_of_a_request_has_its_stages_and_its_link(start_server: StartServer, collector: Collector) -> None:
    server = start_server(otlp_endpoint=collector.endpoint).wait_until_ready()
    files = [("file", image_of(colour)) for colour in (RED, GREEN, BLUE)]
    assert httpx.post(f"{server.url}/classify/image", files=files).status_code == 200
    assert server.stop() == 0, server.log

    request = collector.named("POST /classify/image")
    inferences = [span for span in collector.spans if span.name == "inference"]
    assert [span.parent_span_id for span in inferences] == [request.span_id] * len(files)
    batches = [span for span in collector.spans if span.name == "batch"]
    assert sum(int(attribute(batch, "hiera.batch.rows")) for batch in batches) == len(files)
    assert {link.span_id for batch in batches for link in batch.links} == {request.span_id}


def test_a_dead_collector_costs_no_request_and_no_drain(start_server: StartServer, collector: Collector) -> None:
    endpoint = collector.endpoint.rpartition(":")[0] + ":9"  # the discard port: nobody listens
    server = start_server(otlp_endpoint=endpoint).wait_until_ready()
    assert httpx.post(f"{server.url}/classify/image", content=image_of(RED)).status_code == 200
    assert server.stop() == 0, server.log


def test_without_the_extra_the_setting_says_what_to_install() -> None:
    script = """
import sys
sys.modules["opentelemetry.sdk"] = None
from app.main import create_app
from app.settings import SettingsError, load_settings
try:
    create_app(load_settings({"otlp_endpoint": "http://localhost:4318"}))
except SettingsError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "HIERA_OTLP_ENDPOINT needs OpenTelemetry: install hiera-serve[otel]"
