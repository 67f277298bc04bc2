"""The servers that are measured side by side: how each is started, asked, and known to be ready."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from app.load.request import classify_request, kserve_bytes_request, multipart_request
from app.load.server import ServerProcess, free_port
from app.load.target import Target

MODEL = "hiera_tiny_224"
OURS = "hiera-serve"
ROOT = Path(__file__).parent.parent
PEER_ENVIRONMENTS = ROOT / ".cache" / "peers"  # or HIERA_BENCH_PEERS

RequestMaker = Callable[[Target, Path], bytes]


@dataclass(frozen=True)
class Contender:
    """A server. `command` may hold {port}."""

    name: str
    command: tuple[str, ...]
    request: RequestMaker
    ready_path: str
    environment: Mapping[str, str] = field(default_factory=dict)

    def start(self) -> ServerProcess:
        """A context that runs it on a free port."""
        port = free_port()
        return ServerProcess(
            [part.format(port=port) for part in self.command],
            port=port,
            ready_path=self.ready_path,
            environment={"PORT": str(port), "HIERA_PORT": str(port), "HIERA_HOST": "127.0.0.1", **self.environment},
            folder=ROOT,
        )


def peer_python(peer: str) -> Path:
    """The interpreter of a peer's own environment; `python -m benchmarks.peers.install` makes it."""
    folder = Path(os.environ.get("HIERA_BENCH_PEERS", PEER_ENVIRONMENTS))
    return (folder / peer / "bin" / "python").absolute()


def _form(path: str, field_name: str) -> RequestMaker:
    return lambda target, file: multipart_request(
        target, path, file.read_bytes(), field=field_name, filename=file.name, content_type="image/jpeg"
    )


def ours(
    engine: str, precision: str, repository: Path, *, name: str = OURS, extra: Mapping[str, str] | None = None
) -> Contender:
    """This project's server. `extra` are further settings."""
    environment = {"HIERA_ENGINE": engine, "HIERA_MODEL_REPOSITORY": str(repository.absolute()), **(extra or {})}
    if precision:
        environment["HIERA_ENGINE_PRECISION"] = precision
    return Contender(
        name,
        (sys.executable, "-m", "app.cli", "run"),
        lambda target, file: classify_request(target, file, model=MODEL),
        "/health/ready",
        environment,
    )


# Name -> environment, program, the path asked, the form's field, the path that says it is ready.
_PEERS: dict[str, tuple[str, tuple[str, ...], RequestMaker, str]] = {
    "naive": ("naive", ("-m", "benchmarks.peers.naive"), _form("/classify", "file"), "/health"),
    "litserve": ("litserve", ("-m", "benchmarks.peers.lit"), _form("/predict", "file"), "/health"),
    "bentoml": (
        "bentoml",
        ("-m", "bentoml", "serve", "benchmarks.peers.bento:Hiera", "--host", "127.0.0.1", "--port", "{port}"),
        _form("/classify", "files"),
        "/readyz",
    ),
    "ray": ("ray", ("-m", "benchmarks.peers.rayserve"), _form("/classify", "file"), "/-/healthz"),
    "triton": (
        "triton",
        ("-m", "benchmarks.peers.triton"),
        lambda target, file: kserve_bytes_request(target, "hiera", "file", file.read_bytes()),
        "/v2/models/hiera/ready",
    ),
}
PEERS = tuple(_PEERS)


def peer(
    name: str, engine: str, precision: str, graph: Path | None, *, label: str | None = None, max_batch: int = 8
) -> Contender:
    """A peer with an engine: noop, onnxruntime or openvino."""
    environment, program, request, ready_path = _PEERS[name]
    return Contender(
        label or name,
        (str(peer_python(environment)), *program),
        request,
        ready_path,
        {
            "PEER_ENGINE": engine,
            "PEER_PRECISION": precision or "fp32",
            "PEER_GRAPH": str(graph.absolute()) if graph else "",
            "PEER_MAX_BATCH": str(max_batch),
            "BENTOML_DO_NOT_TRACK": "True",
            "RAY_USAGE_STATS_ENABLED": "0",
        },
    )
