"""The long look at agreement: rows from photos and rendered ones, through a real engine and through torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.engines.base import EngineInfo, Features, Probabilities, Rows
from app.engines.factory import EngineOptions
from app.repository.manifest import Precision
from app.repository.store import Package, PackagePath, open_package
from export.agreement import check_agreement, measure_agreement, open_engine, photos, rendered
from export.cli import main
from export.errors import BuildRefused, ParityFailed
from export.golden import render_rows

CLASSES = 4


class Fixed:
    """An engine that gives the rows' first bytes as classes, turned by `shift` for the marks in `wrong`."""

    info = EngineInfo("fixed", "bf16", "cpu", "a test")
    row_shape: tuple[int, ...] = (1, 1, 3)
    classes = CLASSES
    max_batch = 4

    def __init__(self, wrong: tuple[int, ...] = (), error: float = 0.0) -> None:
        self._wrong = wrong
        self._error = error

    def empty_rows(self, n: int) -> Rows:
        return np.empty((n, *self.row_shape), np.uint8)

    def run(self, rows: Rows) -> Probabilities:
        marks = [int(row.flat[0]) for row in rows]
        answers = np.full((len(marks), CLASSES), 0.1 - self._error / 3, np.float32)
        for at, mark in enumerate(marks):
            answers[at, (mark + (mark in self._wrong)) % CLASSES] = 0.7 + self._error
        return answers

    def close(self) -> None:
        """Nothing is held."""


def classes_alone(rows: Rows) -> tuple[Probabilities, None]:
    """A judge that knows no features."""
    return Fixed().run(rows), None


def marked(count: int) -> list[np.ndarray]:
    return [np.full((1, 1, 3), mark, np.uint8) for mark in range(count)]


def package_of(objects: Path, *, trained: bool, precision: Precision = "bf16") -> Package:
    package = open_package(PackagePath("hiera_demo_objects", 1, objects))
    seed = None if trained else 5
    weights = package.manifest.weights.model_copy(update={"random_seed": seed})
    manifest = package.manifest.model_copy(update={"weights": weights, "precision": precision})
    return dataclasses.replace(package, manifest=manifest)


class Described(Fixed):
    """The same with features: the mark, turned by `angle` in a plane."""

    feature_dim = 2

    def __init__(self, angle: float = 0.0) -> None:
        super().__init__()
        self._angle = angle

    def run(self, rows: Rows) -> Probabilities:
        self._marks = rows.reshape(len(rows), -1)[:, 0].astype(np.float32)
        return super().run(rows)

    def features(self) -> Features:
        turned = np.array([np.cos(self._angle), np.sin(self._angle)], np.float32)
        return (1 + self._marks)[:, None] * turned  # [n, 2]


def described(rows: Rows) -> tuple[Probabilities, Features]:
    judge = Described()
    return judge.run(rows), judge.features()


@pytest.mark.parametrize("angle", [0.0, 0.1])
def test_features_are_compared_by_their_angle_where_both_give_them(angle: float) -> None:
    agreement = measure_agreement(Described(angle), described, iter(marked(5)), batch=2)
    assert agreement.features == pytest.approx(np.cos(angle), abs=1e-6)
    assert measure_agreement(Fixed(), described, iter(marked(5)), batch=2).features is None
    assert measure_agreement(Described(), classes_alone, iter(marked(5)), batch=2).features is None


def test_every_row_counts_once_in_batches_of_any_size() -> None:
    agreement = measure_agreement(Fixed(wrong=(3, 9)), classes_alone, iter(marked(10)), batch=4)
    assert (agreement.rows, agreement.top1) == (10, 0.8)
    assert agreement.max_probability == pytest.approx(0.6)
    assert agreement.mean_probability == pytest.approx(0.12)
    assert agreement.largest_lead == pytest.approx(0.6)


def test_one_row_in_a_hundred_is_too_much_for_trained_weights_and_for_random_ones(objects: Path) -> None:
    agreement = measure_agreement(Fixed(wrong=(7,)), classes_alone, iter(marked(100)), batch=8)
    for trained in (True, False):
        with pytest.raises(ParityFailed, match=r"top-1 agreement is 99\.00%"):
            check_agreement(agreement, package_of(objects, trained=trained), "bf16")


def test_one_row_in_a_thousand_is_allowed_to_random_weights_alone(objects: Path) -> None:
    rows = [np.full((1, 1, 3), 200 if index == 17 else index % 4, np.uint8) for index in range(1000)]
    agreement = measure_agreement(Fixed(wrong=(200,)), classes_alone, iter(rows), batch=100)
    assert agreement.top1 == 0.999
    with pytest.raises(ParityFailed, match=r"100\.0% is needed"):
        check_agreement(agreement, package_of(objects, trained=True), "fp32")
    with pytest.raises(ParityFailed, match=r": a probability differs by 0\.6"):  # and by nothing else
        check_agreement(agreement, package_of(objects, trained=False), "fp32")


def test_a_probability_that_is_too_far_off_or_no_number_fails(objects: Path) -> None:
    package = package_of(objects, trained=True)
    check_agreement(measure_agreement(Fixed(error=0.1), classes_alone, iter(marked(8)), 4), package, "bf16")
    for error in (0.2, float("nan")):
        agreement = measure_agreement(Fixed(error=error), classes_alone, iter(marked(8)), 4)
        with pytest.raises(ParityFailed, match="a probability differs"):
            check_agreement(agreement, package, "bf16")


