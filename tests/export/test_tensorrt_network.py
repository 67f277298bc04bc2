"""What TensorRT's builder is told for a package, by bindings that only write it down: no GPU and no minutes are needed.

That the real bindings have these names, and take all this, is what test_tensorrt_command.py sees. A build on a GPU ends
with a check, by the real engine over a double that computes for real.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import tensorrt_double
from host_device import HostDevice

from app.engines.plans import PlanCheck, PlanKey, find_plan
from app.errors import EngineUnavailable, PackageError
from app.repository.store import Package, PackagePath, open_package
from app.serving.golden import GoldenReport
from export.errors import AlreadyThere, BuildRefused
from export.tensorrt_plan import PlanRequest, build_plan, graph_for_tensorrt

Shapes = list[tuple[int, ...]]


class Flag(enum.IntEnum):
    """Where TensorRT has an enumeration of its own for each."""

    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1
    TF32 = 7
    DEBUG = 8


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Shapes] = {}

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        assert len(shapes) == 3
        self.shapes[name] = list(shapes)


class TimingCache(bytes):
    def serialize(self) -> bytes:
        return self + b", and what was timed now"


class Config:
    num_compute_capabilities = 0
    profiling_verbosity = "names only"
    timing_cache: TimingCache | None = None

    def __init__(self) -> None:
        self.flags = {Flag.TF32, Flag.DEBUG}  # the first is there in the real one too, unless it is cleared
        self.profiles: list[Profile] = []
        self.capabilities: list[str] = []

    def clear_flag(self, flag: Flag) -> None:
        self.flags.remove(flag)

    def add_optimization_profile(self, profile: Profile) -> None:
        self.profiles.append(profile)

    def set_compute_capability(self, capability: str, index: int) -> None:
        assert index == len(self.capabilities) < self.num_compute_capabilities
        self.capabilities.append(capability)

    def create_timing_cache(self, kept: bytes) -> TimingCache:
        return TimingCache(kept)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> None:
        assert not ignore_mismatch
        self.timing_cache = cache

    def get_timing_cache(self) -> TimingCache:
        assert self.timing_cache is not None
        return self.timing_cache


class Layer:
    def __init__(self, kind: str) -> None:
        self.type = kind


class AttentionInputLayer(Layer):
    """What its class must be made before it has this."""

    decomposable: bool | None = None

    @property
    def attention(self) -> AttentionInputLayer:
        return self


class Network:
    """As the parser leaves it: with all three outputs."""

    num_layers = 2

    def __init__(self) -> None:
        self.layers = [Layer("cast"), Layer("attention")]
        self.outputs = [SimpleNamespace(name=name) for name in ("logits", "probabilities", "features")]

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_layer(self, index: int) -> Layer:
        return self.layers[index]

    def get_output(self, index: int) -> SimpleNamespace:
        return self.outputs[index]

    def unmark_output(self, output: SimpleNamespace) -> None:
        self.outputs.remove(output)


class Bindings:
    """The module; what is built last is kept."""

    __version__ = "1.9.0"
    NetworkDefinitionCreationFlag = BuilderFlag = Flag
    ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
    ComputeCapability = SimpleNamespace(SM89="8.9", SM120="12.0")
    LayerType = SimpleNamespace(ATTENTION_INPUT="attention", CAST="cast")
    IAttentionInputLayer = AttentionInputLayer

    def __init__(self) -> None:
        self.config, self.network, self.network_flags = Config(), Network(), 0
        self.faults: list[str] = []
        self.plan: bytes | None = b"a plan"

    def Builder(self, logger: Any) -> Bindings:
        return self

    def OnnxParser(self, network: Network, logger: object) -> SimpleNamespace:
        assert network is self.network
        return SimpleNamespace(
            parse=lambda model, path: Path(path).name == "model.onnx" and len(model) > 1000 and not self.faults,
            num_errors=len(self.faults),
            get_error=lambda index: SimpleNamespace(desc=lambda: self.faults[index]),
        )

    def create_network(self, flags: int) -> Network:
        self.network_flags = flags
        self.network = Network()
        return self.network

    def create_builder_config(self) -> Config:
        self.config = Config()
        return self.config

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        assert (network, config) == (self.network, self.config)
        return self.plan


@pytest.fixture
def bindings(monkeypatch: pytest.MonkeyPatch) -> Bindings:
    """Of both flavours, which are both installed."""
    found = Bindings()
    monkeypatch.setattr("export.tensorrt_plan.installed_flavours", lambda: ["tensorrt", "tensorrt_rtx"])
    monkeypatch.setattr("export.tensorrt_plan.load_bindings", lambda flavour: found)
    monkeypatch.setattr("export.tensorrt_plan.make_logger", lambda trt, lines: None)
    return found


def copied(folder: Path, tmp_path: Path) -> Package:
    copy = shutil.copytree(folder.parent, tmp_path / folder.parent.name) / folder.name
    return open_package(PackagePath(copy.parent.name, int(copy.name), copy))


def built(folder: Path, tmp_path: Path, **request: Any) -> Package:
    """A copy of the package, with a plan for an architecture that no GPU here needs to have."""
    package = copied(folder, tmp_path)
    plan = build_plan(package, PlanRequest(target="sm_89", flavour="tensorrt_rtx", **request), lambda text: None)
    assert plan.read_bytes() == b"a plan"
    return package


def test_every_profile_is_given_with_rows_of_the_package(bindings: Bindings, objects: Path, tmp_path: Path) -> None:
    built(objects, tmp_path)
    assert [profile.shapes for profile in bindings.config.profiles] == [
        {"rows": [(rows, 32, 32, 3) for rows in (1, 1, 4)]},
        {"rows": [(rows, 32, 32, 3) for rows in (5, 64, 64)]},
    ]


def test_clips_come_in_fewer_rows_than_images(bindings: Bindings, camera_motion: Path, tmp_path: Path) -> None:
    built(camera_motion, tmp_path)
    assert [profile.shapes for profile in bindings.config.profiles] == [
        {"rows": [(rows, 16, 64, 64, 3) for rows in (1, 1, 4)]},
        {"rows": [(rows, 16, 64, 64, 3) for rows in (5, 8, 8)]},
    ]


def test_the_graph_says_every_precision_and_fp32_is_not_computed_in_tf32(
    bindings: Bindings, objects: Path, tmp_path: Path
) -> None:
    built(objects, tmp_path, max_batch=2)
    assert bindings.network_flags == 1 << Flag.STRONGLY_TYPED
    assert bindings.config.flags == {Flag.DEBUG}


def test_the_plan_is_for_the_target_alone_and_gives_probabilities_alone(
    bindings: Bindings, objects: Path, tmp_path: Path
) -> None:
    built(objects, tmp_path, max_batch=2)
    assert bindings.config.capabilities == ["8.9"]
    assert [output.name for output in bindings.network.outputs] == ["probabilities", "features"]


@pytest.mark.parametrize(
    ("precision", "unfused", "apart"),
    [("fp32", False, True), ("bf16", False, False), ("fp16", False, False), ("bf16", True, True)],
)
def test_attention_is_taken_apart_in_fp32_and_where_that_is_allowed(
    bindings: Bindings, objects: Path, tmp_path: Path, precision: Any, unfused: bool, apart: bool
) -> None:
    package = copied(objects, tmp_path)
    package = dataclasses.replace(package, manifest=package.manifest.model_copy(update={"precision": precision}))
    request = PlanRequest(target="sm_89", flavour="tensorrt_rtx", max_batch=2, unfused_attention=unfused)
    build_plan(package, request, lambda text: None)
    cast, attention = bindings.network.layers
    assert type(cast) is Layer
    assert isinstance(attention, AttentionInputLayer)
    assert attention.decomposable is apart


def test_the_layers_of_a_plan_can_be_looked_at(bindings: Bindings, objects: Path, tmp_path: Path) -> None:
    built(objects, tmp_path, max_batch=2)
    assert bindings.config.profiling_verbosity == "detailed"
    assert bindings.config.timing_cache is None  # tensorrt_rtx times nothing at the build


def test_every_fault_that_the_parser_finds_is_named(bindings: Bindings, objects: Path, tmp_path: Path) -> None:
    bindings.faults = ["no kernel for this", "nor for that"]
    with pytest.raises(BuildRefused, match="refuses the graph: no kernel for this; nor for that"):
        built(objects, tmp_path, max_batch=2)


def test_a_plan_that_is_there_is_replaced_where_that_is_asked_for(
    bindings: Bindings, objects: Path, tmp_path: Path
) -> None:
    package = built(objects, tmp_path, max_batch=2)
    request = PlanRequest(target="sm_89", flavour="tensorrt_rtx", max_batch=4)
    with pytest.raises(AlreadyThere, match="--replace"):
        build_plan(package, request, lambda text: None)
    bindings.plan = b"another plan"
    plan = build_plan(package, dataclasses.replace(request, replace=True), lambda text: None)
    assert plan.read_bytes() == b"another plan"
    _, record = find_plan(package.graph, PlanKey("sm_89", "tensorrt_rtx", "1.9.0"))
    assert record.batches == (1, 2, 4)


def test_tensorrt_builds_for_no_gpu_but_the_one_that_it_runs_on(
    bindings: Bindings, objects: Path, tmp_path: Path
) -> None:
    package = copied(objects, tmp_path)
    for flavour in ("tensorrt", None):  # which is the first that is installed
        with pytest.raises(BuildRefused, match="--target goes with --flavour tensorrt_rtx"):
            build_plan(package, PlanRequest(target="sm_89", flavour=flavour), lambda text: None)


def test_a_machine_without_tensorrt_says_what_to_install(
    objects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.tensorrt_plan.installed_flavours", list)
    with pytest.raises(EngineUnavailable, match="neither tensorrt nor tensorrt_rtx is installed: pip install"):
        build_plan(copied(objects, tmp_path), PlanRequest(), lambda text: None)


def test_weights_in_a_file_of_their_own_are_not_read(objects: Path, tmp_path: Path) -> None:
    graph = tmp_path / "model.onnx"
    onnx.save(onnx.load(objects / "model.onnx"), graph, save_as_external_data=True, location="model.onnx.data")
    (tmp_path / "model.onnx.data").unlink()
    rewritten = onnx.load_from_string(graph_for_tensorrt(graph))
    assert {entry.value for each in rewritten.graph.initializer for entry in each.external_data} >= {"model.onnx.data"}


class Gpu(HostDevice):
    chosen = False

    def use(self) -> None:
        self.chosen = True


class OnGpu(Bindings):
    """The flavour for every GPU. A plan is the package's graph, which the engine over the double runs as it is."""

    __name__ = tensorrt_double.__name__
    __version__ = tensorrt_double.__version__
    ILogger = tensorrt_double.ILogger
    Runtime = tensorrt_double.Runtime
    DataType = tensorrt_double.DataType
    ExecutionContextAllocationStrategy = tensorrt_double.ExecutionContextAllocationStrategy
    LayerInformationFormat = tensorrt_double.LayerInformationFormat

    def __init__(self) -> None:
        super().__init__()
        self.gpus: list[Gpu] = []

    def open_gpu(self, name: str) -> Gpu:
        self.gpus.append(Gpu(architecture="sm_90", name=name))
        return self.gpus[-1]

    def Builder(self, logger: Any) -> Bindings:
        assert self.gpus[-1].chosen  # it builds for the GPU that is current
        logger.log(tensorrt_double.Severity.ERROR, "what the builder says")
        return self


