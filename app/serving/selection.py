"""Chooses the engine of a package: the fastest one that agrees with the golden sample."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from app.engines.base import Engine
from app.engines.close_calls import first_look
from app.engines.cpus import machine_id
from app.engines.factory import EngineOptions, can_stream, candidates, engine_identity, engine_threads
from app.errors import EngineError, EngineUnavailable, HieraError, PackageError
from app.repository.store import GRAPH, Package
from app.serving.curve import WORTHWHILE_GAIN, BatchCurve, measure_curve, time_one_row, warm_up
from app.serving.measured import Measured, MeasuredStore
from app.serving.model import EngineChoice, EngineTrial
from app.serving.proven import build_proven, build_streams, close_all, sample_of, side_by_side
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
        close_all(passed.values())
        raise
    engine = passed.pop(best)
    close_all(passed.values())
    shared, curve = _find_streams(package, best, options, engine, curve, streams, budget_s)
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
            return name, measure_curve([first_look(engine)], budget_s=budget_s, sample=sample_of(package, engine))
        except PackageError as error:
            logger.warning("%s: %s is not used: %s", package.manifest.name, name, error)
            details[name] = str(error)
            if len(passed) == 1:
                raise PackageError("; ".join(details.values())) from error
            passed.pop(name).close()
            seconds.pop(name, None)


def _find_streams(
    package: Package,
    name: str,
    options: EngineOptions,
    engine: Engine,
    whole: BatchCurve,
    wanted: int,
    budget_s: float,
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
                streams = build_streams(package, name, options, count, beside=engine)
            try:
                with _quiet.measuring():
                    measured = measure_curve(
                        [first_look(stream) for stream in streams],
                        budget_s=budget_s,
                        sample=sample_of(package, streams[0]),
                    )
            except BaseException:
                close_all(streams)
                raise
        except HieraError as error:
            logger.warning("%s: %d streams are not used: %s", package.manifest.name, count, error)
            break
        if not wanted and count * measured.rows_per_s < rate * (1 + WORTHWHILE_GAIN if best else 1):
            close_all(streams)
            break
        close_all(best)
        best, curve, rate = streams, measured, count * measured.rows_per_s
    return best, curve


def _stream_counts(name: str, options: EngineOptions, wanted: int) -> list[int]:
    if wanted == 1 or not can_stream(name):
        return []
    return [wanted] if wanted else [2**power for power in range(1, engine_threads(options).bit_length())]


def _as_before(package: Package, kept: Measured, options: EngineOptions) -> Selected | None:
    """The engine and the curve of an earlier start; None when either can no longer be trusted."""
    name = package.manifest.name
    engines: list[Engine] = []
    try:
        with _quiet.busy():
            engine, golden = build_proven(package, kept.engine, options)
            engines.append(engine)
            if kept.streams:
                engines += build_streams(package, kept.engine, options, kept.streams, beside=engine)
            streams = engines[1:]
            sample = sample_of(package, engine)
            warm_up(engine, kept.curve, sample)
            side_by_side(lambda stream: warm_up(stream, kept.curve, sample), streams)
        disturbed = time_one_row([first_look(each) for each in streams or engines]) < kept.curve.seconds[0] * _DISTURBED
    except HieraError as error:
        logger.warning("%s: %s no longer works, choosing again (%s)", name, kept.engine, error)
        close_all(engines)
        return None
    if disturbed:
        logger.info("%s: something disturbed the measurement of an earlier start, measuring again", name)
        close_all(engines)
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
            passed[name], details[name] = build_proven(package, name, options)
        except (EngineUnavailable, PackageError, EngineError) as error:
            logger.warning("%s: %s is not used: %s", package.manifest.name, name, error)
            # Others' words may name what is inside; whoever lists the models reads these.
            details[name] = f"{name} failed; the log says how" if isinstance(error, EngineError) else str(error)
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
            first_look(engine).run(row)
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
