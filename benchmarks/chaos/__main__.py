"""Capacity, then five times as much for a minute among hostile clients and killed workers, then capacity again.

    python -m benchmarks.chaos --model hiera_tiny_224 --rounds 3

1. Every file is sent alone: its answer when idle is what all later ones are compared with.
2. Capacity: a closed loop of well-behaved clients, from the same generator, with good files; and with good and bad ones
   in the storm's proportion.
3. The storm: an open loop at `--factor` times the capacity for good files; a tenth of the clients leave, trickle or
   stall, a tenth send bad files, and media workers are killed by chance.
4. Calm, then the capacity again, which tells drift of the machine from damage by the storm.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from app.load.progress import ProgressBar
from app.load.target import Target, parse_target
from benchmarks.chaos.census import settle
from benchmarks.chaos.clients import Role
from benchmarks.chaos.killer import Killer
from benchmarks.chaos.report import Round, as_document, print_report
from benchmarks.chaos.scene import Rate, Scene, set_scene
from benchmarks.chaos.storm import Storm, send
from benchmarks.chaos.verdict import judge
from benchmarks.own_server import add_server_arguments, own_server
from benchmarks.packages import REPOSITORY, build_packages
from benchmarks.results import add_output_argument, write_results

_CALM_S = 12.0  # the server tidies up within half of it
_DEMOS = Path("model_repo")


def _repository(arguments: argparse.Namespace) -> Path:
    """The one that was named, that of the demo models if the model is one, else the benchmarks' own."""
    if arguments.repository is not None:
        return Path(arguments.repository)
    if (_DEMOS / arguments.model).is_dir():
        return _DEMOS
    build_packages([arguments.model])
    return REPOSITORY


def measure_capacity(
    target: Target, scene: Scene, roles: tuple[Role, ...], arguments: argparse.Namespace, label: str
) -> Rate:
    """What well-behaved clients get in a closed loop."""
    storm = Storm(
        target, roles, seconds=arguments.capacity_seconds, callers=arguments.callers, cores=arguments.client_cores
    )
    with ProgressBar(f"{label:<18}") as bar:
        sent = send(storm, bar.show)
    return Rate.of(scene, judge(sent.outcomes, roles, scene.expected, sent.began_s + storm.seconds), storm.seconds)


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    client_cores, server_cores = arguments.client_cores, arguments.server_cores
    all_cores = os.sched_getaffinity(0)
    if server_cores:
        os.sched_setaffinity(0, server_cores)
    server = own_server(_repository(arguments), arguments.engine, arguments.set)
    with server:
        os.sched_setaffinity(0, client_cores or all_cores)  # the server, and what it starts, keep theirs
        target = parse_target(server.url)
        scene = set_scene(target, arguments)

        def capacity(label: str, roles: tuple[Role, ...] = scene.asking) -> Rate:
            return measure_capacity(target, scene, roles, arguments, label)

        before = capacity("capacity")
        at_rest = settle(server.pid, server.url, _CALM_S)
        rounds: list[Round] = []
        for number in range(1, arguments.rounds + 1):
            mixed = capacity("with bad files", scene.asking_with_bad_files)
            storm = Storm(
                target,
                scene.roles,
                seconds=arguments.seconds,
                callers=arguments.in_flight,
                rate_per_s=arguments.factor * before.good_per_s,
                seed=number,
                cores=client_cores,
            )
            with ProgressBar(f"{f'storm {number}':<18}") as bar, Killer(server.pid, arguments.kills_per_s) as killer:
                sent = send(storm, bar.show)
            judged = judge(sent.outcomes, scene.roles, scene.expected, sent.began_s + storm.seconds)
            census = settle(server.pid, server.url, _CALM_S)
            during, after = Rate.of(scene, judged, storm.seconds), capacity("capacity")
            offered_per_s = storm.rate_per_s or 0.0
            rounds.append(Round(before, mixed, during, after, offered_per_s, judged, sent, killer.killed, census))
            before = after
        at_end = settle(server.pid, server.url, _CALM_S)
        log = server.log_tail()
    print_report(rounds, at_rest, at_end)
    faults = [fault for each in rounds for fault in each.judged.faults]
    if faults:
        print("\nfaults:", *faults, "\nthe end of the server's log:", log, sep="\n")
    write_results(arguments.output, "chaos", vars(arguments), as_document(rounds, at_rest, at_end))


def _cores(text: str) -> tuple[int, ...]:
    return tuple(int(core) for core in text.split(",") if core)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="hiera_demo_objects")
    parser.add_argument("--video-model", default="hiera_demo_camera_motion")
    parser.add_argument("--repository", type=Path, help="folder of packages (that of the model, made if need be)")
    parser.add_argument("--video-share", type=float, default=0.0, help="of the files sent")
    parser.add_argument("--photos", type=int, default=24, help="different photos")
    parser.add_argument("--factor", type=float, default=5.0, help="times the capacity that the storm offers")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the storm")
    parser.add_argument("--rounds", type=int, default=1, help="storms on the same server, one after the other")
    parser.add_argument("--capacity-seconds", type=float, default=15.0)
    parser.add_argument("--callers", type=int, default=8, help="in the closed loop that finds the capacity")
    parser.add_argument("--in-flight", type=int, default=1500, help="most requests of the storm at a time")
    parser.add_argument("--kills-per-s", type=float, default=0.3, help="media workers killed")
    parser.add_argument("--timeout-ms", type=int, default=2000, help="of photos")
    parser.add_argument("--video-timeout-ms", type=int, default=5000)
    parser.add_argument("--server-cores", type=_cores, default=(), help="CPUs of the server, as 0,1 (all)")
    parser.add_argument("--client-cores", type=_cores, default=(), help="CPUs of the clients (all)")
    add_server_arguments(parser)
    add_output_argument(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
