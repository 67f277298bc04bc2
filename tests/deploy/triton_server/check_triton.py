# mypy: ignore-errors
"""Packages served by Triton as they lie there give the probabilities of this project's own engine, and for images those
that its server answers over HTTP; and Triton's own client gets the same from that server as from Triton: `run.sh`.

Runs in the environment of Triton, against the model repository that is its argument; exit status 1 if anything differs.
The server runs in the environment of PYTHON.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytriton
import tritonclient.http
from own_server import classify_row, own_server
from same_calls import differences, input_of

from app.engines.factory import EngineOptions
from app.repository.store import Package, discover, latest, open_package
from app.serving.proven import load_engine

HERE = Path(__file__).parent
TRITON = Path(pytriton.__file__).parent / "tritonserver"
TOLERANCE = 1e-5  # the same graph in the same runtime: only the order of float32 sums may differ
READY_WITHIN_S = 180


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def lay_out_backends(folder: Path) -> None:
    """The backends of the wheel, with the interpreter stub where Triton looks for it, and ours beside them."""
    python = folder / "python"
    python.mkdir(parents=True)
    stub = TRITON / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    for file in (*(TRITON / "backends" / "python").glob("*.*"), stub / "triton_python_backend_stub"):
        shutil.copy2(file, python)  # Triton refuses links that lead out of the folder
    shutil.copytree(HERE / "onnxruntime_backend", folder / "onnxruntime")


@contextmanager
def triton(repository: Path, models: list[str], log: Path) -> Iterator[tritonclient.http.InferenceServerClient]:
    """A Triton server of `models`, ready. Its own guesses about a model are switched off: config.pbtxt must say all."""
    with tempfile.TemporaryDirectory() as folder:
        lay_out_backends(Path(folder))
        port = free_port()
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": str(TRITON.parents[1] / "nvidia_pytriton.libs"),
        }
        command = [
            TRITON / "bin" / "tritonserver", f"--model-repository={repository}", f"--backend-directory={folder}",
            "--disable-auto-complete-config", "--model-control-mode=explicit", *(f"--load-model={m}" for m in models),
            "--http-address=127.0.0.1", f"--http-port={port}", "--allow-grpc=false", "--allow-metrics=false",
        ]  # fmt: skip
        with log.open("wb") as output:
            server = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        client = tritonclient.http.InferenceServerClient(f"127.0.0.1:{port}", concurrency=8)
        try:
            wait_until_ready(client, server, log)
            yield client
        finally:
            client.close()
            server.terminate()
            server.wait(60)


def wait_until_ready(client: tritonclient.http.InferenceServerClient, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < end and server.poll() is None:
        try:
            if client.is_server_ready():
                return
        except OSError:
            pass  # it does not listen yet
        time.sleep(0.2)
    sys.exit(f"Triton does not get ready:\n{log.read_text()[-6000:]}")


def largest_difference(client: tritonclient.http.InferenceServerClient, package: Package) -> tuple[float, int]:
    """Over batches of one row, of the golden sample, and of noise that fills a batch: |Triton - ours|, and the rows."""
    manifest = package.manifest
    max_batch = client.get_model_config(manifest.name)["max_batch_size"]
    noise = np.random.default_rng(0).integers(0, 256, (max_batch, *manifest.row_shape), np.uint8)
    options = EngineOptions(name="onnxruntime", max_batch=max_batch)
    engine = load_engine(package, "onnxruntime", options)
    worst, seen = 0.0, 0
    for rows in (package.golden.rows[:1], package.golden.rows[:max_batch], noise):
        theirs = client.infer(manifest.name, [input_of(rows)]).as_numpy("probabilities")
        assert theirs.shape == (len(rows), manifest.num_classes), theirs.shape
        worst = max(worst, float(np.abs(theirs - engine.run(np.ascontiguousarray(rows))).max()))
        seen += len(rows)
    engine.close()
    return worst, seen


def difference_from_server(client: tritonclient.http.InferenceServerClient, package: Package, address: str) -> float:
    """Over the golden sample of an image model: |Triton - what our own server answers over HTTP|."""
    worst = 0.0
    for row in package.golden.rows[:4]:
        theirs = client.infer(package.manifest.name, [input_of(row[None])]).as_numpy("probabilities")[0]
        worst = max(worst, float(np.abs(theirs - classify_row(address, package, row)).max()))
    return worst


def names_the_label(client: tritonclient.http.InferenceServerClient, package: Package) -> bool:
    """Whether Triton's classification extension reads labels.txt as we do."""
    rows = package.golden.rows[:1]
    wanted = tritonclient.http.InferRequestedOutput("probabilities", class_count=1)
    top = client.infer(package.manifest.name, [input_of(rows)], outputs=[wanted]).as_numpy("probabilities")
    _, index, label = top.ravel()[0].decode().split(":")
    return label == package.labels[int(index)] and int(index) == int(package.golden.probabilities[0].argmax())


def rows_per_batch(client: tritonclient.http.InferenceServerClient, package: Package, requests: int = 32) -> float:
    """Rows of one batch in the mean when so many requests of one row come at once, which depends on the machine."""
    name = package.manifest.name
    before = client.get_inference_statistics(name)["model_stats"][0]
    pending = [client.async_infer(name, [input_of(package.golden.rows[:1])]) for _ in range(requests)]
    for each in pending:
        each.get_result()
    after = client.get_inference_statistics(name)["model_stats"][0]
    rows, batches = (after[key] - before[key] for key in ("inference_count", "execution_count"))
    return rows / batches


def main(repository: Path, chosen: list[str]) -> int:
    packages = [open_package(path) for path in latest(discover(repository)) if not chosen or path.name in chosen]
    failed = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        triton(repository, [p.manifest.name for p in packages], Path(folder) / "log") as client,
        own_server(os.environ.get("PYTHON", "python3"), repository, free_port()) as address,
    ):
        ours = tritonclient.http.InferenceServerClient(address.removeprefix("http://"), concurrency=8)
        print(f"Triton {client.get_server_metadata()['version']} serves {len(packages)} packages of {repository}")
        for package in packages:
            difference, rows = largest_difference(client, package)
            labelled, mean = names_the_label(client, package), rows_per_batch(client, package)
            is_image = package.manifest.task == "image"
            over_http = difference_from_server(client, package, address) if is_image else 0.0
            noticed = differences(client, ours, package, TOLERANCE)
            good = (
                max(difference, over_http) <= TOLERANCE
                and labelled
                and not noticed
                and "dynamic_batching" in client.get_model_config(package.manifest.name)
            )
            failed += not good
            print(
                f"{'ok  ' if good else 'FAIL'} {package.manifest.name}: {rows} rows, probabilities differ by at most "
                f"{difference:.1e} from our engine{f' and {over_http:.1e} from our server' if is_image else ''}, "
                f"label {'agrees' if labelled else 'differs'}, {mean:.1f} rows a batch, Triton's client notices "
                f"{'; '.join(noticed) or 'no difference'}"
            )
        ours.close()
    return 1 if failed or not packages else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2:]))
