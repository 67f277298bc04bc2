"""A package in service: its queue, its engine instances, and how they begin and end."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field, replace
from functools import partial

from app.engines.base import Engine, feature_dim
from app.engines.factory import EngineOptions, placements
from app.repository.store import Package
from app.serving.batcher import Batcher
from app.serving.company import Company
from app.serving.curve import CostModel, warm_up
from app.serving.dispatcher import LocalDispatcher, deliver
from app.serving.instance import Instance
from app.serving.measured import MeasuredStore
from app.serving.model import LoadedModel
from app.serving.observer import ServingObserver
from app.serving.proven import build_engine, build_streams, prove, sample_of
from app.serving.selection import Selected, select_engine
from app.serving.supervisor import InstanceKeeper, SupervisionOptions

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServingOptions:
    """What settings say about serving a model.

    Attributes:
        instances: engines per model and device, each with a thread; 0 is what does most, as measured.
        max_queue_rows: rows that may wait for one model's engines.
        max_queue_delay_s: how long an idle engine may wait for a fuller batch; 0 is nearly always best.
        warmup_budget_s: for timing the ladder of batch sizes at the first start on a machine.
        exact_images: forbid the JPEG decoder's own scaling.
        drain_s: how long a version that was replaced may take to finish its requests; longer than any request may.
        supervision: when an engine counts as stuck.
    """

    instances: int = 0
    max_queue_rows: int = 1024
    max_queue_delay_s: float = 0.0
    warmup_budget_s: float = 10.0
    exact_images: bool = False
    drain_s: float = 600.0
    supervision: SupervisionOptions = field(default_factory=SupervisionOptions)


class Deployment:
    """One version of a model with everything that serves it. Building it loads, proves and warms the engine.

    Attributes:
        package: what is served.
        model: what requests hold.
        golden: what the golden check said, in words.

    Raises:
        EngineUnavailable, PackageError, EngineError: the package cannot be served; the message says why.
        RuntimeError: there is no thread for an engine to be had.
    """

    def __init__(
        self,
        package: Package,
        engine_options: EngineOptions,
        options: ServingOptions,
        store: MeasuredStore,
        observer: ServingObserver,
    ) -> None:
        self.package = package
        self._observer = observer
        manifest = package.manifest
        devices = placements(engine_options)
        selected = select_engine(
            package, devices[0], store, budget_s=options.warmup_budget_s, streams=options.instances
        )
        self.golden = selected.golden
        self._telling = threading.Lock()  # an engine may be back just as its version is withdrawn
        self._withdrawn = withdrawn = threading.Event()
        self._cost = CostModel(selected.curve)
        self._batcher = Batcher(
            max_rows=options.max_queue_rows,
            deliver=deliver,
            predict_s=self._cost.predict_s,
            max_delay_s=options.max_queue_delay_s,
            on_depth=lambda rows: None if withdrawn.is_set() else observer.queue_rows(manifest.name, rows),
        )
        engines, self._company = selected.streams, Company(selected.engine) if selected.streams else None
        places = devices[:1] * len(engines)
        if not engines:
            places = [device for device in devices for _ in range(max(1, options.instances))]
            engines = [selected.engine, *self._further(places[1:], selected)]
        self.model = LoadedModel(
            manifest,
            package.labels,
            engine=replace(selected.engine.info, device=_together(engines)),
            choice=selected.choice,
            cost=self._cost,
            dispatcher=LocalDispatcher(self._batcher, observer.origin),
            instances=len(engines),
            feature_dim=min(map(feature_dim, (selected.engine, *engines))),
            exact_images=options.exact_images,
        )
        self._keepers: list[InstanceKeeper] = []
        try:
            for engine, place in zip(engines, places, strict=True):
                self._keepers.append(
                    InstanceKeeper(
                        manifest.name,
                        partial(self._build, selected.choice.engine, len(selected.streams), place),
                        self._instance(engine),
                        self._cost,
                        options.supervision,
                        on_change=self._announce,
                    )
                )
        except BaseException:
            for engine in engines[len(self._keepers) + 1 :]:  # the one that found no thread is closed
                engine.close()
            withdrawn.set()  # telemetry has not heard of this version
            self.close(options.drain_s)
            raise
        self._say_what_serves(selected)

    @property
    def queue_rows(self) -> int:
        """Rows that wait for an engine."""
        return self._batcher.pending_rows

    @property
    def unready_reason(self) -> str | None:
        """Why no engine instance can answer now; None when one can."""
        reasons = [keeper.reason for keeper in self._keepers]
        return None if None in reasons else next(iter(reasons), "it is being unloaded")

    @property
    def hopeless(self) -> bool:
        """Only a restart of the process would help."""
        return any(keeper.hopeless for keeper in self._keepers)

    def check(self) -> None:
        """The supervisor's look at every instance."""
        for keeper in self._keepers:
            keeper.check()

    def announce_ready(self) -> None:
        """Tell telemetry that this version now answers under its name."""
        model = self.model
        self._observer.expect_model(model.manifest.task, model.name)
        self._observer.engine_info(
            model.name, model.version, model.engine.name, model.engine.precision, model.engine.device
        )
        for rows, seconds in zip(model.curve.rows, model.curve.seconds, strict=True):
            self._observer.batch_cost(model.name, rows, seconds)
        self._announce()
        self._observer.queue_rows(model.name, self.queue_rows)  # not what the version before had when it was withdrawn

    def withdraw(self) -> None:
        """Requests are led elsewhere from now on; telemetry is told, and nothing of this version after that."""
        with self._telling:
            if not self._withdrawn.is_set():
                self._withdrawn.set()
                self._observer.version_gone(self.model.name, self.model.version)

    def close(self, timeout_s: float) -> bool:
        """Wait until no request uses the model, then end its engines and give their memory back.

        Returns:
            False when requests or an engine were still busy after `timeout_s`; they are not waited for any more.
        """
        end = time.monotonic() + timeout_s
        idle = self.model.wait_idle(timeout_s)
        self.withdraw()
        self._batcher.close()
        for keeper in self._keepers:
            keeper.stop()
        ended = [keeper.join(max(0.0, end - time.monotonic())) for keeper in self._keepers]
        # They refer to this object: left together, the two would wait for the garbage collector, which never looks at
        # what was frozen after the start.
        self._keepers = []
        if self._company is not None:
            self._company.close()
        return idle and all(ended)

    def _announce(self) -> None:
        with self._telling:
            if not self._withdrawn.is_set():
                self._observer.model_ready(self.model.name, self.model.version, self.unready_reason is None)

    def _further(self, places: list[EngineOptions], selected: Selected) -> list[Engine]:
        """An engine like the selected one, warm as that is, which shares nothing with it, for each place."""
        engines: list[Engine] = []
        try:
            for place in places:
                engines.append(self._warm(build_engine(self.package, selected.choice.engine, place)))
        except BaseException:
            for engine in (selected.engine, *engines):
                engine.close()
            raise
        return engines

    def _build(self, engine_name: str, streams: int, place: EngineOptions) -> Instance:
        """A successor of a lost instance. One of streams gets a compiled model of its own: the lost one may still hang
        in that of the others.
        """
        if streams:
            engine, *spare = build_streams(self.package, engine_name, place, streams)
            for each in spare:
                each.close()
        else:
            engine = build_engine(self.package, engine_name, place)
        return self._instance(self._warm(engine))

    def _warm(self, engine: Engine) -> Engine:
        """The engine, warm; closed where that fails."""
        try:
            warm_up(engine, self._cost.curve, sample_of(self.package, engine))
        except BaseException:
            engine.close()
            raise
        return engine

    def _instance(self, engine: Engine) -> Instance:
        return Instance(
            self.package.manifest.name,
            engine,
            self._batcher,
            self._cost,
            self._observer,
            prove=lambda suspect: prove(suspect, self.package),
            company=self._company,
        )

    def _say_what_serves(self, selected: Selected) -> None:
        manifest, info = self.package.manifest, selected.engine.info
        log = logger.info
        if info.name == "noop":
            log = logger.warning
        log(
            "%s version %d: %s %s on %s, %s; batches of %d, %.3g ms each%s%s%s",
            manifest.name,
            manifest.version,
            info.name,
            info.precision,
            info.device,
            selected.choice.reason,
            selected.curve.useful_rows,
            selected.curve.batch_s(selected.curve.useful_rows) * 1e3,
            f", {self.model.instances} side by side" if self.model.instances > 1 else "",
            "; THE WEIGHTS ARE RANDOM, the answers mean nothing" if manifest.random_weights else "",
            f"; {info.detail}",
        )


def _together(engines: list[Engine]) -> str:
    """Where engines run: each device once, as settings name them."""
    return ",".join(dict.fromkeys(engine.info.device for engine in engines))