KEY = PlanKey("sm_90", "tensorrt", OnGpu.__version__)


@pytest.fixture
def on_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OnGpu:
    found = OnGpu()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("export.tensorrt_plan.installed_flavours", lambda: ["tensorrt", "tensorrt_rtx"])
    monkeypatch.setattr("export.tensorrt_plan.load_bindings", lambda flavour: found)
    monkeypatch.setattr("export.tensorrt_plan.CudaDevice", found.open_gpu)
    return found


@pytest.fixture
def package(on_gpu: OnGpu, objects: Path, tmp_path: Path) -> Package:
    package = copied(objects, tmp_path)
    on_gpu.plan = package.graph.read_bytes()
    return package


def sharpened(package: Package, power: float) -> Package:
    """The package with a reference that is `power` times as sure of itself."""
    probabilities = package.golden.probabilities.astype(np.float64) ** power
    probabilities = (probabilities / probabilities.sum(axis=1, keepdims=True)).astype(np.float32)
    return dataclasses.replace(package, golden=dataclasses.replace(package.golden, probabilities=probabilities))


def test_a_plan_that_is_built_on_a_gpu_is_checked_there_and_its_record_says_how_it_did(
    on_gpu: OnGpu, package: Package
) -> None:
    said: list[str] = []
    plan = build_plan(package, PlanRequest(device="cuda:1", max_batch=8), said.append)
    assert plan == package.folder / KEY.file
    _, record = find_plan(package.graph, KEY)
    assert (record.precision, record.batches, record.gpu) == ("fp32", (1, 2, 4, 8), "the host's memory")
    assert record.check is not None
    assert (record.check.max_abs_probability < 1e-4, record.check.top1_agreement) == (True, 1.0)
    assert "agrees with the golden sample" in said[-1]
    assert json.loads((package.folder / f"{KEY.file}.layers.json").read_text()) == {"Layers": ["fused"]}
    (gpu,) = on_gpu.gpus
    assert gpu.name == "cuda:1"
    assert gpu.log.count("record") == 2  # the largest batch of the sample, and its first row by itself
    assert not gpu.held
    assert not list(package.folder.glob(".*"))


