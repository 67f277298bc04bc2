"""What serving tells telemetry, from several threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

Stage = Literal["upload", "decode", "queue", "inference", "postprocess"]


class ServingObserver(Protocol):
    """Receives counts and durations in seconds. Implementations are thread-safe, quick, and never raise."""

    def stage_duration(self, model: str, stage: Stage, seconds: float) -> None: ...

    def queue_rows(self, model: str, rows: int) -> None:
        """`rows` rows wait for an engine now."""
        ...

    def rejected(self, model: str, reason: str) -> None:
        """A request was refused by admission: "queue_rows", "queue_bytes", "deadline" or "draining"."""
        ...

    def cancelled(self, model: str, stage: Stage) -> None:
        """A caller left, or its deadline passed, while its request was in `stage`."""
        ...

    def expect_model(self, task: str, model: str) -> None:
        """Requests for the model may come from now on."""
        ...

    def model_ready(self, model: str, version: int, ready: bool) -> None: ...

    def version_gone(self, model: str, version: int) -> None:
        """This version was replaced, or is being unloaded."""
        ...

    def model_gone(self, model: str) -> None:
        """No version of the model serves any more."""
        ...

    def engine_info(self, model: str, version: int, engine: str, precision: str, device: str) -> None: ...

    def batch_cost(self, model: str, rows: int, seconds: float) -> None:
        """The measured cost of a batch of `rows` rows, once for each size of the ladder."""
        ...

    def origin(self) -> object:
        """Whatever `batch_ran` shall know the current request by; asked on the request's task when rows are queued."""
        ...

    def batch_ran(self, model: str, rows: int, began: float, ended: float, origins: Sequence[object]) -> None:
        """A batch of `rows` rows ran from `began` to `ended` (`time.monotonic()` seconds) and was answered, for the
        requests of `origins`; one that has several files in it is named several times."""
        ...

    def close_calls(self, model: str, rows: int) -> None:
        """So many rows of a batch were run again in fp32."""
        ...


class SilentObserver:
    """Drops everything: the command line and most tests need no metrics."""

    def stage_duration(self, model: str, stage: Stage, seconds: float) -> None:
        pass

    def queue_rows(self, model: str, rows: int) -> None:
        pass

    def rejected(self, model: str, reason: str) -> None:
        pass

    def cancelled(self, model: str, stage: Stage) -> None:
        pass

    def expect_model(self, task: str, model: str) -> None:
        pass

    def model_ready(self, model: str, version: int, ready: bool) -> None:
        pass

    def version_gone(self, model: str, version: int) -> None:
        pass

    def model_gone(self, model: str) -> None:
        pass

    def engine_info(self, model: str, version: int, engine: str, precision: str, device: str) -> None:
        pass

    def batch_cost(self, model: str, rows: int, seconds: float) -> None:
        pass

    def origin(self) -> object:
        return None

    def batch_ran(self, model: str, rows: int, began: float, ended: float, origins: Sequence[object]) -> None:
        pass

    def close_calls(self, model: str, rows: int) -> None:
        pass
