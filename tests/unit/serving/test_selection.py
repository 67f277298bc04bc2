"""How `engine=auto` decides, over real packages and real engines; only their speed is steered."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.engines.base import Engine, Probabilities, Rows
from app.engines.factory import EngineOptions, create_engine
from app.errors import EngineError, EngineUnavailable, PackageError
from app.repository.store import Package, discover, open_package
from app.serving import proven, selection
from app.serving.measured import MeasuredStore
from app.serving.selection import Selected, select_engine

MakePackage = Callable[..., Path]


class Slowed:
    """A real engine that takes longer."""

    def __init__(self, inner: Engine, seconds: float) -> None:
        self.info, self.row_shape, self.classes, self.max_batch = (
            inner.info,
            inner.row_shape,
            inner.classes,
            inner.max_batch,
        )
        self.inner = inner
        self.seconds = seconds
        self.closed = False

    def empty_rows(self, n: int) -> Rows:
        return self.inner.empty_rows(n)

    def run(self, rows: Rows) -> Probabilities:
        time.sleep(self.seconds)
        return self.inner.run(rows)

    def close(self) -> None:
        self.closed = True
        self.inner.close()


class Wrong(Slowed):
    """Fast, and always of another opinion."""

    def run(self, rows: Rows) -> Probabilities:
        return self.inner.run(rows)[:, ::-1].copy()


class WrongInPairs(Slowed):
    """Fast, and of another opinion about batches of two alone, as an engine whose kernel for that size is broken."""

    def run(self, rows: Rows) -> Probabilities:
        answers = self.inner.run(rows)
        return answers[:, ::-1].copy() if len(rows) == 2 else answers


@pytest.fixture
def package(make_package: MakePackage) -> Package:
    return open_package(discover(make_package("colours"))[0])


Built = list[tuple[str, Engine]]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Built:
    """Every engine that is built, with OpenVINO made slow."""
    made: Built = []

    def create(name: str, *args: object) -> Engine:
        engine = Slowed(create_engine(name, *args), 0.005 if name == "openvino" else 0.0)  # type: ignore[arg-type]
        made.append((name, engine))
        return engine

    monkeypatch.setattr(proven, "create_engine", create)
    return made


OPTIONS = EngineOptions(precision="fp32", threads=1, max_batch=4)


def choose(package: Package, options: EngineOptions = OPTIONS, folder: Path | None = None) -> Selected:
    return select_engine(package, options, MeasuredStore(folder), budget_s=0.05)


def test_the_fastest_engine_that_passes_is_taken_and_the_others_are_closed(package: Package, built: Built) -> None:
    selected = choose(package)
    assert selected.choice.engine == selected.engine.info.name == "onnxruntime"
    assert "fastest" in selected.choice.reason
    assert [(trial.engine, trial.seconds is not None) for trial in selected.choice.trials] == [
        ("openvino", True),
        ("onnxruntime", True),
    ]
    assert {name: getattr(engine, "closed", None) for name, engine in built} == {"openvino": True, "onnxruntime": False}
    assert selected.curve.rows[0] == 1
    selected.engine.close()


def test_a_fast_engine_that_disagrees_with_the_golden_sample_is_not_taken(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(name: str, *args: object) -> Engine:
        inner = create_engine(name, *args)  # type: ignore[arg-type]
        return Wrong(inner, 0.0) if name == "onnxruntime" else Slowed(inner, 0.005)

    monkeypatch.setattr(proven, "create_engine", create)
    selected = choose(package)
    assert selected.choice.engine == "openvino"
    assert selected.choice.reason == "the only engine here that passes the golden check"
    refused = selected.choice.trials[1]
    assert refused.seconds is None
    assert "disagrees with the reference" in refused.detail
    selected.engine.close()


def test_an_engine_that_is_wrong_at_one_batch_size_is_not_taken(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, Slowed] = {}

    def create(name: str, *args: object) -> Engine:
        inner = create_engine(name, *args)  # type: ignore[arg-type]
        made[name] = WrongInPairs(inner, 0.0) if name == "onnxruntime" else Slowed(inner, 0.005)
        return made[name]

    monkeypatch.setattr(proven, "create_engine", create)
    assert len(package.golden.rows) not in (1, 2), "or the golden check itself would see it"
    selected = choose(package)
    assert selected.choice.engine == "openvino"
    assert "onnxruntime" not in selected.choice.reason
    refused = selected.choice.trials[1]
    assert refused.seconds is None
    assert "in a batch of 2, onnxruntime (fp32) disagrees with the reference" in refused.detail
    assert [made[name].closed for name in ("openvino", "onnxruntime")] == [False, True]
    selected.engine.close()


def test_one_engine_alone_that_is_wrong_at_one_batch_size_has_its_package_refused(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Slowed] = []

    def create(name: str, *args: object) -> Engine:
        made.append(WrongInPairs(create_engine(name, *args), 0.0))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(proven, "create_engine", create)
    with pytest.raises(PackageError, match="in a batch of 2, onnxruntime"):
        choose(package, EngineOptions("onnxruntime", threads=1, max_batch=4))
    assert [each.closed for each in made] == [True]


def test_when_no_engine_agrees_the_package_is_refused_with_every_reason_and_all_are_closed(
    make_package: MakePackage, built: Built
) -> None:
    package = open_package(discover(make_package("colours", wrong_golden=True))[0])
    with pytest.raises(PackageError, match=r"openvino .*onnxruntime "):
        choose(package)
    assert [(name, getattr(engine, "closed", None)) for name, engine in built] == [
        ("openvino", True),
        ("onnxruntime", True),
    ]


def test_what_an_engine_s_library_says_of_a_failure_is_for_the_log(
    package: Package, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever lists the models reads what each engine did."""

    class Failing(Slowed):
        def run(self, rows: Rows) -> Probabilities:
            raise EngineError("a kernel of /opt/inside fails")

    monkeypatch.setattr(proven, "create_engine", lambda *args: Failing(create_engine(*args), 0.0))
    with pytest.raises(PackageError) as refusal:
        choose(package)
    assert str(refusal.value) == "openvino failed; the log says how; onnxruntime failed; the log says how"
    assert caplog.text.count("/opt/inside") == 2


