"""Every metric of the server, defined once; `Metrics` is the observer that serving, media and the API report to.

Names end in their unit, labels take values from short closed lists or from the models that are served, and each series
exists (as 0) as soon as its labels can be known, so that a rate or an alert never starts from nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

TASKS = ("image", "video")
STAGES = ("upload", "decode", "queue", "inference", "postprocess")
CODES = (200, 400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 499, 500, 503, 504)  # 499: the caller left
REJECTION_REASONS = ("queue_rows", "queue_bytes", "share", "deadline", "draining")
NO_MODEL = "none"  # the label of requests that were answered before they were admitted
NO_KEY = "none"  # of those without an API key that fits, which none needs where no keys are set

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def encoder_for(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    """What writes the exposition that an Accept header asks for, and its content type. A header that prometheus_client
    cannot read (a version that is no number) asks for nothing."""
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):
        return choose_encoder("")


class Metrics:
    """The metrics of one server, in a registry of their own. Thread-safe; no method raises or waits for long.

    Implements `ServingObserver` and `PoolObserver`.

    Args:
        worker_states, restart_reasons: the media pool's own words for them, which become labels.
    """

    def __init__(self, worker_states: Iterable[str] = (), restart_reasons: Iterable[str] = ()) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # they would clutter the text format
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "hiera_requests_total", "Classification requests answered.", ("task", "model", "code"), registry=registry
        )
        self._key_requests = Counter(
            "hiera_key_requests_total",
            "Classification requests answered, by the name of their API key.",
            ("key", "code"),
            registry=registry,
        )
        self._request_duration = Histogram(
            "hiera_request_duration_seconds",
            "Time from a request's headers to its answer.",
            ("task", "model"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._stage_duration = Histogram(
            "hiera_stage_duration_seconds",
            "Time that one file spent in each stage.",
            ("model", "stage"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._batch_rows = Histogram(
            "hiera_batch_rows", "Rows in each batch that was run.", ("model",), buckets=_ROWS, registry=registry
        )
        self._queue_rows = Gauge("hiera_queue_rows", "Rows that wait for an engine now.", ("model",), registry=registry)
        self._in_flight_rows = Gauge(
            "hiera_in_flight_rows", "Rows that are admitted and not answered.", registry=registry
        )
        self._in_flight_bytes = Gauge(
            "hiera_in_flight_bytes", "Bytes of uploads and rows that are admitted and not answered.", registry=registry
        )
        self._rows = Counter("hiera_rows_total", "Rows classified.", ("model",), registry=registry)
        self._close_calls = Counter(
            "hiera_close_calls_total",
            "Rows run again in fp32, as bf16 could hardly tell their two likeliest classes apart.",
            ("model",),
            registry=registry,
        )
        self._rejected = Counter(
            "hiera_rejected_total", "Requests refused by admission.", ("model", "reason"), registry=registry
        )
        self._cancelled = Counter(
            "hiera_cancelled_total",
            "Requests dropped because the caller left or the deadline passed, by the stage that they were in.",
            ("model", "stage"),
            registry=registry,
        )
        self._media_workers = Gauge(
            "hiera_media_workers", "Media worker processes by state.", ("state",), registry=registry
        )
        self._media_worker_restarts = Counter(
            "hiera_media_worker_restarts_total", "Media workers replaced.", ("reason",), registry=registry
        )
        self._model_ready = Gauge(
            "hiera_model_ready",
            "1 if the model is proven and serves, 0 if its engine is lost or its package was refused.",
            ("model", "version"),
            registry=registry,
        )
        self._engine_info = Gauge(
            "hiera_engine_info",
            "The engine that serves each model; always 1.",
            ("model", "version", "engine", "precision", "device"),
            registry=registry,
        )
        self._batch_cost = Gauge(
            "hiera_batch_cost_seconds",
            "Measured time of a batch by its number of rows.",
            ("model", "rows"),
            registry=registry,
        )
        # Looking a series up by its labels costs more than counting in it. These are never removed.
        self._requests_of = functools.cache(self._requests.labels)
        self._key_requests_of = functools.cache(self._key_requests.labels)
        self._request_duration_of = functools.cache(self._request_duration.labels)
        self._stage_duration_of = functools.cache(self._stage_duration.labels)
        self._batch_rows_of = functools.cache(self._batch_rows.labels)
        self._rows_of = functools.cache(self._rows.labels)
        self._rejected_of = functools.cache(self._rejected.labels)
        self._queue_rows_of = functools.cache(self._queue_rows.labels)  # but this one: see `model_gone`
        for state in worker_states:
            self._media_workers.labels(state)
        for reason in restart_reasons:
            self._media_worker_restarts.labels(reason)
        for task in TASKS:
            self._start_requests_at_zero(task, NO_MODEL)
        self._start_refusals_at_zero(NO_MODEL)
        for code in CODES:
            self._key_requests.labels(NO_KEY, str(code))

    def _start_requests_at_zero(self, task: str, model: str) -> None:
        self._request_duration.labels(task, model)
        for code in CODES:
            self._requests.labels(task, model, str(code))

    def _start_refusals_at_zero(self, model: str) -> None:
        for reason in REJECTION_REASONS:
            self._rejected.labels(model, reason)
        for stage in STAGES:
            self._cancelled.labels(model, stage)

    def _start_work_at_zero(self, model: str) -> None:
        self._start_refusals_at_zero(model)
        for stage in STAGES:
            self._stage_duration.labels(model, stage)
        self._batch_rows.labels(model)
        self._rows.labels(model)
        self._close_calls.labels(model)

    def expect_models(self, models: Iterable[tuple[str, str]]) -> None:
        """Create every series of `models`, pairs of task and name, at zero. Known ones keep their values."""
        for task, model in models:
            self.expect_model(task, model)

    def expect_keys(self, names: Iterable[str]) -> None:
        """Create the series of these API keys that will be asked for, at zero."""
        for name in names:
            for code in (200, 429):
                self._key_requests.labels(name, str(code))

    # What the API reports.

    def request(self, task: str, model: str, code: int, seconds: float, key: str | None = None) -> None:
        """A classification request was answered with `code` after `seconds`; `key` is the name of its API key."""
        self._requests_of(task, model, code).inc()
        self._request_duration_of(task, model).observe(seconds)
        self._key_requests_of(NO_KEY if key is None else key, code).inc()

    def refused(self, task: str, seconds: float, key: str | None) -> None:
        """A request was refused at the gate, after `seconds`."""
        self.request(task, NO_MODEL, 429, seconds, key)

    # What serving reports.

    def expect_model(self, task: str, model: str) -> None:
        """Create every series of the model at zero; one that is known keeps its values."""
        self._start_requests_at_zero(task, model)
        self._start_work_at_zero(model)

    def stage_duration(self, model: str, stage: str, seconds: float) -> None:
        self._stage_duration_of(model, stage).observe(seconds)

    def queue_rows(self, model: str, rows: int) -> None:
        self._queue_rows_of(model).set(rows)

    def in_flight(self, rows: int, nbytes: int) -> None:
        """Admission has so much in flight now."""
        self._in_flight_rows.set(rows)
        self._in_flight_bytes.set(nbytes)

    def rejected(self, model: str, reason: str) -> None:
        self._rejected_of(model, reason).inc()

    def cancelled(self, model: str, stage: str) -> None:
        self._cancelled.labels(model, stage).inc()

    def model_ready(self, model: str, version: int, ready: bool) -> None:
        if ready:
            self._queue_rows_of(model)
        self._model_ready.labels(model, str(version)).set(ready)

    def engine_info(self, model: str, version: int, engine: str, precision: str, device: str) -> None:
        self._engine_info.labels(model, str(version), engine, precision, device).set(1)

    def batch_cost(self, model: str, rows: int, seconds: float) -> None:
        self._batch_cost.labels(model, str(rows)).set(seconds)

    def version_gone(self, model: str, version: int) -> None:
        """What is said of a version disappears; what was counted under the model's name stays."""
        self._model_ready.remove_by_labels({"model": model, "version": str(version)})
        self._engine_info.remove_by_labels({"model": model, "version": str(version)})
        self._batch_cost.remove_by_labels({"model": model})

    def model_gone(self, model: str) -> None:
        """Its queue is no more. Counters stay: a total that vanishes and begins anew would bend every rate."""
        self._queue_rows.remove_by_labels({"model": model})
        self._queue_rows_of.cache_clear()

    def origin(self) -> object:
        """Nothing: metrics do not tell requests apart."""
        return None

    def batch_ran(self, model: str, rows: int, began: float, ended: float, origins: Sequence[object]) -> None:
        """Counted; when and for whom it ran is for traces."""
        self._batch_rows_of(model).observe(rows)
        self._rows_of(model).inc(rows)

    def close_calls(self, model: str, rows: int) -> None:
        self._close_calls.labels(model).inc(rows)

    # What the media pool reports.

    def workers(self, state: str, count: int) -> None:
        self._media_workers.labels(state).set(count)

    def restarted(self, reason: str) -> None:
        self._media_worker_restarts.labels(reason).inc()

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition and its content type: OpenMetrics when `accept` asks for it, else Prometheus' text format."""
        encode, content_type = encoder_for(accept)
        return encode(self.registry), content_type

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """`render`, for who must be ready to wait for the metrics of several processes."""
        return self.render(accept)
