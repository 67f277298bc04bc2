"""Engines that compute in less than their package's precision, and what decides their close calls. The packages and
the engines are real, but that one may say of itself that it computes in bf16."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from app.engines.base import Engine, Graph, Probabilities, Rows
from app.engines.close_calls import CloseCalls
from app.engines.cpus import available_cpus
from app.engines.factory import EngineOptions, EnginePrecision, create_engine, create_streams
from app.engines.openvino import OpenVinoEngine, cpu_precision
from app.errors import EngineUnavailable, PackageError
from app.repository.store import Package, discover, open_package
from app.serving import proven, selection
from app.serving.curve import BatchCurve, GreyRows, time_one_row
from app.serving.golden import GoldenSample
from app.serving.measured import MeasuredStore
from app.serving.proven import build_engine, build_proven, build_streams, prove, sample_of
from app.serving.selection import select_engine

MakePackage = Callable[..., Path]

AUTO = EngineOptions(name="openvino", precision="auto", threads=1, max_batch=4)


class Noted:
    """A real engine in fp32 that calls itself what it was asked to be, counts its rows, and may be off."""

    off_in: ClassVar[dict[str, float]] = {}

    def __init__(self, inner: Engine, precision: str) -> None:
        self.inner = inner
        self.info = replace(inner.info, precision=precision)
        self.row_shape, self.classes, self.max_batch = inner.row_shape, inner.classes, inner.max_batch
        self.off = self.off_in.get(precision, 0.0)
        self.rows = 0
        self.closed = 0
        self.twins: list[Noted] = []

    def empty_rows(self, n: int) -> Rows:
        return self.inner.empty_rows(n)

    def run(self, rows: Rows) -> Probabilities:
        self.rows += len(rows)
        answers = self.inner.run(rows)
        answers[:, 0] *= np.exp(self.off)
        answers /= answers.sum(axis=1, keepdims=True)
        return answers

    def twin(self) -> Noted:
        assert isinstance(self.inner, OpenVinoEngine)
        self.twins.append(Noted(self.inner.twin(), self.info.precision))
        return self.twins[-1]

    def close(self) -> None:
        self.closed += 1
        self.inner.close()


@pytest.fixture
def package(make_package: MakePackage) -> Package:
    return open_package(discover(make_package("colours"))[0])


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Noted]:
    """Every engine that is made, in order. One that may choose is "in bf16"."""
    engines: list[Noted] = []

    def note(inner: Engine, options: EngineOptions) -> Noted:
        engines.append(Noted(inner, "bf16" if options.precision == "auto" else options.precision))
        return engines[-1]

    def widened(graph: Graph) -> Graph:
        return replace(graph, precision="fp32")  # what it really is in

    def create(name: str, graph: Graph, options: EngineOptions) -> Engine:
        return note(create_engine(name, widened(graph), replace(options, precision="fp32")), options)

    def create_many(name: str, graph: Graph, options: EngineOptions, count: int) -> list[Engine]:
        streams = create_streams(name, widened(graph), replace(options, precision="fp32"), count)
        return [note(each, options) for each in streams]

    monkeypatch.setattr(proven, "create_engine", create)
    monkeypatch.setattr(proven, "create_streams", create_many)
    return engines


def test_an_engine_that_lowers_the_package_s_precision_by_itself_has_its_close_calls_decided_in_that(
    package: Package, made: list[Noted]
) -> None:
    engine = build_engine(package, "openvino", AUTO)
    assert isinstance(engine, CloseCalls)
    quick, exact = made
    assert (engine.quick, engine.exact) == (quick, exact)
    assert (quick.info.precision, exact.info.precision) == ("bf16", "fp32")
    assert (quick.max_batch, exact.max_batch) == (4, 1)
    assert exact.rows >= len(package.golden.rows), "it is proven, too"
    engine.close()
    assert [each.closed for each in made] == [1, 1]


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_an_engine_that_computes_in_what_was_asked_for_decides_alone(
    package: Package, made: list[Noted], precision: Any
) -> None:
    engine = build_engine(package, "openvino", replace(AUTO, precision=precision))
    assert [engine] == made
    engine.close()


@pytest.mark.parametrize(("precision", "engines"), [("bf16", 1), ("fp16", 2)])
def test_a_package_in_bf16_has_nothing_more_exact_and_one_in_fp16_has(
    package: Package, made: list[Noted], precision: str, engines: int
) -> None:
    lower = replace(package, manifest=package.manifest.model_copy(update={"precision": precision}))
    engine = build_engine(lower, "openvino", AUTO)
    assert len(made) == engines
    assert isinstance(engine, CloseCalls) is (engines == 2)
    engine.close()


@pytest.mark.parametrize(("off", "margin"), [(0.0, 0.3), (0.05, 0.3), (0.15, 0.36)])
def test_the_margin_grows_with_what_the_golden_rows_show(
    package: Package, made: list[Noted], monkeypatch: pytest.MonkeyPatch, off: float, margin: float
) -> None:
    monkeypatch.setattr(Noted, "off_in", {"bf16": off})
    engine = build_engine(package, "openvino", AUTO)
    assert isinstance(engine, CloseCalls)
    # One class of five is off: its root mean square, less the mean, is off * sqrt(1/5 * 4/5), of which six count.
    assert engine.margin == pytest.approx(margin, abs=0.01)
    engine.close()


def test_an_exact_engine_that_is_wrong_has_the_package_refused_and_all_closed(
    package: Package, made: list[Noted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Noted, "off_in", {"fp32": 0.5})
    with pytest.raises(PackageError, match=r"openvino \(fp32\) disagrees"):
        build_engine(package, "openvino", AUTO)
    assert [each.closed for each in made] == [1, 1]


def test_an_engine_whose_model_cannot_be_shared_is_not_to_be_had(
    package: Package, made: list[Noted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Noted, "twin")
    with pytest.raises(EngineUnavailable, match="no model to share"):
        build_engine(package, "openvino", AUTO)
    assert [each.closed for each in made] == [1, 1]


def test_both_are_proven_when_the_engine_is_suspected(package: Package, made: list[Noted]) -> None:
    engine = build_engine(package, "openvino", AUTO)
    prove(engine, package)
    quick, exact = made
    quick.off = 2.0
    with pytest.raises(PackageError, match=r"\(bf16\) disagrees"):
        prove(engine, package)
    quick.off, exact.off = 0.0, 2.0
    with pytest.raises(PackageError, match=r"\(fp32\) disagrees"):
        prove(engine, package)
    engine.close()


def test_streams_share_the_exact_model_of_the_engine_that_they_stand_beside(
    package: Package, made: list[Noted]
) -> None:
    whole = build_engine(package, "openvino", AUTO)
    streams = build_streams(package, "openvino", AUTO, 2, beside=whole)
    _, exact, *quick = made
    assert len(exact.twins) == len(quick) == 2
    for stream, own, twin in zip(streams, quick, exact.twins, strict=True):
        assert isinstance(stream, CloseCalls)
        assert (stream.quick, stream.exact) == (own, twin)
    for engine in (whole, *streams):
        engine.close()
    assert [each.closed for each in (*made, *exact.twins)] == [1] * 6


def test_streams_alone_share_one_of_their_own(package: Package, made: list[Noted]) -> None:
    streams = build_streams(package, "openvino", AUTO, 2)
    first, second, exact = made
    assert [stream.quick for stream in streams if isinstance(stream, CloseCalls)] == [first, second]
    assert [stream.exact for stream in streams if isinstance(stream, CloseCalls)] == [exact, *exact.twins]
    for stream in streams:
        stream.close()
    assert [each.closed for each in (*made, *exact.twins)] == [1] * 4


def test_engines_are_raced_and_batches_timed_without_the_close_calls(
    package: Package, made: list[Noted], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The golden rows may hold more of them than photos do; what they cost is learned while serving."""
    monkeypatch.setattr(CloseCalls, "run", lambda self, rows: pytest.fail("close calls were decided"))
    selected = select_engine(package, replace(AUTO, name="auto"), MeasuredStore(None), budget_s=0.05)
    assert isinstance(selected.engine, CloseCalls)
    assert [trial.seconds is not None for trial in selected.choice.trials] == [True, True]
    selected.engine.close()


