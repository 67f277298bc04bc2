"""What callers notice of a deploy: a model swapped under load, and SIGTERM under load.

    python -m benchmarks.deploys swap --rate 30
    python -m benchmarks.deploys stop --rate 60 --http-workers 2

swap: an open loop of photos while two versions of one package take turns by the admin call; latencies of requests that
were under way during a swap beside those of the others. stop: the same load, then SIGTERM; what the server says that it
has answered (its access log) is compared with what arrived.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import numpy as np

from app.load.progress import ProgressBar
from app.load.request import raw_request
from app.load.server import ServerProcess
from app.load.summary import Percentiles, percentiles
from app.load.table import text_table
from app.load.target import parse_target
from benchmarks.chaos.clients import Behaviour, Outcome, Role
from benchmarks.chaos.files import good_photos
from benchmarks.chaos.storm import Sent, Storm, send
from benchmarks.own_server import add_server_arguments, own_server
from benchmarks.results import add_output_argument, write_results

_ADMIN = "admin-secret"
_FIRST_SWAP_S = 4.0


def two_versions(source: Path, folder: Path) -> None:
    """A repository in `folder` with the package `source` twice, as versions 1 and 2."""
    package = folder / source.name
    shutil.copytree(source, package)
    shutil.copytree(package / "1", package / "2")
    manifest = package / "2" / "model.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "version": 2}))


def start(repository: Path, arguments: argparse.Namespace) -> ServerProcess:
    settings = {"admin_keys": f"bench:{_ADMIN}", "http_workers": arguments.http_workers}
    return own_server(repository, arguments.engine, arguments.set, **settings)


def load_of(url: str, arguments: argparse.Namespace) -> Storm:
    """Well-behaved callers, each of its own photos, at a steady rate."""
    target = parse_target(url)
    photos = good_photos(12)
    path = f"/classify/image?model={arguments.package.name}&top_k=1"
    requests = [raw_request(target, path, photo.data, content_type=photo.content_type) for photo in photos]
    roles = tuple(Role("photo", Behaviour.ASKS, n, request, 30.0, 1.0) for n, request in enumerate(requests))
    return Storm(target, roles, arguments.seconds, callers=1000, rate_per_s=arguments.rate, warmup_s=0.0)


@dataclass
class _Swap:
    began_s: float
    ended_s: float
    answer: dict[str, object]


def _swap_in_turn(url: str, name: str, arguments: argparse.Namespace, swaps: list[_Swap]) -> None:
    """Version 1 serves no longer than until the first swap; each swap waits until the one before has settled."""
    time.sleep(_FIRST_SWAP_S)
    for number in range(arguments.swaps):
        began_s = time.perf_counter()
        response = httpx.put(
            f"{url}/admin/models/{name}?version={1 + number % 2}", headers={"x-api-key": _ADMIN}, timeout=120
        )
        swaps.append(_Swap(began_s, time.perf_counter(), response.json()))
        time.sleep(arguments.pause)


def _latency(outcomes: list[Outcome]) -> Percentiles | None:
    return percentiles(
        np.asarray([1000 * (each.answer.finished_s - each.due_s) for each in outcomes if each.answer is not None])
    )


def measure_swaps(arguments: argparse.Namespace) -> dict[str, object]:
    """Swap back and forth under load."""
    swaps: list[_Swap] = []
    with tempfile.TemporaryDirectory() as folder:
        two_versions(arguments.package, Path(folder))
        with start(Path(folder), arguments) as server:
            storm = load_of(server.url, arguments)
            arguments_of = (server.url, arguments.package.name, arguments, swaps)
            swapping = threading.Thread(target=_swap_in_turn, args=arguments_of, daemon=True)
            swapping.start()
            with ProgressBar("swaps") as bar:
                sent = send(storm, bar.show)
            swapping.join()
    during: list[Outcome] = []
    otherwise: list[Outcome] = []
    for outcome in sent.outcomes:
        ended_s = outcome.answer.finished_s if outcome.answer else outcome.due_s
        overlaps = any(swap.began_s <= ended_s and outcome.due_s <= swap.ended_s for swap in swaps)
        (during if overlaps else otherwise).append(outcome)
    answered = sum(each.answer is not None and each.answer.status == 200 for each in sent.outcomes)
    swapped = sum(swap.answer.get("outcome") == "swapped" for swap in swaps)
    in_swap, usual = _latency(during), _latency(otherwise)
    rows = [
        (name, str(len(group)), *(f"{value:.1f}" for value in (found.p50, found.p99, found.maximum)))
        for name, group, found in (("usual", otherwise, usual), ("during swaps", during, in_swap))
        if found
    ]
    print(text_table(("latency", "requests", "p50 ms", "p99 ms", "longest ms"), rows))
    took_s = [swap.ended_s - swap.began_s for swap in swaps]
    print(f"swaps: {swapped} of {len(swaps)} in {np.median(took_s):.2f} s each (median)")
    print(f"requests: {len(sent.outcomes)}, answered with 200: {answered}")
    if in_swap and usual:
        print(f"p99 during swaps ÷ usual: {in_swap.p99 / usual.p99:.2f} (2 or less wanted, where a core is free)")
    return {
        "requests": len(sent.outcomes),
        "answered": answered,
        "swaps": [{"seconds": swap.ended_s - swap.began_s, "outcome": swap.answer.get("outcome")} for swap in swaps],
        "usual_ms": asdict(usual) if usual else None,
        "during_ms": asdict(in_swap) if in_swap else None,
        "during_requests": len(during),
    }


def measure_stop(arguments: argparse.Namespace) -> dict[str, object]:
    """SIGTERM in the middle of the load."""
    found: dict[str, object] = {}
    with start(arguments.package.parent, arguments) as server:
        storm = load_of(server.url, arguments)

        def stop() -> None:
            time.sleep(arguments.seconds / 2)
            began_s = time.perf_counter()
            server.terminate()
            while httpx.get(f"{server.url}/health/ready", timeout=10).status_code == 200:
                time.sleep(0.005)
            found["unready_after_s"] = time.perf_counter() - began_s
            found["exit_status"] = server.wait(60)
            found["ended_after_s"] = time.perf_counter() - began_s
            found["began_s"] = began_s

        stopping = threading.Thread(target=stop, daemon=True)
        stopping.start()
        with ProgressBar("SIGTERM") as bar:
            sent = send(storm, bar.show)
        stopping.join()
        log = server.log_tail(1 << 30)
    began_s = float(str(found.pop("began_s")))
    return {**found, **_compare(sent, log, began_s)}


def _compare(sent: Sent, log: str, began_s: float) -> dict[str, object]:
    """What arrived beside what the server logged. A status of 0: the connection was refused or broke."""
    arrived: dict[int, int] = {}
    for outcome in sent.outcomes:
        if outcome.answer is not None:
            arrived[outcome.answer.status] = arrived.get(outcome.answer.status, 0) + 1
    after = sum(
        each.answer is not None and each.answer.status == 200 and each.answer.finished_s > began_s
        for each in sent.outcomes
    )
    lines = [line for line in log.splitlines() if "path=/classify/image" in line]
    logged = {code: sum(f" status={code} " in line for line in lines) for code in (200, 429, 499, 500, 503, 504)}
    figures = {
        "answered_after_the_signal": after,
        "arrived": {str(status): count for status, count in sorted(arrived.items())},
        "logged": {str(status): count for status, count in logged.items() if count},
    }
    print(figures)
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("swap", "stop"))
    parser.add_argument("--package", type=Path, default=Path("model_repo/hiera_demo_objects"))
    parser.add_argument("--rate", type=float, default=60.0, help="photos a second")
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--swaps", type=int, default=8)
    parser.add_argument("--pause", type=float, default=3.0, help="seconds between two swaps")
    parser.add_argument("--http-workers", type=int, default=1)
    add_server_arguments(parser)
    add_output_argument(parser)
    arguments = parser.parse_args()
    measured = (measure_swaps if arguments.what == "swap" else measure_stop)(arguments)
    write_results(arguments.output, f"deploys-{arguments.what}", vars(arguments), measured)


if __name__ == "__main__":
    main()