def test_the_looser_bound_of_the_graph_and_of_the_engine_counts(objects: Path) -> None:
    agreement = measure_agreement(Fixed(error=0.1), classes_alone, iter(marked(8)), 4)
    check_agreement(agreement, package_of(objects, trained=True, precision="bf16"), "fp32")
    fp32 = package_of(objects, trained=True, precision="fp32")
    check_agreement(agreement, fp32, "bf16")
    with pytest.raises(ParityFailed, match=r"a probability differs by 0\.1"):
        check_agreement(agreement, fp32, "fp32")


def test_rendered_rows_are_those_of_the_golden_series() -> None:
    np.testing.assert_array_equal(np.stack(list(rendered((8, 8, 3), 5))), render_rows((8, 8, 3), 5))


def test_photos_are_decoded_as_the_server_does_and_other_files_passed_over(objects: Path, tmp_path: Path) -> None:
    package = open_package(PackagePath("hiera_demo_objects", 1, objects))
    (tmp_path / "deeper").mkdir()
    Image.new("RGB", (60, 40), (200, 30, 10)).save(tmp_path / "deeper" / "red.png")
    Image.new("RGB", (40, 60), (10, 30, 200)).save(tmp_path / "blue.png")
    (tmp_path / "readme.txt").write_text("no photo")
    rows = list(photos(tmp_path, package))
    assert [row.shape for row in rows] == [(32, 32, 3)] * 2
    assert rows[0][0, 0].tolist() == [10, 30, 200]
    assert rows[1][16, 16].tolist() == [200, 30, 10]


def test_photos_that_cannot_be_decoded_are_named(
    objects: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (60, 40), (200, 30, 10)).save(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:300])
    with (tmp_path / "c.jpg").open("wb") as file:
        file.truncate(1 << 40)  # a hole, which no memory would hold
    (tmp_path / "readme.txt").write_text("no photo")
    assert len(list(photos(tmp_path, open_package(PackagePath("hiera_demo_objects", 1, objects))))) == 1
    damaged, large = capsys.readouterr().err.splitlines()
    assert damaged.startswith(f"passed over: {tmp_path}/b.jpg: the jpeg image is cut short")
    assert large.startswith(f"passed over: {tmp_path}/c.jpg: the file has 1,099,511,627,776 bytes")


def test_a_folder_without_photos_and_a_package_of_videos_are_refused(
    objects: Path, camera_motion: Path, tmp_path: Path
) -> None:
    with pytest.raises(BuildRefused, match="holds no image"):
        list(photos(tmp_path, open_package(PackagePath("hiera_demo_objects", 1, objects))))
    with pytest.raises(BuildRefused, match="is of videos"):
        list(photos(tmp_path, open_package(PackagePath("hiera_demo_camera_motion", 1, camera_motion))))


def test_the_command_passes_an_engine_that_agrees(objects: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["verify", str(objects), "--rows", "12", "--engine", "openvino", "--engine-precision", "fp32"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "over 12 rows" in said
    assert "top-1 agreement 100.00%" in said
    assert "on openvino fp32" in said


@pytest.mark.parametrize("rows", ["0", "-3"])
def test_the_command_wants_one_row_at_least(objects: Path, capsys: pytest.CaptureFixture[str], rows: str) -> None:
    assert main(["verify", str(objects), "--rows", rows]) == 1
    assert "--rows must be 1 or more, or a folder" in capsys.readouterr().err


def test_the_command_refuses_without_weights_to_compare_with(
    objects: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = (objects / "model.json").read_text().replace('"random_seed": 5', '"random_seed": null')
    copy = tmp_path / "hiera_demo_objects" / "1"
    copy.mkdir(parents=True)
    for file in ("model.onnx", "golden.npz"):
        (copy / file).write_bytes((objects / file).read_bytes())
    (copy.parent / "labels.txt").write_bytes((objects.parent / "labels.txt").read_bytes())
    (copy / "model.json").write_text(manifest)
    assert main(["verify", str(copy), "--rows", "4"]) == 1
    assert "pass --weights" in capsys.readouterr().err


def test_the_first_engine_that_can_be_had_is_the_one_that_is_looked_at(objects: Path) -> None:
    package = open_package(PackagePath("hiera_demo_objects", 1, objects))
    engine = open_engine(package, EngineOptions(device="cpu", precision="fp32", max_batch=2))
    assert engine.info.name == "openvino"
    engine.close()


@pytest.mark.parametrize("rows", ["nowhere", "1.5"])
def test_rows_that_are_neither_a_number_nor_a_folder_are_refused(
    objects: Path, capsys: pytest.CaptureFixture[str], rows: str
) -> None:
    assert main(["verify", str(objects), "--rows", rows]) == 1
    assert f"--rows '{rows}' is neither a number nor a folder" in capsys.readouterr().err


def test_an_engine_is_not_passed_over_in_silence(objects: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(objects), "--engine", "tensorrt"]) == 1
    assert "--engine goes with --rows" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--engine", "tensorrt", "--engine-device", "cpu"], "leave --engine-device at auto, or name cuda"),
        (["--engine", "openvino", "--engine-device", "cuda:0"], "--engine openvino, --engine-device cuda:0: OpenVINO"),
    ],
)
def test_what_an_engine_lacks_is_told_in_the_commands_own_flags(
    objects: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main(["verify", str(objects), "--rows", "2", *flags]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert "HIERA_" not in said
