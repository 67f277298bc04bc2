"""Capacity, then five times as much for a minute among hostile clients and killed workers, then capacity again.

    python -m benchmarks.chaos --model hiera_tiny_224 --server-cores 0 --client-cores 1

1. Every file is sent alone: its answer when idle is what all later ones are compared with.
2. Capacity: a closed loop of well-behaved clients with the good files, from the same generator.
3. The storm: an open loop at `--factor` times that rate; a fifth of the clients leave, trickle, stall or send bad
   files, and media workers are killed by chance.
4. Calm, then the capacity again, which tells drift of the machine from damage by the storm.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import httpx
import numpy as np

from app.load.progress import ProgressBar
from app.load.request import raw_request
from app.load.server import ServerProcess, free_port
from app.load.summary import percentiles
from app.load.table import text_table
from app.load.target import Target, parse_target
from benchmarks.chaos.census import Census, settle
from benchmarks.chaos.clients import Behaviour, Role
from benchmarks.chaos.files import File, bad_files, good_photos, good_videos
from benchmarks.chaos.killer import Killer
from benchmarks.chaos.storm import Sent, Storm, send
from benchmarks.chaos.verdict import BROKEN, Expected, Judgement, Verdict, judge
from benchmarks.contenders import ROOT
from benchmarks.packages import REPOSITORY, build_packages
from benchmarks.results import add_output_argument, write_results

_CALM_S = 12.0  # the server tidies up within half of it
_TRICKLE_S = 4.0
_SLOW_TIMEOUT_MS = 20_000  # of senders that are slow, and of files that are sent alone
_HOSTILE = {  # shares of all requests
    Behaviour.LEAVES_UPLOADING: 0.04,
    Behaviour.LEAVES_WAITING: 0.04,
    Behaviour.TRICKLES: 0.01,
    Behaviour.STALLS: 0.01,
}
_BAD_FILES = 0.10


@dataclass(frozen=True)
class Scene:
    """The files of a run, what was answered to each when idle, and who sends them."""

    files: Sequence[File]
    expected: Sequence[Expected]
    roles: tuple[Role, ...]


def _server(arguments: argparse.Namespace) -> ServerProcess:
    port = free_port()
    settings = dict(setting.partition("=")[::2] for setting in arguments.set)
    environment = {
        "HIERA_PORT": str(port),
        "HIERA_HOST": "127.0.0.1",
        "HIERA_MODEL_REPOSITORY": str(arguments.repository.absolute()),
        "HIERA_ENGINE": arguments.engine,
        **{f"HIERA_{name.upper()}": value for name, value in settings.items()},
    }
    return ServerProcess(
        [sys.executable, "-m", "app.cli", "run"], port=port, environment=environment, folder=ROOT, ready_timeout_s=300
    )


def _path(file: File, arguments: argparse.Namespace, timeout_ms: int, top_k: int) -> str:
    model = arguments.video_model if file.task == "video" else arguments.model
    return f"/classify/{file.task}?model={model}&top_k={top_k}&timeout_ms={timeout_ms}"


def _when_idle(url: str, file: File, arguments: argparse.Namespace) -> Expected:
    """The answer to a file that is alone; the fastest of three, as the first one may be slow."""
    path = _path(file, arguments, _SLOW_TIMEOUT_MS, top_k=1000)
    headers = {"content-type": file.content_type}
    answers = []
    for _ in range(3):
        began_s = time.perf_counter()
        response = httpx.post(url + path, content=file.data, headers=headers, timeout=60)
        answers.append(Expected.of(response.status_code, response.content, time.perf_counter() - began_s))
    if any(answer.status != answers[0].status for answer in answers):
        raise RuntimeError(f"{file.name} is answered now so, now so: {answers}")
    return min(answers, key=lambda answer: answer.seconds)


def set_scene(target: Target, arguments: argparse.Namespace) -> Scene:
    """Learn the right answers and cast the clients."""
    good = [*good_photos(arguments.photos), *(good_videos(4) if arguments.video_share else ())]
    video = good_videos(1)[0]
    bad = [file for file in bad_files(good[0], video) if file.task == "image" or arguments.video_share]
    files = [*good, *bad]
    expected = [_when_idle(target.url, file, arguments) for file in files]
    wrong = [file.name for file, answer in zip(good, expected, strict=False) if answer.status != 200]
    if wrong:
        raise RuntimeError(f"good files are refused: {wrong}")

    def role(number: int, behaviour: Behaviour, share: float) -> Role:
        file = files[number]
        timeout_ms = arguments.video_timeout_ms if file.task == "video" else arguments.timeout_ms
        if behaviour in (Behaviour.TRICKLES, Behaviour.STALLS):
            timeout_ms = _SLOW_TIMEOUT_MS
        path = _path(file, arguments, timeout_ms, top_k=5)
        request = raw_request(target, path, file.data, content_type=file.content_type)
        name = "good" if number < len(good) else "bad"
        return Role(f"{name} {file.task}", behaviour, number, request, timeout_ms / 1000, share, _TRICKLE_S)

    roles: list[Role] = []
    for number, file in enumerate(good):
        of_task = sum(other.task == file.task for other in good)
        task_share = arguments.video_share if file.task == "video" else 1 - arguments.video_share
        share = task_share / of_task
        asking = 1 - sum(_HOSTILE.values()) - _BAD_FILES
        roles += [role(number, behaviour, share * part) for behaviour, part in _HOSTILE.items()]
        roles.append(role(number, Behaviour.ASKS, share * asking))
    roles += [role(len(good) + n, Behaviour.ASKS, _BAD_FILES / len(bad)) for n in range(len(bad))]
    return Scene(files, expected, tuple(roles))


@dataclass(frozen=True)
class Capacity:
    """Right, timely answers a second; `work` weighs each by its file's seconds when idle."""

    photos_per_s: float
    videos_per_s: float
    work: float

    @classmethod
    def of(cls, scene: Scene, judged: Judgement, seconds: float) -> Capacity:
        counts = {"image": 0, "video": 0}
        work_s = 0.0
        for number, count in judged.right_by_file.items():
            counts[scene.files[number].task] += count
            work_s += count * scene.expected[number].seconds
        return cls(counts["image"] / seconds, counts["video"] / seconds, work_s / seconds)

    @property
    def requests_per_s(self) -> float:
        return self.photos_per_s + self.videos_per_s


