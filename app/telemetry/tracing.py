"""OpenTelemetry traces: a span for each request, one for each of its stages, and one for each batch with links to the
requests that rode in it.

    request   POST /classify/image ├─ upload ─┤├─ decode ─┤├─ queue ─┤├─ inference ─┤├ postprocess ┤
    batch                                                              ├─ batch ─────┤ linked to its requests

It is imported only when traces are asked for (extra `otel`); without it nothing is created, called or measured.
The caller's W3C trace context (https://www.w3.org/TR/trace-context/) is taken over. Further settings are the standard's
own variables: OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from contextvars import ContextVar
from typing import Any

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import INVALID_SPAN, Link, Span, SpanContext, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from app.telemetry.metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Describe = Callable[[Scope], Mapping[str, str]]
RouteOf = Callable[[str], str | None]

_LONGEST_CLOSE_S = 2.0
_LAST_STAGE = "postprocess"  # serving reports the stages of one file together, in order, when this one is over
_CONTEXT_HEADERS = (b"traceparent", b"tracestate")

_request_span: ContextVar[Span] = ContextVar("hiera_request_span", default=INVALID_SPAN)


class Tracing:
    """Makes spans and hands them to an exporter in the background.

    Args:
        provider: owned from here on; `close` flushes and ends it.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("hiera-serve")
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def to_otlp(cls, endpoint: str) -> Tracing:
        """Traces sent as OTLP over HTTP.

        Args:
            endpoint: the collector's address, as `http://collector:4318`.
        """
        resource = Resource.create()  # the environment's
        if str(resource.attributes["service.name"]).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "hiera-serve"}))
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)  # `close` does it, within bounds
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")))
        return cls(provider)

    def close(self) -> None:
        """Send what is left, and wait for that no longer than `_LONGEST_CLOSE_S`: a collector may be away."""
        closing = threading.Thread(target=self._provider.shutdown, name="end-traces", daemon=True)
        closing.start()
        closing.join(_LONGEST_CLOSE_S)

    def start_request(self, name: str, headers: Iterable[tuple[bytes, bytes]], attributes: Mapping[str, str]) -> Span:
        """Open a request's span, below the caller's span if its headers name one."""
        carrier = {key.decode(): value.decode("latin-1") for key, value in headers if key in _CONTEXT_HEADERS}
        parent = self._propagator.extract(carrier, context=Context())
        return self._tracer.start_span(name, context=parent, kind=SpanKind.SERVER, attributes=dict(attributes))

    def stage(self, parent: Span, stage: str, model: str, begin_s: float, end_s: float) -> None:
        """Record a stage that is over. Times are `time.monotonic()` seconds."""
        self._record(stage, set_span_in_context(parent, Context()), {"hiera.model": model}, begin_s, end_s)

    def batch(self, model: str, rows: int, begin_s: float, end_s: float, riders: Sequence[SpanContext]) -> None:
        """Record a batch that ran, in a trace of its own, with a link to each request in it."""
        attributes: dict[str, str | int] = {"hiera.model": model, "hiera.batch.rows": rows}
        self._record("batch", Context(), attributes, begin_s, end_s, [Link(rider) for rider in riders])

    def _record(
        self,
        name: str,
        context: Context,
        attributes: Mapping[str, str | int],
        begin_s: float,
        end_s: float,
        links: Sequence[Link] = (),
    ) -> None:
        # Durations are measured by the monotonic clock; spans want nanoseconds since 1970, and that clock may be set.
        epoch_offset_ns = time.time_ns() - time.monotonic_ns()
        span = self._tracer.start_span(
            name,
            context=context,
            attributes=dict(attributes),
            links=links,
            start_time=int(begin_s * 1e9) + epoch_offset_ns,
        )
        span.end(int(end_s * 1e9) + epoch_offset_ns)


class TraceRequests:
    """The outermost ASGI layer: a span for each classification request.

    Args:
        app: the next layer.
        tracing: where the spans go.
        route_of: the route that a path belongs to, whose name the span gets; None for one that is not traced.
        describe: further attributes of a request that was answered, from its scope.
    """

    def __init__(self, app: AsgiApp, tracing: Tracing, route_of: RouteOf, describe: Describe) -> None:
        self._app = app
        self._tracing = tracing
        self._route_of = route_of
        self._describe = describe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._route_of(scope["path"]) if scope["type"] == "http" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        attributes = {"http.request.method": scope["method"], "url.path": scope["path"], "http.route": route}
        span = self._tracing.start_request(f"{scope['method']} {route}", scope["headers"], attributes)

        async def send_and_note(message: Message) -> None:
            if message["type"] == "http.response.start":
                span.set_attribute("http.response.status_code", message["status"])
                if message["status"] >= 500:
                    span.set_status(Status(StatusCode.ERROR))
            await send(message)

        token = _request_span.set(span)
        try:
            await self._app(scope, receive, send_and_note)
        except BaseException as error:
            span.record_exception(error)
            span.set_status(Status(StatusCode.ERROR))
            raise
        finally:
            _request_span.reset(token)
            span.set_attributes(dict(self._describe(scope)))
            span.end()


class TracedMetrics(Metrics):
    """The metrics, whose stage durations and batches become spans as well."""

    def __init__(
        self, tracing: Tracing, worker_states: Iterable[str] = (), restart_reasons: Iterable[str] = ()
    ) -> None:
        super().__init__(worker_states, restart_reasons)
        self._tracing = tracing
        self._reported: ContextVar[tuple[tuple[str, float], ...]] = ContextVar("hiera_reported_stages", default=())

    def stage_duration(self, model: str, stage: str, seconds: float) -> None:
        super().stage_duration(model, stage, seconds)
        span = _request_span.get()
        if not span.is_recording():
            return
        now = time.monotonic()
        if stage == "upload":
            self._tracing.stage(span, stage, model, now - seconds, now)
            return
        reported = (*self._reported.get(), (stage, seconds))
        if stage != _LAST_STAGE:
            self._reported.set(reported)
            return
        self._reported.set(())
        begin = now - sum(spent for _, spent in reported)
        for name, spent in reported:
            self._tracing.stage(span, name, model, begin, begin + spent)
            begin += spent

    def origin(self) -> object:
        """What a submission carries to its batch: the request's span context, or None where nothing is traced."""
        span = _request_span.get()
        return span.get_span_context() if span.is_recording() else None

    def batch_ran(self, model: str, rows: int, began: float, ended: float, origins: Sequence[object]) -> None:
        """A batch ran from `began` to `ended` (`time.monotonic()` seconds) for submissions that carried `origins`."""
        super().batch_ran(model, rows, began, ended, origins)
        riders = {origin.span_id: origin for origin in origins if isinstance(origin, SpanContext)}
        if riders:
            self._tracing.batch(model, rows, began, ended, list(riders.values()))
