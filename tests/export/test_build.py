"""Packages as they are written: whole, or not at all."""

from __future__ import annotations

import errno
import fcntl
import importlib.metadata
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from app.errors import PackageError
from app.repository.manifest import Manifest, Sampling, read_manifest
from app.repository.store import PackagePath, discover, open_package, sha256
from export import package as package_module
from export import parity as parity_module
from export import to_onnx
from export import verify as verify_module
from export.catalog import OWN_WEIGHTS, Download, find_variant
from export.cli import main
from export.download import WeightsSource
from export.errors import AlreadyThere, BuildRefused, CheckpointError, NoWeights, ParityFailed, WrongLabels, WrongRecord
from export.hiera import create_model
from export.package import PackageSpec, build_package, refuse_taken
from export.package_spec import BuildRequest, make_spec
from export.parity import Tolerance
from export.verify import torch_model, verify_package

OBJECTS = find_variant("hiera_demo_objects")
NOWHERE = WeightsSource(Path("nowhere"), "http://127.0.0.1:9")


def silent(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def spec() -> PackageSpec:
    return make_spec(BuildRequest(OBJECTS, random_seed=5, max_batch=2), NOWHERE, silent)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "mine.safetensors"
    save_file(create_model("hiera_demo_objects").state_dict(), path)
    return path


def package_path(folder: Path) -> PackagePath:
    return PackagePath(folder.parent.name, int(folder.name), folder)


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# What a package holds


@pytest.mark.parametrize("name", ["hiera_demo_objects", "hiera_demo_camera_motion", "hiera_tiny_224"])
def test_a_built_package_is_one_that_serving_reads(repository: Path, name: str) -> None:
    variant = find_variant(name)
    package = open_package(PackagePath(name, 1, repository / name / "1"))
    assert contents(repository / name) == sorted(
        ["1/golden.npz", "1/model.json", "1/model.onnx", "config.pbtxt", "labels.txt"]
    )
    assert package.manifest.parameters == variant.parameters
    assert package.manifest.preprocessing == variant.preprocessing
    assert len(package.labels) == variant.num_classes
    assert package.golden.probabilities.sum(axis=1) == pytest.approx(1.0, abs=1e-5)
    assert [item.batch for item in package.manifest.parity] == [1, 2, 4]
    assert all(item.top1_agreement == item.top5_agreement == 1.0 for item in package.manifest.parity)
    assert all(0.0 < item.max_abs_logits < 1e-3 for item in package.manifest.parity)


def test_random_weights_are_marked_as_such(objects: Path) -> None:
    manifest = read_manifest(objects / "model.json")
    assert manifest.random_weights
    assert manifest.weights.random_seed == 5
    assert manifest.description.startswith("Random weights")
    assert manifest.accuracy == ()


def test_nothing_in_a_package_names_the_machine_that_made_it(objects: Path) -> None:
    for file in (objects / "model.json", objects / "model.onnx", objects.parent / "config.pbtxt"):
        content = file.read_bytes()
        assert str(Path.home()).encode() not in content
        assert str(Path(package_module.__file__).parents[1]).encode() not in content


def test_tritons_configuration_describes_the_graph(camera_motion: Path) -> None:
    text = (camera_motion.parent / "config.pbtxt").read_text()
    for line in (
        'name: "hiera_demo_camera_motion"',
        'backend: "onnxruntime"',
        "max_batch_size: 4",
        "data_type: TYPE_UINT8",
        "dims: [ 16, 64, 64, 3 ]",
        'label_filename: "labels.txt"',
        "dims: [ 192 ]",
        "dynamic_batching { }",
    ):
        assert line in text
    assert text.count("{") == text.count("}")
    assert text.count("[") == text.count("]")


# Writing


def test_a_package_can_be_read_by_whoever_else_serves_it(objects: Path) -> None:
    # It is made as a temporary folder, which nobody but its owner may enter.
    assert objects.parent.stat().st_mode & 0o777 == 0o755


def test_weights_beside_the_graph_are_files_of_the_package_too(
    spec: PackageSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(to_onnx, "LARGEST_EMBEDDED_BYTES", 1_000_000)
    folder = build_package(spec, tmp_path, say=silent)
    files = read_manifest(folder / "model.json").files
    assert sorted(files) == ["../labels.txt", "golden.npz", "model.onnx", "model.onnx.data"]
    assert files == {name: sha256(folder / name) for name in files}


def test_a_new_version_stands_beside_the_old_one(spec: PackageSpec, tmp_path: Path) -> None:
    build_package(spec, tmp_path, say=silent)
    build_package(replace(spec, version=2), tmp_path, say=silent)
    assert [(found.name, found.version) for found in discover(tmp_path)] == [
        ("hiera_demo_objects", 1),
        ("hiera_demo_objects", 2),
    ]
    with pytest.raises(BuildRefused, match="other labels"):
        build_package(replace(spec, version=3, labels=tuple("abcdefghij")), tmp_path, say=silent)
    with pytest.raises(BuildRefused, match="--replace"):
        build_package(spec, tmp_path, say=silent)
    folder = build_package(replace(spec, description="made anew"), tmp_path, replace=True, say=silent)
    assert open_package(package_path(folder)).manifest.description == "made anew"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hiera_demo_objects"]


def test_a_build_that_fails_parity_leaves_nothing(
    spec: PackageSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(parity_module.TOLERANCES, "fp32", Tolerance(logits=1e-12, probability=1e-12))
    with pytest.raises(ParityFailed):
        build_package(spec, tmp_path / "repository", say=silent)
    assert list((tmp_path / "repository").iterdir()) == []


def test_a_build_that_fails_while_writing_leaves_the_old_package(
    spec: PackageSpec, objects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(objects.parent, tmp_path / objects.parent.name)
    before = {name: (tmp_path / name).read_bytes() for name in contents(tmp_path)}

    def full_disk(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(package_module, "triton_config", full_disk)
    with pytest.raises(OSError, match="No space"):
        build_package(spec, tmp_path, replace=True, say=silent)
    assert {name: (tmp_path / name).read_bytes() for name in contents(tmp_path)} == before
    assert [path.name for path in tmp_path.iterdir()] == ["hiera_demo_objects"]


def test_a_build_that_is_interrupted_while_it_replaces_leaves_the_old_package(
    spec: PackageSpec, objects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(objects.parent, tmp_path / objects.parent.name)
    before = {name: (tmp_path / name).read_bytes() for name in contents(tmp_path)}
    rename, calls = Path.rename, []

    def interrupted(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 2:  # the old version is out of its place, the new one not yet in it
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_package(spec, tmp_path, replace=True, say=silent)
    assert {name: (tmp_path / name).read_bytes() for name in contents(tmp_path)} == before


def test_a_package_can_be_built_beside_the_gpus_build_of_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def of_gpu_machine(name: str) -> str:
        if name == "onnxruntime":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.32.0" if name == "onnxruntime-gpu" else version(name)

    monkeypatch.setattr(importlib.metadata, "version", of_gpu_machine)
    assert package_module.tool_versions()["onnxruntime"] == "1.32.0"


# From the request to the spec


def test_own_weights_carry_no_claims_that_are_not_known(weights: Path) -> None:
    tiny = replace(OBJECTS, demo=False)
    spec = make_spec(BuildRequest(tiny, weights=weights), NOWHERE, silent)
    assert spec.weights.source == "file mine.safetensors"
    assert spec.weights.sha256 is not None
    assert not spec.weights.commercial_use
    assert spec.weights.licence == "as given by the owner of the weights"
    assert spec.accuracy == ()
    demo = make_spec(BuildRequest(OBJECTS, weights=weights), NOWHERE, silent).weights  # whose data forbid more
    assert (demo.licence, demo.commercial_use) == ("research use only", False)


def test_a_build_says_which_of_several_weights_it_takes(tmp_path: Path) -> None:
    state = create_model(OBJECTS.name).state_dict()
    torch.save({"model": state, "model_ema": state}, tmp_path / "mine.pth")
    said: list[str] = []
    make_spec(BuildRequest(OBJECTS, weights=tmp_path / "mine.pth"), NOWHERE, said.append)
    assert any("those of model are taken" in line for line in said)


@pytest.mark.parametrize("allowed", [False, True])
def test_own_weights_have_the_terms_that_their_owner_names(weights: Path, allowed: bool) -> None:
    for variant in (OBJECTS, replace(OBJECTS, demo=False)):
        own = BuildRequest(variant, weights=weights, licence="MIT", commercial_use=allowed)
        terms = make_spec(own, NOWHERE, silent).weights
        assert (terms.licence, terms.commercial_use) == ("MIT", allowed)


def test_a_training_record_gives_accuracy_and_preprocessing(weights: Path) -> None:
    record = {
        "data": "CIFAR-10 (test: 10000 images)",
        "accuracy": {"top1": 0.8765, "per_class": {}},
        "seed": 0,
        "preprocessing": {
            "input_size": [32, 32],
            "resize_short_side": 36,
            "interpolation": "bilinear",
            "mean": [0.1, 0.2, 0.3],
            "std": [0.4, 0.5, 0.6],
        },
    }
    weights.with_suffix(".json").write_text(json.dumps(record))
    spec = make_spec(BuildRequest(OBJECTS, weights=weights), NOWHERE, silent)
    assert [(item.dataset, item.top1) for item in spec.accuracy] == [("CIFAR-10 (test: 10000 images)", 87.65)]
    assert spec.preprocessing.mean == (0.1, 0.2, 0.3)
    assert (spec.preprocessing.resize_short_side, spec.preprocessing.interpolation) == (36, "bilinear")
    assert (spec.preprocessing.height, spec.preprocessing.width) == (32, 32)
    assert spec.description.startswith("Demo model")
    request = BuildRequest(OBJECTS, weights=weights, resize_short_side=40)
    assert make_spec(request, NOWHERE, silent).preprocessing.resize_short_side == 40

    record["preprocessing"]["input_size"] = [64, 64]  # type: ignore[index]
    weights.with_suffix(".json").write_text(json.dumps(record))
    with pytest.raises(WrongRecord, match="the weights take \\[32, 32\\]"):
        make_spec(BuildRequest(OBJECTS, weights=weights), NOWHERE, silent)


def test_a_record_of_training_on_videos_gives_the_sampling(tmp_path: Path) -> None:
    camera_motion = find_variant("hiera_demo_camera_motion")
    path = tmp_path / "mine.safetensors"
    save_file(create_model(camera_motion.name).state_dict(), path)
    trained_on = {
        **camera_motion.preprocessing.model_dump(include={"resize_short_side", "interpolation", "mean", "std"}),
        "input_size": [16, 64, 64],
        "stride": 2,
        "target_fps": 15,
    }
    record = {"data": "clips", "accuracy": {"top1": 0.5}, "preprocessing": trained_on}
    path.with_suffix(".json").write_text(json.dumps(record))
    sampling = make_spec(BuildRequest(camera_motion, weights=path), NOWHERE, silent).sampling
    assert sampling == Sampling(frames=16, mode="dense", stride=2, target_fps=15.0)


def test_a_configuration_of_another_kind_beside_the_weights_is_passed_over(weights: Path) -> None:
    weights.with_suffix(".json").write_text('{"model_type": "hiera"}')
    assert make_spec(BuildRequest(OBJECTS, weights=weights), NOWHERE, silent).preprocessing == OBJECTS.preprocessing


def test_uniform_sampling_is_for_models_that_were_trained_so() -> None:
    request = BuildRequest(find_variant("hiera_demo_camera_motion"), random_seed=0, sampling="uniform")
    sampling = make_spec(request, NOWHERE, silent).sampling
    assert sampling is not None
    assert sampling.mode == "uniform"


def test_a_head_of_another_size_needs_a_label_for_each_class(tmp_path: Path) -> None:
    path = tmp_path / "seven.pth"
    torch.save({"model_state": create_model("hiera_demo_objects", 7).state_dict()}, path)
    with pytest.raises(WrongLabels, match=r"7 classes, and CIFAR-10 has 10: pass --labels FILE with 7 lines"):
        make_spec(BuildRequest(OBJECTS, weights=path), NOWHERE, silent)
    labels = tmp_path / "labels.txt"
    labels.write_text("one\ntwo\nthree\n")
    with pytest.raises(WrongLabels, match="3 lines, but the head has 7"):
        make_spec(BuildRequest(OBJECTS, weights=path, labels=labels), NOWHERE, silent)
    labels.write_text("one\ntwo\nthree\nfour\nfive\nsix\nsieben\n")
    spec = make_spec(BuildRequest(OBJECTS, weights=path, labels=labels), NOWHERE, silent)
    assert spec.labels[-1] == "sieben"
    assert spec.description == "micro Hiera of the object demo, with weights from seven.pth"  # not the demo's
    assert spec.model.config.num_classes == 7
    with pytest.raises(PackageError, match="cannot be read"):
        make_spec(BuildRequest(OBJECTS, weights=path, labels=tmp_path / "absent.txt"), NOWHERE, silent)


def test_random_weights_take_as_many_classes_as_there_are_labels(tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("yes\nno\n")
    spec = make_spec(BuildRequest(OBJECTS, random_seed=0, labels=labels), NOWHERE, silent)
    assert spec.model.config.num_classes == 2
    assert spec.labels == ("yes", "no")


def test_demo_weights_cannot_be_fetched() -> None:
    with pytest.raises(NoWeights, match="training/"):
        make_spec(BuildRequest(OBJECTS), NOWHERE, silent)


def test_official_weights_say_their_licence_and_carry_the_published_accuracy(tmp_path: Path) -> None:
    tiny = find_variant("hiera_tiny_224")
    assert tiny.download is not None
    with torch.device("meta"):
        names = create_model("hiera_tiny_224").state_dict()
    state = {name: torch.zeros(tensor.shape) for name, tensor in names.items()}
    torch.save({"model_state": state}, tmp_path / tiny.download.file)
    said: list[str] = []
    spec = make_spec(BuildRequest(tiny), WeightsSource(tmp_path), said.append)
    assert any("CC-BY-NC-4.0" in line and "NOT for commercial use" in line for line in said)
    assert spec.weights.licence == "CC-BY-NC-4.0"
    assert not spec.weights.commercial_use
    assert spec.weights.source == "https://dl.fbaipublicfiles.com/hiera/hiera_tiny_224.pth"
    assert [item.top1 for item in spec.accuracy] == [82.8]


# Verifying what lies there


def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder.parent, tmp_path / folder.parent.name)) / folder.name


def with_manifest(folder: Path, **changes: object) -> Manifest:
    manifest = read_manifest(folder / "model.json").model_copy(update=changes)
    (folder / "model.json").write_text(manifest.to_json())
    return manifest


def test_verify_writes_what_it_measured(objects: Path, tmp_path: Path) -> None:
    folder = copy_of(objects, tmp_path)
    with_manifest(folder, parity=())
    result = verify_package(open_package(package_path(folder)), None, 3, NOWHERE)
    assert "random weights of seed 5" in result.against
    assert [item.batch for item in read_manifest(folder / "model.json").parity] == [1, 2, 3]
    assert read_manifest(folder / "model.json").parity == result.parity


def test_verify_without_the_weights_compares_with_the_golden_sample(objects: Path, tmp_path: Path) -> None:
    folder = copy_of(objects, tmp_path)
    unknown = read_manifest(folder / "model.json").weights.model_copy(update={"random_seed": None})
    with_manifest(folder, weights=unknown, parity=())
    result = verify_package(open_package(package_path(folder)), None, 6, NOWHERE)
    assert "golden sample" in result.against
    assert [item.top1_agreement for item in result.parity] == [1.0, 1.0, 1.0]
    assert read_manifest(folder / "model.json").parity == ()


def test_only_the_file_that_a_package_was_built_from_is_taken_from_the_cache(
    objects: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = replace(OBJECTS, download=Download("http://127.0.0.1:9", weights.name, OWN_WEIGHTS))
    monkeypatch.setattr(verify_module, "find_variant", lambda name: published)
    package = open_package(package_path(objects))
    recorded = package.manifest.weights.model_copy(update={"random_seed": None, "sha256": sha256(weights)})
    package = replace(package, manifest=package.manifest.model_copy(update={"weights": recorded}))
    cache = WeightsSource(weights.parent)
    found = torch_model(package, None, cache)
    assert found is not None
    assert found[1] == "torch with mine.safetensors"
    # A later release under the same name fits the model as well, and would be no reference for the graph.
    save_file({name: tensor + 1 for name, tensor in found[0].state_dict().items()}, weights)
    assert torch_model(package, None, cache) is None
    weights.unlink()
    assert torch_model(package, None, cache) is None


def test_verify_notices_weights_that_are_not_the_packages(objects: Path, weights: Path) -> None:
    with pytest.raises(CheckpointError, match="is not the file"):
        verify_package(open_package(package_path(objects)), weights, 2, NOWHERE)


def test_verify_notices_a_graph_that_says_something_else(objects: Path, tmp_path: Path) -> None:
    folder = copy_of(objects, tmp_path)
    other = read_manifest(folder / "model.json").weights.model_copy(update={"random_seed": 6})
    with_manifest(folder, weights=other)
    with pytest.raises(ParityFailed, match="differs from torch"):
        verify_package(open_package(package_path(folder)), None, 2, NOWHERE)


def test_the_golden_sample_is_what_torch_says(objects: Path) -> None:
    with np.load(objects / "golden.npz") as golden:
        logits, probabilities = golden["logits"], golden["probabilities"]
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(probabilities, exponentials / exponentials.sum(axis=1, keepdims=True), atol=1e-6)


def test_verify_tells_what_it_measured_where_nothing_may_be_written(
    objects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    model = shutil.copytree(objects.parent, tmp_path / objects.parent.name)
    monkeypatch.setattr(verify_module, "write_manifest", read_only)
    assert main(["verify", str(model), "--max-batch", "1"]) == 1
    told = capsys.readouterr()
    assert "agrees with torch" in told.out
    assert "could not be written into the manifest ([Errno 30] Read-only file system)" in told.err


def test_a_manifest_that_cannot_be_written_leaves_no_part(
    objects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(objects.parent, tmp_path / objects.parent.name) / "1"
    before = contents(folder)

    def full_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        package_module.write_manifest(read_manifest(folder / "model.json"), folder)
    assert contents(folder) == before


def test_verify_names_a_manifest_of_another_variant(objects: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(objects.parent, tmp_path / objects.parent.name) / "1"
    manifest = read_manifest(folder / "model.json").model_copy(update={"variant": "hiera_demo_camera_motion"})
    package_module.write_manifest(manifest, folder)
    with pytest.raises(PackageError, match="hiera_demo_camera_motion, which takes other rows than the graph"):
        verify_package(open_package(package_path(folder)), None, 1, NOWHERE)


def test_verify_names_a_graph_that_cannot_be_loaded(objects: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(objects.parent, tmp_path / objects.parent.name) / "1"
    (folder / "model.onnx").write_bytes(b"no graph")
    manifest = read_manifest(folder / "model.json")
    files = manifest.files | {"model.onnx": sha256(folder / "model.onnx")}
    package_module.write_manifest(manifest.model_copy(update={"files": files}), folder)
    with pytest.raises(ParityFailed, match=r"model\.onnx cannot be loaded here"):
        verify_package(open_package(package_path(folder)), None, 1, NOWHERE)


def test_of_two_builds_at_once_the_second_replaces_nothing(
    spec: PackageSpec, objects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(*_: object) -> str:  # another process is done
        shutil.copytree(objects.parent, tmp_path / objects.parent.name)
        return ""

    monkeypatch.setattr(package_module, "triton_config", meanwhile)
    with pytest.raises(AlreadyThere, match="--replace"):
        build_package(spec, tmp_path, say=silent)
    kept = tmp_path / objects.parent.name
    assert (kept / "1" / "model.json").read_bytes() == (objects / "model.json").read_bytes()
    assert list(tmp_path.iterdir()) == [kept]


def test_a_place_that_is_no_folder_is_refused_before_anything_is_built(spec: PackageSpec, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / spec.name).symlink_to("nowhere")
    for output, place in ((tmp_path / "file", "file"), (tmp_path / "file" / "below", "file"), (tmp_path, spec.name)):
        with pytest.raises(BuildRefused, match=f"{place} is no folder"):
            refuse_taken(output, spec.name, 1, replace=False)


def test_a_version_that_is_a_link_to_nowhere_is_replaced(spec: PackageSpec, tmp_path: Path) -> None:
    (tmp_path / spec.name).mkdir()
    (tmp_path / spec.name / "1").symlink_to("nowhere")
    with pytest.raises(AlreadyThere):
        build_package(spec, tmp_path, say=silent)
    assert not build_package(spec, tmp_path, replace=True, say=silent).is_symlink()


def test_what_a_killed_build_left_is_removed_and_what_runs_is_not(
    spec: PackageSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, running = tmp_path / f".{spec.name}.a.part", tmp_path / f".{spec.name}.b.part"
    for folder in (killed, running):
        (folder / "1").mkdir(parents=True)
    holder = os.open(running, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_SH)
    try:
        build_package(spec, tmp_path, say=silent)
        assert sorted(tmp_path.iterdir()) == sorted([running, tmp_path / spec.name])
    finally:
        os.close(holder)
    build_package(spec, tmp_path, replace=True, say=silent)
    assert list(tmp_path.iterdir()) == [tmp_path / spec.name]
