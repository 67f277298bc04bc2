"""The compose project, up: where its published ports are, and what may be asked of it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from docker_engine import compose, free_port, log_of
from sample_files import panning_video, photo

ROOT = Path(__file__).parents[2]


class Stack:
    """The server and Prometheus, as docker-compose.yml starts them."""

    def __init__(self) -> None:
        ports = {name: str(free_port()) for name in ("SERVER_PORT", "PROMETHEUS_PORT")}
        os.environ.update(ports, PUBLISH_ADDRESS="127.0.0.1")
        self.server = httpx.Client(base_url=f"http://127.0.0.1:{ports['SERVER_PORT']}", timeout=60)
        self.prometheus = httpx.Client(base_url=f"http://127.0.0.1:{ports['PROMETHEUS_PORT']}", timeout=30)
        self.ready_after_s = float("nan")

    def up(self) -> None:
        begin = time.monotonic()
        compose("up", "--detach", "--no-build", "server", "prometheus")
        self.wait_until_ready(180)
        self.ready_after_s = time.monotonic() - begin

    def down(self) -> None:
        self.server.close()
        self.prometheus.close()
        compose("down", "--volumes", "--timeout", "5")

    def is_ready(self) -> bool:
        try:
            return self.server.get("/health/ready").status_code == 200
        except httpx.HTTPError:
            return False

    def wait_until_ready(self, timeout_s: float) -> None:
        """Raises AssertionError, with the end of the server's log, if it does not get ready in time."""
        if not eventually(self.is_ready, timeout_s):
            raise AssertionError(f"not ready within {timeout_s:g} s:\n{log_of('server')[-4000:]}")

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an instant query finds.

        Raises:
            AssertionError: Prometheus refuses the query.
        """
        answer = self.prometheus.get("/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", f"{expression}: {answer.get('error')}"
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def classify(self, task: str, body: bytes, name: str, **query: Any) -> httpx.Response:
        return self.server.post(f"/classify/{task}", files={"file": (name, body)}, params=query)


def eventually(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Whether `condition` came true in time."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.25)
    return condition()


class Load:
    """A gentle, bounded load of photos, videos and a broken file now and then, in the background."""

    def __init__(self, stack: Stack, seconds: float) -> None:
        self._stack = stack
        self._end = time.monotonic() + seconds
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(3)]
        self.statuses: dict[int, int] = {}

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _send(self, number: int) -> None:
        picture, video = photo(), panning_video()
        turn = number
        while time.monotonic() < self._end and not self._stop.is_set():
            turn += 1
            if turn % 5 == 0:
                answer = self._stack.classify("video", video, "clip.mp4")
            elif turn % 7 == 0:
                answer = self._stack.classify("image", picture[: len(picture) // 3], "torn.jpg")
            else:
                answer = self._stack.classify("image", picture, "photo.jpg")
            self.statuses[answer.status_code] = self.statuses.get(answer.status_code, 0) + 1
            self._stop.wait(0.2)
