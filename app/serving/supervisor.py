"""Keeps engine instances alive: notices by progress, not by existence, and rebuilds with growing pauses.

An instance is lost when its thread has died, or when a batch's run or its gathering takes many times what the run was
predicted to. A thread cannot be killed, so a stuck one is abandoned: its requests are answered with an error, and its
memory goes when it returns.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from app.errors import EngineError, EngineLost
from app.pauses import growing_pause_s
from app.serving.curve import CostModel
from app.serving.instance import Instance

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SupervisionOptions:
    """When an instance counts as stuck, and how eagerly it is rebuilt.

    Attributes:
        stuck_factor: a batch is stuck after so many times its predicted seconds, …
        stuck_floor_s: … but never before so many seconds.
        first_pause_s, longest_pause_s: before the first rebuild, doubled for each one that follows soon after, up to
            the longest.
        interval_s: between two looks.
        hopeless_after: so many stuck threads in one model mean that only a restart of the process helps.
    """

    stuck_factor: float = 20.0
    stuck_floor_s: float = 20.0
    first_pause_s: float = 0.5
    longest_pause_s: float = 60.0
    interval_s: float = 0.5
    hopeless_after: int = 3


def _spawn(work: Callable[[], None], name: str) -> None:
    threading.Thread(target=work, name=name, daemon=True).start()


class InstanceKeeper:
    """One instance of a model and its successors.

    Args:
        build: makes a proven instance, not started; may take long and may raise.
        first: the instance to begin with, not started either.
        on_change: called when the keeper's `ready` turns.
        spawn: runs a build in the background.

    Raises:
        RuntimeError: there is no thread for `first` to be had; its engine is closed.
    """

    def __init__(
        self,
        model: str,
        build: Callable[[], Instance],
        first: Instance,
        cost: CostModel,
        options: SupervisionOptions,
        *,
        on_change: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        spawn: Callable[[Callable[[], None], str], None] = _spawn,
    ) -> None:
        self._model = model
        self._build = build
        self._cost = cost
        self._options = options
        self._on_change = on_change
        self._clock = clock
        self._spawn = spawn
        self._lock = threading.Lock()
        self._instance: Instance | None = first
        self._abandoned: list[Instance] = []
        self._losses = 0
        self._rebuild_at = 0.0
        self._building = False
        self._closed = False
        self._device_lost = False
        self._born = clock()
        self._reason: str | None = None
        first.start()

    @property
    def reason(self) -> str | None:
        """Why there is no instance now; None when there is one."""
        return self._reason

    @property
    def hopeless(self) -> bool:
        """Rebuilding does not help: too many abandoned threads still hang, or the device is lost to this process."""
        return self._device_lost or sum(instance.alive for instance in self._abandoned) >= self._options.hopeless_after

    def check(self) -> None:
        """Look once: abandon what is stuck, rebuild what is lost. Called regularly, from one thread."""
        now = self._clock()
        with self._lock:
            instance, reason = self._instance, None
            if self._closed:
                return
            if instance is None:
                if self._building or now < self._rebuild_at or self.hopeless:
                    return
                self._building = True
            else:
                reason = self._fault(instance, now)
                if reason is None:
                    if self._losses and now - self._born > self._options.longest_pause_s:
                        self._losses = 0
                    return
                self._instance = None
                self._abandoned = [*(each for each in self._abandoned if each.alive), instance]
                self._schedule(now, reason)
        if instance is None:
            try:
                self._spawn(self._rebuild, f"rebuild-{self._model}")
            except Exception as error:  # no thread to be had now
                self._put_off(error)
            return
        logger.error("%s: the engine instance is lost: %s; it will be rebuilt", self._model, reason)
        instance.abandon(EngineError("the engine stopped answering"))
        self._on_change()

    def stop(self) -> None:
        """Let the instance finish its batch and end; nothing is rebuilt any more."""
        with self._lock:
            self._closed = True
            instance = self._instance
        if instance is not None:
            instance.stop()

    def join(self, timeout_s: float) -> bool:
        """After `stop`: wait for the instance; False when it still runs."""
        return self._instance is None or self._instance.join(timeout_s)

    def _fault(self, instance: Instance, now: float) -> str | None:
        if not instance.alive:
            return instance.failure or "its thread ended"
        for busy, doing in ((instance.busy, "running"), (instance.gathering, "gathering")):
            if busy is None:
                continue
            allowed_s = max(self._options.stuck_factor * self._cost.batch_s(busy.rows), self._options.stuck_floor_s)
            if now - busy.since > allowed_s:
                return f"a batch of {busy.rows} rows has been {doing} for {now - busy.since:.1f} s"
        return None

    def _schedule(self, now: float, reason: str) -> None:
        self._losses += 1
        pause_s = growing_pause_s(self._losses, self._options.first_pause_s, self._options.longest_pause_s)
        self._rebuild_at = now + pause_s
        self._reason = f"the engine is being rebuilt ({reason})"

    def _put_off(self, error: Exception) -> None:
        logger.error("%s: the engine could not be rebuilt", self._model, exc_info=error)
        with self._lock:
            self._building = False
            self._device_lost = isinstance(error, EngineLost)
            self._schedule(self._clock(), str(error))

    def _rebuild(self) -> None:
        try:
            instance = self._build()
            instance.start()
        except Exception as error:
            self._put_off(error)
            return
        with self._lock:
            self._building = False
            closed = self._closed
            self._instance = instance
            self._born = self._clock()
            self._reason = None
            if closed:
                instance.stop()
        logger.warning("%s: the engine is back", self._model)
        self._on_change()


class Supervised(Protocol):
    """Something that wants to be looked after."""

    def check(self) -> None: ...


class Supervisor:
    """A thread that checks everything it was given, at a steady interval.

    Args:
        subjects: asked at each round for what is to be checked.
    """

    def __init__(self, subjects: Callable[[], list[Supervised]], interval_s: float) -> None:
        self._subjects = subjects
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; harmless when it never started."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._look()

    def _look(self) -> None:
        # In a call of its own: between two looks nothing here may keep what was unloaded meanwhile.
        for subject in self._subjects():
            try:
                subject.check()
            except Exception:
                # One model's trouble must not leave the others without supervision.
                logger.exception("a check failed")