def test_streams_are_timed_alike_and_share_the_exact_model_now_and_at_the_next_start(
    package: Package, made: list[Noted], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[Engine] = []

    def note_timed(engines: Sequence[Engine]) -> float:
        timed.extend(engines)
        return time_one_row(engines)

    monkeypatch.setattr(selection, "time_one_row", note_timed)
    curves: list[BatchCurve] = []
    for _ in range(2):
        made.clear()
        with pytest.MonkeyPatch.context() as patch:
            if not curves:
                patch.setattr(CloseCalls, "run", lambda self, rows: pytest.fail("close calls were decided"))
            selected = select_engine(package, AUTO, MeasuredStore(tmp_path), budget_s=0.05, streams=2)
        curves.append(selected.curve)
        assert [each.info.precision for each in made] == ["bf16", "fp32", "bf16", "bf16"]
        exact = made[1]
        assert [stream.exact for stream in selected.streams if isinstance(stream, CloseCalls)] == exact.twins
        assert len(exact.twins) == 2
        for engine in (selected.engine, *selected.streams):
            engine.close()
    assert curves[0] == curves[1]
    assert timed == made[2:]  # the second start looks whether the first was disturbed


@pytest.mark.skipif(cpu_precision("fp32", "auto") != "bf16", reason="this CPU has no instructions for bfloat16")
def test_in_real_bf16_every_row_gets_the_class_that_fp32_names(package: Package) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (2000, 1, 1, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    options = replace(AUTO, threads=available_cpus(), max_batch=1000)
    answers: dict[str, list[int]] = {}
    precisions: tuple[EnginePrecision, ...] = ("auto", "bf16", "fp32")
    for precision in precisions:
        engine = build_engine(package, "openvino", replace(options, precision=precision))
        answers[precision] = [int(best) for at in (0, 1000) for best in engine.run(rows[at : at + 1000]).argmax(axis=1)]
        engine.close()
    assert answers["auto"] == answers["fp32"] != answers["bf16"]


def test_the_quick_engine_is_proven_without_the_help_of_the_exact_one(package: Package, made: list[Noted]) -> None:
    built = build_engine(package, "openvino", AUTO)
    assert isinstance(built, CloseCalls)
    helped = CloseCalls(built.quick, built.exact, margin=100.0)  # every row is a close call
    prove(helped, package)
    made[0].off = 1.0
    with pytest.raises(PackageError, match="disagrees with the reference"):
        prove(helped, package)
    built.close()


def test_a_no_op_engine_has_nothing_to_prove_and_runs_on_any_rows(package: Package) -> None:
    options = EngineOptions(name="noop", max_batch=4)
    engine, words = build_proven(package, "noop", options)
    assert prove(engine, package) is None
    assert words == "not checked: no model is run"
    assert isinstance(sample_of(package, engine), GreyRows)
    real = build_engine(package, "onnxruntime", EngineOptions(name="onnxruntime", threads=1))
    assert isinstance(sample_of(package, real), GoldenSample)
    real.close()


def test_engines_are_told_which_package_a_graph_is_of(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the path, which the next package may have too."""
    seen: list[Graph] = []

    def create(name: str, graph: Graph, options: EngineOptions) -> Engine:
        seen.append(graph)
        return create_engine(name, graph, options)

    monkeypatch.setattr(proven, "create_engine", create)
    build_engine(package, "noop", EngineOptions(name="noop"))
    assert package.fingerprint
    assert seen == [Graph(package.graph, (8, 8, 3), 5, "fp32", package.fingerprint)]
