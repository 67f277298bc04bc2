"""What TensorRT's builder is told for a package, by bindings that only write it down: no GPU and no minutes are needed.

That the real bindings have these names, and take all this, is what test_tensorrt_command.py sees.
"""

from __future__ import annotations

import enum
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.repository.store import Package, PackagePath, open_package
from export.tensorrt_plan import PlanRequest, build_plan

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


class Config:
    num_compute_capabilities = 0

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


class Network:
    """As the parser leaves it: with all three outputs."""

    num_layers = 0

    def __init__(self) -> None:
        self.outputs = [SimpleNamespace(name=name) for name in ("logits", "probabilities", "features")]

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

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

    def __init__(self) -> None:
        self.config, self.network, self.network_flags = Config(), Network(), 0

    def Builder(self, logger: object) -> Bindings:
        return self

    def OnnxParser(self, network: Network, logger: object) -> SimpleNamespace:
        assert network is self.network
        return SimpleNamespace(parse=lambda model, path: Path(path).name == "model.onnx" and len(model) > 1000)

    def create_network(self, flags: int) -> Network:
        self.network_flags = flags
        return self.network

    def create_builder_config(self) -> Config:
        return self.config

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes:
        assert (network, config) == (self.network, self.config)
        return b"a plan"


@pytest.fixture
def bindings(monkeypatch: pytest.MonkeyPatch) -> Bindings:
    found = Bindings()
    monkeypatch.setattr("export.tensorrt_plan.load_bindings", lambda flavour: found)
    monkeypatch.setattr("export.tensorrt_plan.make_logger", lambda trt, lines: None)
    return found


def built(folder: Path, tmp_path: Path, **request: Any) -> Package:
    """A copy of the package, with a plan for an architecture that no GPU here needs to have."""
    copy = shutil.copytree(folder.parent, tmp_path / folder.parent.name) / folder.name
    package = open_package(PackagePath(copy.parent.name, int(copy.name), copy))
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
