"""TensorRT plans beside a package's graph: how they are called, what is known of them, and which one fits here.

    <version>/model.onnx
    <version>/sm_90-tensorrt-11.4.0.106.plan          for one GPU architecture and one release of TensorRT
    <version>/sm_90-tensorrt-11.4.0.106.plan.json     what it was built from and how far it was from the reference

A plan is machine code: it is loaded only when its record names this graph, this GPU and this TensorRT, and its hash
holds. It is no part of the package's manifest, which stays true on every machine.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from app.errors import EngineUnavailable, PackageError

SCHEMA_VERSION = 1
PLAN = ".plan"
EXTERNAL_DATA = ".data"  # a graph beyond 2 GiB keeps its weights beside it


@dataclass(frozen=True)
class PlanKey:
    """What a plan is valid for: a GPU architecture ("sm_90"), and TensorRT's flavour and release."""

    architecture: str
    flavour: str
    version: str

    @property
    def file(self) -> str:
        return f"{self.architecture}-{self.flavour}-{self.version}{PLAN}"


@dataclass(frozen=True)
class PlanCheck:
    """How far a plan was from the fp32 golden sample when it was built."""

    max_abs_probability: float
    max_log_ratio: float
    top1_agreement: float


@dataclass(frozen=True)
class PlanRecord:
    """The JSON beside a plan.

    Attributes:
        precision: of the graph, and so of the plan.
        batches: the sizes that it is run at, ascending.
        sources: sha256 of the graph's files, by name.
        sha256: of the plan.
        gpu: what it was built on, for people; empty when it was built without one.
        check: None when it was built without a GPU; the server checks it either way.
    """

    key: PlanKey
    precision: str
    batches: tuple[int, ...]
    sources: dict[str, str]
    sha256: str
    gpu: str
    check: PlanCheck | None
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"


def graph_sources(graph: Path) -> dict[str, str]:
    """sha256 of the graph's file, and of its weights' where they have one of their own."""
    files = [graph, graph.with_name(graph.name + EXTERNAL_DATA)]
    return {file.name: file_sha256(file) for file in files if file.is_file()}


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_plan(graph: Path, key: PlanKey) -> tuple[Path, PlanRecord]:
    """The plan for a GPU and a TensorRT, proven to be of this graph.

    Raises:
        EngineUnavailable: there is none; the message says which there are, and which command makes the right one.
        PackageError: it is there, and is not what its record or the graph says.
    """
    plan = graph.parent / key.file
    command = build_command(graph)
    if not plan.is_file():
        others = sorted(path.name for path in graph.parent.glob(f"*{PLAN}"))
        there = f"there {'is' if len(others) == 1 else 'are'} {', '.join(others)}" if others else "there is none at all"
        raise EngineUnavailable(
            f"no TensorRT plan for {key.architecture} and {key.flavour} {key.version} ({there}): {command}"
        )
    record = read_record(plan)
    if record.key != key:
        raise PackageError(f"{plan}: its record is of {record.key.file}; {command} --replace")
    if record.sources != graph_sources(graph):
        raise PackageError(f"{plan}: was built from another {graph.name}; {command} --replace")
    if record.sha256 != file_sha256(plan):
        raise PackageError(f"{plan}: was changed after it was built; {command} --replace")
    return plan, record


def build_command(graph: Path) -> str:
    """What makes the plan that is missing, on the machine that misses it."""
    return f"run hiera-export tensorrt {graph.parent}"


def record_file(plan: Path) -> Path:
    return plan.with_name(plan.name + ".json")


def read_record(plan: Path) -> PlanRecord:
    """Raises PackageError where the record is missing, unreadable or of another schema."""
    path = record_file(plan)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {document['schema_version']!r}, not {SCHEMA_VERSION}")
        check = document.pop("check")
        return PlanRecord(
            key=PlanKey(**document.pop("key")),
            batches=tuple(document.pop("batches")),
            check=None if check is None else PlanCheck(**check),
            **document,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PackageError(f"{path}: cannot be read as the record of a plan ({error})") from error
