"""Chooses the engine of a package: the fastest one that agrees with the golden sample."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from app.engines.base import Engine, Graph
from app.engines.cpus import machine_id
from app.engines.factory import (
    EngineOptions,
    can_stream,
    candidates,
    create_engine,
    create_streams,
    engine_identity,
    engine_threads,
)
from app.errors import EngineError, EngineUnavailable, HieraError, PackageError
from app.repository.store import GRAPH, Package
from app.serving.curve import WORTHWHILE_GAIN, BatchCurve, GreyRows, Sample, measure_curve, time_one_row, warm_up
from app.serving.golden import GoldenSample, check_golden
from app.serving.measured import Measured, MeasuredStore
from app.serving.model import EngineChoice, EngineTrial
from app.serving.quiet import Quiet

logger = logging.getLogger(__name__)

# Rounds of the race: at least so many, and more of a quick model until so many seconds have passed.
_MIN_ROUNDS = 3
_MAX_ROUNDS = 30
_RACE_S = 0.3
# One row that is so much quicker than it was at the kept measurement says that something disturbed that.
_DISTURBED = 0.5
_quiet = Quiet()


@dataclass(frozen=True)
class Selected:
    """An engine that passed the golden check, what that said in words, and why it was chosen.

    Attributes:
        streams: engines of its kind that share its cores under load, proven too; empty where it works alone.
        curve: the cost of a batch on one of the streams while all run, or else on the engine.
    """

    engine: Engine
    streams: list[Engine]
    golden: str
    curve: BatchCurve
    choice: EngineChoice


def load_engine(package: Package, name: str, options: EngineOptions) -> Engine:
    """Load a package into one engine, proven by nothing yet. Raises EngineUnavailable or PackageError."""
    return create_engine(name, _graph(package), options)


def load_streams(package: Package, name: str, options: EngineOptions, count: int) -> list[Engine]:
    """The same for engines that share a model and the cores (`create_streams`)."""
    return create_streams(name, _graph(package), options, count)


def _graph(package: Package) -> Graph:
    manifest = package.manifest
    return Graph(package.graph, manifest.row_shape, manifest.num_classes, manifest.precision)


def build_engine(package: Package, name: str, options: EngineOptions) -> Engine:
    """Load a package into one engine, proven by its golden sample.

    Raises:
        EngineUnavailable: the engine cannot be had here.
        PackageError: the engine cannot load the graph, or disagrees with the reference.
        EngineError: it failed on the golden rows.
    """
    return _build_proven(package, name, options)[0]


def _build_proven(package: Package, name: str, options: EngineOptions) -> tuple[Engine, str]:
    """An engine, and in words how well it agrees with the reference."""
    engine = load_engine(package, name, options)
    try:
        return engine, prove(engine, package)
    except BaseException:
        engine.close()
        raise


def prove(engine: Engine, package: Package) -> str:
    """Check an engine with the golden sample; a no-op engine has nothing to prove.

    Returns:
        How close it came, in words.

    Raises:
        PackageError, EngineError: it is out of tolerance, or failed.
    """
    if engine.info.name == "noop":
        return "not checked: no model is run"
    report = check_golden(engine, package.golden, package.manifest.precision)
    return (
        f"passed the golden check: probabilities within {report.max_abs_probability:.2g}, "
        f"log-probabilities within {report.max_log_ratio:.2g} of their spread"
    )


def sample_of(package: Package, engine: Engine) -> Sample:
    """What an engine is measured and warmed up on: the golden rows, or any for a no-op engine, which runs no model."""
    return GreyRows() if engine.info.name == "noop" else GoldenSample(package.golden, package.manifest.precision)


def build_streams(package: Package, name: str, options: EngineOptions, count: int) -> list[Engine]:
    """Load a package into engines that share a model and the cores, each proven.

    Raises:
        EngineUnavailable, PackageError, EngineError: as `build_engine`.
    """
    streams = load_streams(package, name, options, count)
    try:
        _side_by_side(lambda stream: prove(stream, package), streams)
    except BaseException:
        _close(streams)
        raise
    return streams


def select_engine(
    package: Package, options: EngineOptions, store: MeasuredStore, *, budget_s: float, streams: int = 1
) -> Selected:
    """Build, prove, time and choose.

    Args:
        streams: engines that share the cores; 1 forbids it, 0 takes what does most. Only for engines that can.
        store: what was measured before; read first, and written after a new measurement.
        budget_s: seconds that the batch curve may take to measure.

    Raises:
        EngineUnavailable: no engine can be had.
        PackageError: no engine agrees with the golden sample; the message says what each did.
    """
    names = candidates(options)
    key = _key(package, options, names, streams)
    kept = store.read(key)
    if kept is not None and kept.engine in names:
        selected = _as_before(package, kept, options)
        if selected is not None:
            return selected
    with _quiet.busy():
        passed, details = _build_all(package, names, options)
    try:
        with _quiet.measuring():
            seconds = _race(passed, package) if len(passed) > 1 else {}
            best, curve = _measure_fastest(package, passed, seconds, details, budget_s)
    except BaseException:
        _close(passed.values())
        raise
    engine = passed.pop(best)
    _close(passed.values())
    shared, curve = _find_streams(package, best, options, curve, streams, budget_s)
    trials = tuple(EngineTrial(name, seconds.get(name), details[name]) for name in names)
    store.write(key, Measured(best, trials, len(shared), curve))
    return Selected(engine, shared, details[best], curve, _choice(best, trials, options, before=False))


def _measure_fastest(
    package: Package, passed: dict[str, Engine], seconds: dict[str, float], details: dict[str, str], budget_s: float
) -> tuple[str, BatchCurve]:
    """The fastest engine that agrees with the golden sample at every batch size, and its curve.

    One that does not leaves `passed`, and `details` says why. Raises PackageError where that is the last one.
    """
    while True:
        name = min(passed, key=lambda each: seconds.get(each, 0.0))
        try:
            engine = passed[name]
            return name, measure_curve([engine], budget_s=budget_s, sample=sample_of(package, engine))
        except PackageError as error:
            logger.warning("%s: %s is not used: %s", package.manifest.name, name, error)
            details[name] = str(error)
            if len(passed) == 1:
                raise PackageError("; ".join(details.values())) from error
            passed.pop(name).close()
            seconds.pop(name, None)


def _find_streams(
    package: Package, name: str, options: EngineOptions, whole: BatchCurve, wanted: int, budget_s: float
) -> tuple[list[Engine], BatchCurve]:
    """The streams that do most together, and the curve of one; none, and `whole`, where they do less than the whole.

    Twice as many are tried as long as it gains something. At the first step any gain will do: under load the whole
    loses more by waiting at its layers' ends than it does here.
    """
    best: list[Engine] = []
    curve, rate = whole, whole.rows_per_s
    for count in _stream_counts(name, options, wanted):
        try:
            with _quiet.busy():
                streams = build_streams(package, name, options, count)
            try:
                with _quiet.measuring():
                    measured = measure_curve(streams, budget_s=budget_s, sample=sample_of(package, streams[0]))
            except BaseException:
                _close(streams)
                raise
        except HieraError as error:
            logger.warning("%s: %d streams are not used: %s", package.manifest.name, count, error)
            break
        if not wanted and count * measured.rows_per_s < rate * (1 + WORTHWHILE_GAIN if best else 1):
            _close(streams)
            break
        _close(best)
        best, curve, rate = streams, measured, count * measured.rows_per_s
    return best, curve


def _stream_counts(name: str, options: EngineOptions, wanted: int) -> list[int]:
    if wanted == 1 or not can_stream(name):
        return []
    return [wanted] if wanted else [2**power for power in range(1, engine_threads(options).bit_length())]


def _side_by_side(work: Callable[[Engine], object], streams: Sequence[Engine]) -> None:
    """Do `work` with all streams at once, each of which has cores of its own; raises what the first to fail raised."""
    if streams:
        with ThreadPoolExecutor(len(streams)) as pool:
            for done in [pool.submit(work, stream) for stream in streams]:
                done.result()


def _close(engines: Iterable[Engine]) -> None:
    for engine in engines:
        engine.close()


def _as_before(package: Package, kept: Measured, options: EngineOptions) -> Selected | None:
    """The engine and the curve of an earlier start; None when either can no longer be trusted."""
    name = package.manifest.name
    engines: list[Engine] = []
    try:
        with _quiet.busy():
            engine, golden = _build_proven(package, kept.engine, options)
            engines.append(engine)
            if kept.streams:
                engines += build_streams(package, kept.engine, options, kept.streams)
            streams = engines[1:]
            sample = sample_of(package, engine)
            warm_up(engine, kept.curve, sample)
            _side_by_side(lambda stream: warm_up(stream, kept.curve, sample), streams)
        disturbed = time_one_row(streams or engines) < kept.curve.seconds[0] * _DISTURBED
    except HieraError as error:
        logger.warning("%s: %s no longer works, choosing again (%s)", name, kept.engine, error)
        _close(engines)
        return None
    if disturbed:
        logger.info("%s: something disturbed the measurement of an earlier start, measuring again", name)
        _close(engines)
        return None
    return Selected(engine, streams, golden, kept.curve, _choice(kept.engine, kept.trials, options, before=True))


def _build_all(package: Package, names: list[str], options: EngineOptions) -> tuple[dict[str, Engine], dict[str, str]]:
    """The engines that pass the golden check, and what each did.

    Raises:
        PackageError: none passes.
        EngineUnavailable: none can be had, which is no fault of the package.
    """
    passed: dict[str, Engine] = {}
    details: dict[str, str] = {}
    refused = False
    for name in names:
        try:
            passed[name], details[name] = _build_proven(package, name, options)
        except (EngineUnavailable, PackageError, EngineError) as error:
            logger.warning("%s: %s is not used: %s", package.manifest.name, name, error)
            details[name] = str(error)
            refused = refused or not isinstance(error, EngineUnavailable)
    if not passed:
        raise (PackageError if refused else EngineUnavailable)("; ".join(details.values()))
    return passed, details


def _race(engines: dict[str, Engine], package: Package) -> dict[str, float]:
    """Seconds of one row on each engine, the fastest of some runs; in turns, so that other load hits all alike."""
    row = package.golden.rows[:1].copy()
    fastest = dict.fromkeys(engines, float("inf"))
    start = time.perf_counter()
    for rounds in range(_MAX_ROUNDS):
        if rounds >= _MIN_ROUNDS and time.perf_counter() - start > _RACE_S:
            break
        for name, engine in engines.items():
            begin = time.perf_counter()
            engine.run(row)
            fastest[name] = min(fastest[name], time.perf_counter() - begin)
    return fastest


def _choice(name: str, trials: tuple[EngineTrial, ...], options: EngineOptions, *, before: bool) -> EngineChoice:
    timed = sorted((trial.seconds, trial.engine) for trial in trials if trial.seconds is not None)
    if options.name != "auto":
        reason = f"set by HIERA_ENGINE={options.name}"
    elif timed:
        figures = ", ".join(f"{engine} {seconds * 1e3:.3g} ms" for seconds, engine in timed)
        earlier = " (measured at an earlier start)" if before else ""
        reason = f"fastest for one row that passes the golden check: {figures}{earlier}"
    else:
        reason = "the only engine here that passes the golden check"
    return EngineChoice(name, reason, trials)


def _key(package: Package, options: EngineOptions, names: list[str], streams: int) -> tuple[str, ...]:
    return (
        package.manifest.files[GRAPH],
        machine_id(),
        *(engine_identity(name, package.graph, options) for name in names),
        f"{options.name} {options.precision} {options.device} threads={options.threads} max_batch={options.max_batch}"
        f" streams={streams}",
    )