def measure_capacity(
    target: Target, scene: Scene, arguments: argparse.Namespace, label: str
) -> tuple[Capacity, Judgement]:
    """What well-behaved clients with good files get in a closed loop."""
    good = tuple(role for role in scene.roles if role.behaviour is Behaviour.ASKS and role.name.startswith("good"))
    storm = Storm(
        target,
        good,
        seconds=arguments.capacity_seconds,
        callers=arguments.callers,
        cores=arguments.client_cores,
    )
    with ProgressBar(f"{label:<18}") as bar:
        sent = send(storm, bar.show)
    judged = judge(sent.outcomes, good, scene.expected, sent.began_s + storm.seconds)
    return Capacity.of(scene, judged, storm.seconds), judged


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    if arguments.repository == REPOSITORY:
        build_packages([arguments.model])
    client_cores, server_cores = arguments.client_cores, arguments.server_cores
    if server_cores:
        os.sched_setaffinity(0, server_cores)
    server = _server(arguments)
    with server:
        if client_cores:
            os.sched_setaffinity(0, client_cores)
        target = parse_target(server.url)
        pid = server.pid
        scene = set_scene(target, arguments)
        before, _ = measure_capacity(target, scene, arguments, "capacity before")
        at_rest = settle(pid, server.url, _CALM_S)
        rate = arguments.factor * before.requests_per_s
        print(
            f"capacity: {before.requests_per_s:.1f} requests/s; offered now: {rate:.1f}/s for {arguments.seconds:g} s"
        )
        storm = Storm(
            target,
            scene.roles,
            seconds=arguments.seconds,
            callers=arguments.in_flight,
            rate_per_s=rate,
            seed=1,
            cores=client_cores,
        )
        with ProgressBar(f"{'storm':<18}") as bar, Killer(pid, arguments.kills_per_s) as killer:
            sent = send(storm, bar.show)
        judged = judge(sent.outcomes, scene.roles, scene.expected, sent.began_s + storm.seconds)
        goodput = Capacity.of(scene, judged, storm.seconds)
        after_storms = {"after the storm": settle(pid, server.url, _CALM_S)}
        for number in range(2, arguments.storms + 1):  # what one leaves for good it leaves again
            with ProgressBar(f"{f'storm {number}':<18}") as bar, Killer(pid, arguments.kills_per_s):
                send(replace(storm, seed=number), bar.show)
            after_storms[f"after storm {number}"] = settle(pid, server.url, _CALM_S)
        after, _ = measure_capacity(target, scene, arguments, "capacity after")
        at_end = settle(pid, server.url, _CALM_S)
        log = server.log_tail()
    counts = {"at rest": at_rest, **after_storms, "after the second capacity run": at_end}
    capacities = {"before": before, "during": goodput, "after": after}
    _print(capacities, judged, counts, sent, killer.killed)
    if judged.faults:
        print("\nfaults:", *judged.faults, "\nthe end of the server's log:", log, sep="\n")
    write_results(
        arguments.output,
        "chaos",
        {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()},
        {
            "offered_per_s": rate,
            "requests": len(sent.outcomes),
            "unsent": sent.unsent,
            "killed_workers": killer.killed,
            "capacity": {name: asdict(each) for name, each in capacities.items()},
            "verdicts": judged.verdicts,
            "statuses": dict(judged.statuses),
            "compared": judged.compared,
            "exact": judged.exact,
            "farthest": judged.farthest,
            "latency_ms": _latency_ms(judged),
            "generator": _generator(sent),
            "census": {name: asdict(each) for name, each in counts.items()},
            "faults": judged.faults,
        },
    )