def test_an_engine_that_is_named_is_not_raced(package: Package, built: Built) -> None:
    selected = choose(package, EngineOptions(name="openvino", precision="fp32", threads=1))
    assert [name for name, _ in built] == ["openvino"]
    assert selected.choice.reason == "set by HIERA_ENGINE=openvino"
    selected.engine.close()


def test_the_next_start_takes_the_same_engine_without_measuring(package: Package, built: Built, tmp_path: Path) -> None:
    first = choose(package, folder=tmp_path / "kept")
    first.engine.close()
    built.clear()
    second = choose(package, folder=tmp_path / "kept")
    second.engine.close()
    assert [name for name, _ in built] == ["onnxruntime"]
    assert second.curve == first.curve
    assert second.choice.trials == first.choice.trials
    assert "measured at an earlier start" in second.choice.reason


def test_a_kept_measurement_that_was_disturbed_is_taken_again(package: Package, built: Built, tmp_path: Path) -> None:
    first = choose(package, folder=tmp_path / "kept")
    first.engine.close()
    (record,) = (tmp_path / "kept").iterdir()
    document = json.loads(record.read_text())
    document["curve"]["seconds"] = [seconds * 1000 for seconds in document["curve"]["seconds"]]
    record.write_text(json.dumps(document))
    built.clear()
    second = choose(package, folder=tmp_path / "kept")
    assert second.curve.seconds[0] < first.curve.seconds[0] * 500
    assert [engine for _, engine in built if not getattr(engine, "closed", None)] == [second.engine]
    second.engine.close()


@pytest.mark.parametrize("other", [{"max_batch": 2}, {"threads": 2}, {"precision": "auto"}, {"device": "cpu"}])
def test_what_was_kept_for_other_options_is_not_used(
    package: Package, built: Built, tmp_path: Path, other: dict[str, Any]
) -> None:
    choose(package, folder=tmp_path).engine.close()
    built.clear()
    choose(package, replace(OPTIONS, **other), folder=tmp_path).engine.close()
    assert len(built) >= 2


