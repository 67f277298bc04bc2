# mypy: ignore-errors
"""deploy/ray under load on a real local Ray: one of two replicas killed, one grown to two, two beside one (`run.sh`).

Prints what was measured. Exit status 1 if a retrying client noticed anything, or Ray did not bring the replicas back.
"""

from __future__ import annotations

import argparse
import http.client
import os
import signal
import statistics
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import ray
from ray import serve

from app.load.generator import Workload
from app.load.isolated import run_isolated
from app.load.request import raw_request
from app.load.server import free_port
from app.load.target import parse_target
from deploy.ray.application import Arguments, build

PHOTO = Path(__file__).parents[3] / "app" / "load" / "sample.jpg"
ATTEMPTS = 8
FIRST_PAUSE_S = 0.1
PATIENCE_S = 300.0
CALLERS = 16


def replica_pids() -> set[int]:
    """The processes of the replicas, which Ray names after their deployment."""
    pids = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if b"ServeReplica:hiera" in (entry / "cmdline").read_bytes():
                    pids.add(int(entry.name))
            except OSError:
                continue  # it ended meanwhile
    return pids


def running_replicas() -> int:
    application = serve.status().applications.get("hiera")
    states = application.deployments["hiera"].replica_states if application else {}
    return states.get("RUNNING", 0)


def wait_for_replicas(count: int, timeout_s: float = PATIENCE_S) -> float:
    """Seconds until exactly `count` replicas run."""
    begin = time.monotonic()
    while running_replicas() != count:
        if time.monotonic() - begin > timeout_s:
            sys.exit(f"{running_replicas()} replicas instead of {count} after {timeout_s:g} s: {serve.status()}")
        time.sleep(0.1)
    return time.monotonic() - begin


class Client:
    """Callers that send a photo again and again, and try again, after growing pauses, where it was not answered."""

    def __init__(self, port: int, body: bytes, callers: int) -> None:
        self._port = port
        self._body = body
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(callers)]
        self.first_tries: Counter[str] = Counter()
        self.given_up: list[str] = []
        self.answered = 0
        self.slowest_s = 0.0

    def __enter__(self) -> Client:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _call(self) -> None:
        while not self._stop.is_set():
            begin = time.monotonic()
            pause_s = FIRST_PAUSE_S
            for attempt in range(ATTEMPTS):
                outcome = self._try_once()
                if attempt == 0:
                    self.first_tries[outcome] += 1
                if outcome == "200":
                    self.answered += 1
                    self.slowest_s = max(self.slowest_s, time.monotonic() - begin)
                    break
                time.sleep(pause_s)
                pause_s *= 2
            else:
                self.given_up.append(outcome)

    def _try_once(self) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request("POST", "/classify/image", self._body, {"content-type": "image/jpeg"})
            answer = connection.getresponse()
            answer.read()
            return str(answer.status)
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__
        finally:
            connection.close()


class House:
    """A local Ray with the application."""

    def __init__(self, repository: Path, model: str | None) -> None:
        self.port = free_port()
        self._settings = {
            "model_repository": str(repository.resolve()), "engine": "onnxruntime", "log_level": "warning",
        }  # fmt: skip
        if model:
            self._settings["default_image_model"] = model

    def run(self, least: int, most: int) -> None:
        """Deploy afresh, with replicas of one core each."""
        if "hiera" in serve.status().applications:
            serve.delete("hiera")
        arguments = Arguments(
            cpus=1, min_replicas=least, max_replicas=most, target_ongoing_requests=4, upscale_delay_s=1,
            downscale_delay_s=600, settings=self._settings,
        )  # fmt: skip
        serve.run(build(arguments.model_dump()), name="hiera", route_prefix="/")
        wait_for_replicas(least)

    def throughput(self, body: bytes, seconds: float) -> float:
        """Photos a second, answered 200, with sixteen callers."""
        target = parse_target(f"http://127.0.0.1:{self.port}")
        request = raw_request(target, "/classify/image", body, content_type="image/jpeg")
        samples = run_isolated(Workload(target, (request,), CALLERS, seconds, warmup_s=2.0))
        answered = sum(status == 200 for status in samples.status)
        if answered != len(samples.status):
            sys.exit(f"statuses of a quiet run: {Counter(samples.status)}; {samples.bodies}")
        return answered / samples.seconds


def compare(house: House, body: bytes, rounds: int, seconds: float) -> None:
    """Throughput of two replicas beside one, in turns."""
    ratios = []
    for number in range(rounds):
        rates = {}
        for replicas in (1, 2) if number % 2 == 0 else (2, 1):
            house.run(replicas, replicas)
            rates[replicas] = house.throughput(body, seconds)
        ratios.append(rates[2] / rates[1])
        print(
            f"round {number + 1}: one replica {rates[1]:.1f}/s, two {rates[2]:.1f}/s: {ratios[-1]:.2f} times",
            flush=True,
        )
    print(f"two replicas beside one: {statistics.median(ratios):.2f} times ({min(ratios):.2f} to {max(ratios):.2f})")


def kill_one_of_two(house: House, body: bytes, seconds: float) -> bool:
    house.run(2, 2)
    with Client(house.port, body, callers=6) as client:
        time.sleep(seconds / 2)
        before = replica_pids()
        os.kill(min(before), signal.SIGKILL)
        while running_replicas() == 2:
            time.sleep(0.05)
        back_s = wait_for_replicas(2)
        time.sleep(seconds / 2)
    failed = {outcome: count for outcome, count in client.first_tries.items() if outcome != "200"}
    print(
        f"one of two replicas killed: {client.answered} requests answered, first tries that failed {failed or 'none'}, "
        f"slowest answer {client.slowest_s:.1f} s, given up {len(client.given_up)}; two again {back_s:.1f} s later"
    )
    return not client.given_up and min(before) not in replica_pids()


def grow(house: House, body: bytes) -> bool:
    house.run(1, 2)
    with Client(house.port, body, callers=CALLERS) as client:
        grown_s = wait_for_replicas(2)
    failed = {outcome: count for outcome, count in client.first_tries.items() if outcome != "200"}
    print(
        f"one replica under {CALLERS} callers: two after {grown_s:.1f} s, {client.answered} requests answered, "
        f"first tries that failed {failed or 'none'}"
    )
    return not client.given_up


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repository", type=Path, nargs="?", default=Path("model_repo"))
    parser.add_argument("--model", help="that answers; the repository's default without it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    house, body = House(arguments.repository, arguments.model), PHOTO.read_bytes()
    # CPUs that may be reserved; the machine has as many as it has.
    ray.init(num_cpus=3, object_store_memory=100_000_000, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": house.port}, logging_config={"enable_access_log": False})
        survived = kill_one_of_two(house, body, arguments.seconds)
        grown = grow(house, body)
        compare(house, body, arguments.rounds, arguments.seconds)
    finally:
        serve.shutdown()
        ray.shutdown()
    return 0 if survived and grown else 1


if __name__ == "__main__":
    sys.exit(main())