def test_the_record_tells_one_distance_from_the_other(
    on_gpu: OnGpu, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = GoldenReport(max_abs_probability=0.1, max_log_ratio=0.2, max_log_deviation=0.3, top1_agreement=0.4)
    monkeypatch.setattr("export.tensorrt_plan.check_golden", lambda *_: report)
    said: list[str] = []
    build_plan(package, PlanRequest(max_batch=8), said.append)
    _, record = find_plan(package.graph, KEY)
    assert record.check == PlanCheck(max_abs_probability=0.1, max_log_ratio=0.2, top1_agreement=0.4)
    assert "probabilities within 0.1, log-probabilities within 0.2 of their spread" in said[-1]


def test_a_plan_that_disagrees_with_the_golden_sample_by_what_its_precision_does_not_allow_is_not_kept(
    on_gpu: OnGpu, package: Package
) -> None:
    build_plan(sharpened(package, 1.002), PlanRequest(max_batch=8), lambda text: None)
    (package.folder / KEY.file).unlink()
    with pytest.raises(PackageError, match="disagrees with the reference"):
        build_plan(sharpened(package, 1.02), PlanRequest(max_batch=8), lambda text: None)  # bf16 might do that
    assert not (package.folder / KEY.file).exists()
    assert not list(package.folder.glob(".*"))
    assert not on_gpu.gpus[-1].held


def test_what_tensorrt_cannot_build_is_refused_in_its_words_and_the_log_kept(on_gpu: OnGpu, package: Package) -> None:
    on_gpu.plan = None
    with pytest.raises(BuildRefused, match="TensorRT cannot build it: what the builder says"):
        build_plan(package, PlanRequest(max_batch=8), lambda text: None)
    assert (package.folder / f"{KEY.file}.log").read_text() == "[ERROR] what the builder says\n"
    assert not list(package.folder.glob("*.plan"))


def test_a_plan_that_the_disk_has_no_room_for_leaves_nothing_of_it_there(on_gpu: OnGpu, package: Package) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = sorted(package.folder.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            build_plan(package, PlanRequest(max_batch=8), lambda text: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(package.folder.iterdir()) == sorted([*before, package.folder / f"{KEY.file}.log"])


@pytest.mark.parametrize("named", [False, True])
def test_what_was_timed_is_kept_for_the_next_build_on_such_a_gpu(
    on_gpu: OnGpu, package: Package, tmp_path: Path, named: bool
) -> None:
    kept = tmp_path / "cache" / "hiera-serve" / "tensorrt" / "sm_90-tensorrt-11.9.0.1.timing"
    request = PlanRequest(max_batch=8, replace=True)
    if named:
        kept = tmp_path / "of my own" / "timing"
        request = dataclasses.replace(request, timing_cache=kept)
    given: list[bytes | None] = []
    for _ in range(2):
        build_plan(package, request, lambda text: None)
        given.append(on_gpu.config.timing_cache)
    now = b", and what was timed now"
    assert given == [b"", now]
    assert kept.read_bytes() == now + now
    assert list(kept.parent.iterdir()) == [kept]
