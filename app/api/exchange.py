"""What is known of one request while it is answered, for the access log, the metrics and the answer's own headers."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from typing import Any

from app.serving.results import Latency
from app.telemetry.metrics import NO_MODEL

_SCOPE_KEY = "hiera.exchange"
_SOUND_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Exchange:
    """One request and its answer.

    Attributes:
        request_id: the caller's X-Request-ID if it is sound, else 32 random hex digits.
        started: `time.monotonic()` when the request's headers had arrived.
        task: "image" or "video" on the classification routes, else None.
        model: the model that answers, once it is known.
        key: the name of the API key that was used.
        stages: seconds by stage, in the order in which they happened.
        code: the problem's code when the answer is one.
        files, body_bytes: what was uploaded.
        open_inference: the caller speaks the Open Inference Protocol.
    """

    __slots__ = (
        "body_bytes", "code", "files", "key", "model", "open_inference", "request_id", "stages", "started", "status",
        "task",
    )  # fmt: skip

    def __init__(self, request_id: str, task: str | None, *, open_inference: bool = False) -> None:
        self.request_id = request_id
        self.started = time.monotonic()
        self.task = task
        self.model = NO_MODEL
        self.key: str | None = None
        self.stages: dict[str, float] = {}
        self.code: str | None = None
        self.files = 0
        self.open_inference = open_inference
        self.body_bytes = 0
        self.status = 0

    @property
    def caller(self) -> str:
        """Whose turn the request takes: its key's name; "" where no key is asked for."""
        return self.key or ""

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started

    def note_stages(self, latency: Latency) -> None:
        """Of one file of the request; of several files, the slowest of each stage counts."""
        stages = self.stages
        stages["decode"] = max(latency.decode_s, stages.get("decode", 0.0))
        stages["queue"] = max(latency.queue_s, stages.get("queue", 0.0))
        stages["inference"] = max(latency.inference_s, stages.get("inference", 0.0))
        stages["postprocess"] = max(latency.postprocess_s, stages.get("postprocess", 0.0))

    def server_timing(self) -> str:
        """The Server-Timing header (W3C): stages and total, in milliseconds."""
        parts = [f"{stage};dur={1000 * seconds:.3f}" for stage, seconds in self.stages.items()]
        return ", ".join([*parts, f"total;dur={1000 * self.elapsed_s:.3f}"])

    def bind(self, scope: Any) -> None:
        """Attach this to an ASGI scope, where `exchange_of` finds it."""
        scope[_SCOPE_KEY] = self


def exchange_of(scope: Any) -> Exchange:
    """The exchange that the outermost middleware bound to `scope`."""
    exchange: Exchange = scope[_SCOPE_KEY]
    return exchange


def sound_request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The caller's X-Request-ID if it is 1 to 128 letters, digits, dots, dashes and underscores; else a new one."""
    for name, value in headers:
        if name == b"x-request-id":
            text = value.decode("latin-1")
            if _SOUND_ID.fullmatch(text):
                return text
            break
    return os.urandom(16).hex()