def _latency_ms(judged: Judgement) -> dict[str, float]:
    found = percentiles(np.asarray(judged.latencies_s) * 1000)
    return asdict(found) if found else {}


def _generator(sent: Sent) -> dict[str, float]:
    late_ms = percentiles(np.asarray(sent.late_s) * 1000)
    return {
        "cpu_share": sent.cpu_s / sent.wall_s,
        "late_p50_ms": late_ms.p50 if late_ms else 0.0,
        "late_p99_ms": late_ms.p99 if late_ms else 0.0,
    }


def _print(
    capacities: dict[str, Capacity], judged: Judgement, counts: dict[str, Census], sent: Sent, killed: int
) -> None:
    before = capacities["before"]
    rows = [
        (
            name,
            f"{each.photos_per_s:.1f}",
            f"{each.videos_per_s:.2f}",
            f"{each.requests_per_s / before.requests_per_s:.3f}",
            f"{each.work / before.work:.3f}",
        )
        for name, each in capacities.items()
    ]
    print(text_table(("right and in time", "photos/s", "videos/s", "÷ before", "work ÷ before"), rows))
    print()
    table = [
        (who, what, f"{count:,}") for who, found in sorted(judged.verdicts.items()) for what, count in found.items()
    ]
    print(text_table(("client", "outcome", "requests"), table))
    broken = sum(judged.count(verdict) for verdict in BROKEN)
    print(f"\nbroken promises: {broken}; deadlines missed: {judged.count(Verdict.EXPIRED)}; workers killed: {killed}")
    print(
        f"answers compared with those when idle: {judged.compared:,}, {judged.exact:,} the same, "
        f"the farthest off by {judged.farthest:.2g}"
    )
    print(f"latency of right answers, ms: {_latency_ms(judged)}")
    print(f"generator: {_generator(sent)}, not sent: {sent.unsent}")
    held = [
        (
            name,
            f"{each.pss_mib:.0f}",
            f"{each.server_rss_mib:.0f}",
            str(each.descriptors),
            str(each.processes),
            str(each.media_workers),
            str(each.queue_rows),
            str(each.in_flight_rows),
            str(each.restarts),
            str(each.cancelled),
        )
        for name, each in counts.items()
    ]
    header = ("count", "MiB in all", "MiB server", "descriptors", "processes", "workers", "waiting", "in flight")
    print(text_table((*header, "restarts", "cancelled in"), held))


def _cores(text: str) -> tuple[int, ...]:
    return tuple(int(core) for core in text.split(",") if core)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="hiera_demo_objects")
    parser.add_argument("--video-model", default="hiera_demo_camera_motion")
    parser.add_argument("--repository", type=Path, default=Path("model_repo"))
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--video-share", type=float, default=0.0, help="of the files sent")
    parser.add_argument("--photos", type=int, default=24, help="different photos")
    parser.add_argument("--factor", type=float, default=5.0, help="times the capacity that the storm offers")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the storm")
    parser.add_argument("--storms", type=int, default=1, help="one after the other; the first one is judged")
    parser.add_argument("--capacity-seconds", type=float, default=15.0)
    parser.add_argument("--callers", type=int, default=8, help="in the closed loop that finds the capacity")
    parser.add_argument("--in-flight", type=int, default=1500, help="most requests of the storm at a time")
    parser.add_argument("--kills-per-s", type=float, default=0.3, help="media workers killed")
    parser.add_argument("--timeout-ms", type=int, default=2000, help="of photos")
    parser.add_argument("--video-timeout-ms", type=int, default=5000)
    parser.add_argument("--server-cores", type=_cores, default=(), help="CPUs of the server, as 0,1 (all)")
    parser.add_argument("--client-cores", type=_cores, default=(), help="CPUs of the clients (all)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the server")
    add_output_argument(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