def test_what_was_kept_for_another_release_of_a_library_or_another_number_of_streams_is_not_used(
    package: Package, built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured_anew(streams: int = 1) -> bool:
        built.clear()
        select_engine(package, OPTIONS, MeasuredStore(tmp_path), budget_s=0.05, streams=streams).engine.close()
        return len(built) > 1

    assert [measured_anew(), measured_anew()] == [True, False]
    assert measured_anew(streams=2)
    monkeypatch.setattr(selection, "engine_identity", lambda name, graph, options: f"{name} 2099.1")
    assert [measured_anew(), measured_anew()] == [True, False]


def test_where_no_engine_can_be_had_the_package_is_not_to_blame(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(name: str, *args: object) -> Engine:
        raise EngineUnavailable(f"{name} is not for this machine")

    monkeypatch.setattr(proven, "create_engine", create)
    words = "openvino is not for this machine; onnxruntime is not for this machine"
    with pytest.raises(EngineUnavailable, match=words):
        choose(package)


def test_what_was_kept_for_another_graph_or_machine_is_not_used(
    make_package: MakePackage, package: Package, built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(package, folder=tmp_path / "kept").engine.close()
    other = open_package(discover(make_package("other", seed=1))[1])
    built.clear()
    choose(other, folder=tmp_path / "kept").engine.close()
    assert len(built) == 2
    monkeypatch.setattr(selection, "machine_id", lambda: "another machine")
    built.clear()
    choose(package, folder=tmp_path / "kept").engine.close()
    assert len(built) == 2


@pytest.mark.parametrize(
    "damage",
    [lambda text: text[: len(text) // 2], lambda text: text.replace('"rows"', '"columns"'), lambda text: "[]"],
)
def test_a_damaged_record_is_ignored_and_taken_again(
    package: Package, built: Built, tmp_path: Path, damage: Callable[[str], str]
) -> None:
    choose(package, folder=tmp_path / "kept").engine.close()
    (record,) = (tmp_path / "kept").iterdir()
    record.write_text(damage(record.read_text()))
    built.clear()
    choose(package, folder=tmp_path / "kept").engine.close()
    assert len(built) == 2
    assert json.loads(record.read_text())["engine"] == "onnxruntime"


def test_a_kept_engine_that_no_longer_passes_is_chosen_anew(
    package: Package, built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(package, folder=tmp_path).engine.close()

    def create(name: str, *args: object) -> Engine:
        inner = create_engine(name, *args)  # type: ignore[arg-type]
        return Wrong(inner, 0.0) if name == "onnxruntime" else inner

    monkeypatch.setattr(proven, "create_engine", create)
    selected = choose(package, folder=tmp_path)
    assert selected.choice.engine == "openvino"
    selected.engine.close()


def test_a_kept_engine_that_is_wrong_at_one_batch_size_is_chosen_anew(
    package: Package, built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(package, folder=tmp_path / "kept").engine.close()
    (record,) = (tmp_path / "kept").iterdir()
    kept = json.loads(record.read_text())
    # At such costs each size is worth its latency, and no run is so quick that the measurement was a disturbed one.
    kept |= {"engine": "onnxruntime", "curve": {"rows": [1, 2, 4], "seconds": [1e-6, 1e-6, 1e-6]}}
    record.write_text(json.dumps(kept))
    made: list[Slowed] = []

    def create(name: str, *args: object) -> Engine:
        engine = create_engine(name, *args)  # type: ignore[arg-type]
        made.append(Slowed(engine, 0.0) if made else WrongInPairs(engine, 0.0))
        return made[-1]

    monkeypatch.setattr(proven, "create_engine", create)
    selected = choose(package, folder=tmp_path / "kept")
    selected.engine.close()
    assert "earlier start" not in selected.choice.reason
    assert (len(made), made[0].closed) == (3, True)


def test_a_folder_that_cannot_be_written_stops_nothing(package: Package, built: Built, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    choose(package, folder=tmp_path / "file" / "kept").engine.close()


def test_the_noop_engine_needs_no_golden_sample(make_package: MakePackage) -> None:
    package = open_package(discover(make_package("colours", wrong_golden=True))[0])
    selected = choose(package, EngineOptions(name="noop"))
    assert selected.engine.info.name == "noop"
