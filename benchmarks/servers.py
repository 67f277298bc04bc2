"""This server beside its peers and beside the bare engine, with the same photo, model and load.

python -m benchmarks.servers noop     # the servers alone: no model is run
python -m benchmarks.servers tiny     # hiera_tiny_224 on OpenVINO (naive also on ONNX Runtime), and the bare engine
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from benchmarks.bare import rows_per_s_in_a_process
from benchmarks.contenders import MODEL, OURS, PEERS, Contender, ours, peer, peer_python
from benchmarks.media import add_photo_argument
from benchmarks.packages import REPOSITORY, random_package
from benchmarks.results import add_output_argument, median, spread, write_results
from benchmarks.rounds import Load, Measured, interleave, p50s_ms, print_comparison, ratios, throughputs


def noop_contenders(peers: list[str]) -> list[Contender]:
    """Servers that answer without running a model."""
    return [ours("noop", "", REPOSITORY), *(peer(name, "noop", "", None) for name in peers)]


def model_contenders(peers: list[str], precision: str, graph: Path) -> list[Contender]:
    """Servers around the same graph and engine; the naive one also on ONNX Runtime, which one would take first."""
    # Ours as it ships: in bf16 its close calls are decided in fp32. The photo of a benchmark is one or is none.
    contenders = [ours("openvino", "auto" if precision == "bf16" else precision, REPOSITORY)]
    for name in peers:
        if name == "naive":
            contenders.append(peer("naive", "onnxruntime", "fp32", graph, label="naive-onnxruntime"))
        # Batching gains nothing on a CPU (see the bare engine's curve); small batches keep the peers' latency down.
        contenders.append(peer(name, "openvino", precision, graph, label=f"{name}-openvino", max_batch=2))
    return contenders


def print_goals(
    measured: dict[str, Measured], bare_rows_per_s: list[float], streams_rows_per_s: list[float], loads: list[Load]
) -> dict[str, list[float]]:
    """The rows of the project's table that these servers decide."""
    us = measured[OURS]
    many, one = loads[-1].connections, loads[0].connections
    goals: dict[str, list[float]] = {}
    if "naive" in measured:
        naive = measured["naive"]
        goals[f"throughput ÷ naive, {many} connections (2.2 wanted)"] = ratios(
            throughputs(us, many), throughputs(naive, many)
        )
        goals[f"p50 ÷ naive's, {one} connection (0.6 or less)"] = ratios(p50s_ms(us, one), p50s_ms(naive, one))
    if "naive-onnxruntime" in measured:
        goals[f"throughput ÷ naive with ONNX Runtime, {many} connections (1.9 wanted)"] = ratios(
            throughputs(us, many), throughputs(measured["naive-onnxruntime"], many)
        )
    if bare_rows_per_s:
        goals[f"throughput ÷ bare engine, {many} connections (0.95 wanted)"] = ratios(
            throughputs(us, many), bare_rows_per_s
        )
        goals[f"throughput ÷ bare streams, one a core, {many} connections"] = ratios(
            throughputs(us, many), streams_rows_per_s
        )
        goals[f"ms beyond decode and engine, {one} connection, p50 (2 or less)"] = [
            run.overhead_ms.p50 for run in us.runs.get(one, []) if run and run.overhead_ms
        ]
    print()
    for name, values in goals.items():
        print(f"{name}: {spread(values)}")
    return goals


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("noop", "tiny"))
    parser.add_argument("--peers", default=",".join(PEERS), help="a comma-separated choice, or none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each load")
    parser.add_argument("--warmup", type=float, default=2.0)
    parser.add_argument("--connections", default="1,16")
    parser.add_argument("--precision", default="bf16", help="of OpenVINO: bf16 or fp32")
    add_photo_argument(parser)
    add_output_argument(parser)
    arguments = parser.parse_args()
    package = random_package(MODEL)  # the no-op engine needs its geometry
    peers = [] if arguments.peers == "none" else arguments.peers.split(",")
    for name in [name for name in peers if not peer_python(name).exists()]:
        print(f"{name} is left out: python -m benchmarks.peers.install {name}")
        peers.remove(name)
    loads = [Load(int(n), arguments.seconds, arguments.warmup) for n in arguments.connections.split(",")]
    bare_rows_per_s: list[float] = []
    streams_rows_per_s: list[float] = []

    def measure_bare(_: int) -> None:
        curve = rows_per_s_in_a_process(MODEL, "openvino", arguments.precision, (1, 2, 4, 8), arguments.seconds / 2)
        bare_rows_per_s.append(max(curve.values()))
        curve = rows_per_s_in_a_process(
            MODEL, "openvino", arguments.precision, (1, 2, 4), arguments.seconds / 2, streams=True
        )
        streams_rows_per_s.append(max(curve.values()))

    if arguments.what == "noop":
        contenders, between = noop_contenders(peers), None
    else:
        contenders, between = model_contenders(peers, arguments.precision, package.graph), measure_bare
    measured = interleave(contenders, loads, arguments.photo, arguments.rounds, between)
    print_comparison(measured, OURS, loads)
    if bare_rows_per_s:
        print(f"\nthe bare engine in a loop at its best batch: {median(bare_rows_per_s):.1f} rows/s")
        print(f"bare streams, one a core, at their best batch: {median(streams_rows_per_s):.1f} rows/s")
    goals = print_goals(measured, bare_rows_per_s, streams_rows_per_s, loads)
    write_results(
        arguments.output,
        f"servers-{arguments.what}",
        {"rounds": arguments.rounds, "photo": arguments.photo.name, "loads": [asdict(load) for load in loads]},
        {
            "servers": {name: asdict(each) for name, each in measured.items()},
            "bare_rows_per_s": bare_rows_per_s,
            "bare_streams_rows_per_s": streams_rows_per_s,
            "goals": goals,
        },
    )


if __name__ == "__main__":
    main()
