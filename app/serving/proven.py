"""Engines of a package, proven by its golden sample: one alone, or several that share its model and the cores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from app.engines.base import Engine, Graph, SharedEngine
from app.engines.close_calls import CloseCalls, first_look
from app.engines.factory import EngineOptions, create_engine, create_streams
from app.errors import EngineUnavailable
from app.repository.store import Package
from app.serving.curve import GreyRows, Sample
from app.serving.golden import GoldenReport, GoldenSample, check_golden

_T = TypeVar("_T")


def load_engine(package: Package, name: str, options: EngineOptions) -> Engine:
    """Load a package into one engine, proven by nothing yet. Raises EngineUnavailable or PackageError."""
    return create_engine(name, _graph(package), options)


def load_streams(package: Package, name: str, options: EngineOptions, count: int) -> list[Engine]:
    """The same for engines that share a model and the cores (`create_streams`)."""
    return create_streams(name, _graph(package), options, count)


def _graph(package: Package) -> Graph:
    manifest = package.manifest
    return Graph(package.graph, manifest.row_shape, manifest.num_classes, manifest.precision, package.fingerprint)


def build_engine(package: Package, name: str, options: EngineOptions) -> Engine:
    """Load a package into one engine, proven by its golden sample.

    One that computes in bf16 because "auto" lets it, though the package holds more, has its close calls decided in fp32
    (`CloseCalls`).

    Raises:
        EngineUnavailable: the engine cannot be had here.
        PackageError: the engine cannot load the graph, or disagrees with the reference.
        EngineError: it failed on the golden rows.
    """
    return build_proven(package, name, options)[0]


def build_proven(package: Package, name: str, options: EngineOptions) -> tuple[Engine, str]:
    """An engine, and in words how well it agrees with the reference."""
    engine = load_engine(package, name, options)
    try:
        report = prove(engine, package)
        return _deciding(engine, report, package, name, options), _in_words(report)
    except BaseException:
        engine.close()
        raise


def prove(engine: Engine, package: Package) -> GoldenReport | None:
    """Check an engine with the golden sample, and what decides its close calls too.

    Returns:
        How close it came; None for a no-op engine, which has nothing to prove.

    Raises:
        PackageError, EngineError: it is out of tolerance, or failed.
    """
    if engine.info.name == "noop":
        return None
    if isinstance(engine, CloseCalls):
        prove(engine.exact, package)
    return check_golden(first_look(engine), package.golden, package.manifest.precision)


def _in_words(report: GoldenReport | None) -> str:
    if report is None:
        return "not checked: no model is run"
    return (
        f"passed the golden check: probabilities within {report.max_abs_probability:.2g}, "
        f"log-probabilities within {report.max_log_ratio:.2g} of their spread"
    )


def _deciding(
    engine: Engine, report: GoldenReport | None, package: Package, name: str, options: EngineOptions
) -> Engine:
    """A proven engine, with an exact one for its close calls where it has any."""
    lowered = engine.info.precision == "bf16" != package.manifest.precision
    if report is None or not lowered or options.precision != "auto":
        return engine
    exact = load_engine(package, name, replace(options, precision="fp32", max_batch=1))
    try:
        if not isinstance(exact, SharedEngine):
            raise EngineUnavailable(f"{name} has no model to share for what it can hardly decide")
        prove(exact, package)
        return CloseCalls(engine, exact, report.margin)
    except BaseException:
        exact.close()
        raise


def sample_of(package: Package, engine: Engine) -> Sample:
    """What an engine is measured and warmed up on: the golden rows, or any for a no-op engine, which runs no model."""
    return GreyRows() if engine.info.name == "noop" else GoldenSample(package.golden, package.manifest.precision)


def build_streams(
    package: Package, name: str, options: EngineOptions, count: int, beside: Engine | None = None
) -> list[Engine]:
    """Load a package into engines that share a model and the cores, each proven.

    Args:
        beside: an engine of the same model, whose exact one decides the streams' close calls too.

    Raises:
        EngineUnavailable, PackageError, EngineError: as `build_engine`.
    """
    streams = load_streams(package, name, options, count)
    try:
        reports = side_by_side(lambda stream: prove(stream, package), streams)
        if not isinstance(beside, CloseCalls):
            beside = streams[0] = _deciding(streams[0], reports[0], package, name, options)
        if isinstance(beside, CloseCalls):
            streams = [each if each is beside else beside.beside(each) for each in streams]
    except BaseException:
        close_all(streams)
        raise
    return streams


def side_by_side(work: Callable[[Engine], _T], streams: Sequence[Engine]) -> list[_T]:
    """Do `work` with all streams at once, each of which has cores of its own; raises what the first to fail raised."""
    if not streams:
        return []
    with ThreadPoolExecutor(len(streams)) as pool:
        return [done.result() for done in [pool.submit(work, stream) for stream in streams]]


def close_all(engines: Iterable[Engine]) -> None:
    """Give back the memory of each."""
    for engine in engines:
        engine.close()
