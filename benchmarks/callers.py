"""A caller with few requests beside one with many: what the first gets, with the same API key and with one of its own.

The many send photos over `--many` connections without a pause, the few over `--few`; nobody sets a time limit. In
rounds: the few alone, both with one key, and each with its own.

    python -m benchmarks.callers --engine auto --many 64 --few 1
"""

from __future__ import annotations

import argparse

from app.load.generator import Workload
from app.load.request import classify_request
from app.load.summary import Summary
from app.load.target import Target, parse_target
from benchmarks.contenders import MODEL
from benchmarks.own_server import own_server
from benchmarks.packages import REPOSITORY, build_packages
from benchmarks.together import add_arguments, report, run_together

_WARMUP_S = 3.0  # until the queue of the many stands
_KEYS = {"alice": "secret-of-alice", "bob": "secret-of-bob"}


def workload(target: Target, arguments: argparse.Namespace, seed: int, key: str, connections: int) -> Workload:
    """Photos without a pause, from the caller with that key."""
    request = classify_request(target, arguments.photo, model=MODEL, api_key=_KEYS[key])
    return Workload(target, (request,), connections, arguments.seconds, warmup_s=_WARMUP_S, seed=seed)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--many", type=int, default=64, help="connections of the caller with many requests")
    parser.add_argument("--few", type=int, default=1, help="connections of the one with few")
    arguments = parser.parse_args()
    build_packages([MODEL])
    scenes = {"alone": ("few",), "one key": ("few", "many"), "a key each": ("few", "many")}
    runs: dict[str, list[Summary]] = {f"{who}, {scene}": [] for scene, present in scenes.items() for who in present}
    keys = ",".join(f"{name}:{secret}" for name, secret in _KEYS.items())
    with own_server(REPOSITORY, arguments.engine, arguments.set, api_keys=keys) as server:
        target = parse_target(server.url)
        for number in range(arguments.rounds):
            for scene, present in scenes.items():
                few_key = "alice" if scene == "one key" else "bob"
                loads = {"few": workload(target, arguments, number, few_key, arguments.few)}
                if "many" in present:
                    loads["many"] = workload(target, arguments, number, "alice", arguments.many)
                for who, summary in run_together(loads).items():
                    runs[f"{who}, {scene}"].append(summary)
    report("callers", runs, arguments, "many", "few")


if __name__ == "__main__":
    main()
