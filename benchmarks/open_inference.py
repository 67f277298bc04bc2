"""A photo in each way that the server takes it: as a file by /classify and by /v2, as rows over HTTP and over gRPC.

With the no-op engine it is the ways that are compared. They take turns, round after round, against one server.

    python -m benchmarks.open_inference --engine noop --connections 16
"""

from __future__ import annotations

import argparse
import asyncio
import json
import struct
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
import grpc.aio
import numpy as np

from app.load.generator import Progress, Samples, Workload
from app.load.isolated import in_a_process, run_isolated
from app.load.request import classify_request, raw_request
from app.load.server import free_port
from app.load.summary import Summary, summarise
from app.load.table import text_table
from app.load.target import Target, parse_target
from app.rpc.messages import MESSAGES, SERVICE
from benchmarks.contenders import MODEL, ours
from benchmarks.media import add_photo_argument
from benchmarks.packages import REPOSITORY, build_packages
from benchmarks.results import add_output_argument, median, spread, write_results

SHAPE = (224, 224, 3)


@dataclass(frozen=True)
class Calls:
    """What a gRPC client sends: `message` again and again, over `connections` channels."""

    workload: Workload
    address: str
    message: bytes


def call(order: Calls, progress: Progress) -> Samples:
    """A closed loop of gRPC calls; runs in a process of its own."""
    return asyncio.run(_call(order))


async def _call(order: Calls) -> Samples:
    samples, workload = Samples(), order.workload
    measured_from = time.perf_counter() + workload.warmup_s
    until = measured_from + workload.seconds

    async def caller() -> None:
        async with grpc.aio.insecure_channel(order.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
            while (began := time.perf_counter()) < until:
                status = 200
                try:
                    await infer(order.message)
                except grpc.aio.AioRpcError as error:
                    status = 503
                    samples.bodies.setdefault(status, str(error.details()).encode())
                ended = time.perf_counter()
                if measured_from <= ended < until:
                    samples.status.append(status)
                    samples.latency_s.append(ended - began)
                    samples.finished_s.append(ended - measured_from)
                    samples.timing.append(b"")

    begun_cpu = time.process_time()
    await asyncio.gather(*(caller() for _ in range(workload.connections)))
    samples.seconds, samples.generator_cpu_s = workload.seconds, time.process_time() - begun_cpu
    return samples


def noise(rows: int) -> bytes:
    """Rows of pixels."""
    return np.random.default_rng(0).integers(0, 256, (rows, *SHAPE), np.uint8).tobytes()


def http_request(target: Target, name: str, datatype: str, shape: list[int], data: bytes) -> bytes:
    """A request whose input and output are binary data."""
    tensor = {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(data)}}
    wanted = [{"name": "probabilities", "parameters": {"binary_data": True}}]
    text = json.dumps({"inputs": [tensor], "outputs": wanted}).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    path = f"/v2/models/{MODEL}/infer"
    return raw_request(target, path, text + data, content_type="application/octet-stream", headers=headers)


def grpc_message(rows: int) -> bytes:
    """The same of rows for gRPC."""
    message = MESSAGES["ModelInferRequest"](model_name=MODEL)
    message.inputs.add(name="rows", datatype="UINT8", shape=[rows, *SHAPE])
    message.outputs.add(name="probabilities")
    message.raw_input_contents.append(noise(rows))
    encoded: bytes = message.SerializeToString()
    return encoded


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="noop")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    add_photo_argument(parser)
    add_output_argument(parser)
    arguments = parser.parse_args()
    build_packages([MODEL])
    photo, port = arguments.photo.read_bytes(), free_port()
    runs: dict[str, list[Summary]] = {}
    with ours(arguments.engine, "", REPOSITORY, extra={"HIERA_GRPC_PORT": str(port)}).start() as server:
        target = parse_target(server.url)
        requests = {
            "file, /classify": classify_request(target, arguments.photo, model=MODEL, multipart=False),
            "file, /v2": http_request(target, "files", "BYTES", [1], struct.pack("<I", len(photo)) + photo),
            "row, /v2": http_request(target, "rows", "UINT8", [1, *SHAPE], noise(1)),
            "8 rows, /v2": http_request(target, "rows", "UINT8", [8, *SHAPE], noise(8)),
        }
        messages = {"row, gRPC": grpc_message(1), "8 rows, gRPC": grpc_message(8)}
        for _ in range(arguments.rounds):
            for name, request in requests.items():
                workload = Workload(target, (request,), arguments.connections, arguments.seconds)
                runs.setdefault(name, []).append(summarise(workload, run_isolated(workload)))
            for name, message in messages.items():
                workload = Workload(target, (b"-",), arguments.connections, arguments.seconds)
                samples = in_a_process(call, Calls(workload, f"127.0.0.1:{port}", message))
                runs.setdefault(name, []).append(summarise(workload, samples))
    _print(runs)
    method = {key: getattr(arguments, key) for key in ("engine", "connections", "rounds", "seconds")}
    write_results(
        arguments.output,
        "open_inference",
        method | {"photo": Path(arguments.photo).name, "model": MODEL},
        {name: [asdict(run) for run in each] for name, each in runs.items()},
    )


def _print(runs: dict[str, list[Summary]]) -> None:
    first = next(iter(runs.values()))
    lines = []
    for name, each in runs.items():
        ratios = [run.throughput_per_s / base.throughput_per_s for run, base in zip(each, first, strict=True)]
        latencies = [run.latency_ms.p50 for run in each if run.latency_ms]
        errors = sum(sum(run.errors.values()) for run in each)
        rate = f"{median([run.throughput_per_s for run in each]):.0f}"
        lines.append((name, rate, spread(ratios), f"{median(latencies):.1f}", str(errors)))
    print(text_table(("", "requests/s", "÷ /classify", "p50 ms", "errors"), lines))


if __name__ == "__main__":
    main()
