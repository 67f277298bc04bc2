"""SIGTERM on a real process that many callers keep busy: what it has taken in it answers, and the answers arrive."""

from __future__ import annotations

import http.client
import itertools
import json
import signal
import threading
import time
from collections.abc import Callable

import httpx
import pytest
from colours import BLUE, GREEN, RED, image_of
from running_server import RunningServer

StartServer = Callable[..., RunningServer]
CALLERS = 12
FILES = {"red": image_of(RED), "green": image_of(GREEN, (900, 700)), "blue": image_of(BLUE, (2000, 1500), "PNG")}


class Crowd:
    """Callers that send one request after the other until the server has gone.

    Attributes:
        answers: the status and the label, by request id.
    """

    def __init__(self, port: int) -> None:
        self.answers: dict[str, tuple[int, str]] = {}
        self._port = port
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(CALLERS)]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a caller waits for ever"

    def _call(self, caller: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        for number in itertools.count():
            label = list(FILES)[(caller + number) % len(FILES)]
            name = f"{caller}-{number}-{label}"
            if number % 5 == caller % 5:  # some connections are new, most are kept
                connection.close()
            try:
                connection.request("POST", "/classify/image", FILES[label], {"X-Request-ID": name})
                response = connection.getresponse()
                body = json.loads(response.read())
            except ConnectionRefusedError:
                return
            except (OSError, http.client.HTTPException):  # hung up on; what the server knew of it, its log says
                connection.close()
                continue
            named = body["predictions"][0]["label"] if response.status == 200 else body["code"]
            self.answers[name] = (response.status, named)


def taken_in(log: str) -> dict[str, int]:
    """The status of every classification that the server has dealt with, by request id."""
    lines = [json.loads(line) for line in log.splitlines() if '"/classify/image"' in line]
    return {line["request_id"]: line["status"] for line in lines if "method" in line}


def nothing_is_lost(crowd: Crowd, running: RunningServer) -> None:
    """What the server dealt with is what arrived: answered rightly, or refused because it shuts down."""
    assert {name: status for name, (status, _) in crowd.answers.items()} == taken_in(running.log)
    for name, (status, named) in crowd.answers.items():
        assert (status, named) in ((200, name.rpartition("-")[2]), (503, "draining")), (name, status, named)


@pytest.mark.parametrize("http_workers", [1, 2])
def test_whatever_was_taken_in_is_answered_and_the_answer_arrives(start_server: StartServer, http_workers: int) -> None:
    running = start_server(http_workers=http_workers, shutdown_grace_seconds=1, max_batch_rows=2).wait_until_ready()
    crowd = Crowd(running.port)
    while len(crowd.answers) < 50:
        time.sleep(0.01)
    running.process.send_signal(signal.SIGTERM)
    running.wait_for("draining")
    before = len(crowd.answers)
    ready = httpx.get(f"{running.url}/health/ready")
    assert (ready.status_code, ready.json()["detail"]) == (503, "the server is shutting down.")
    assert running.process.wait(60) == 0, running.log
    crowd.join()
    assert len(crowd.answers) > before  # within the grace
    assert "not finished" not in running.log
    assert "did not finish" not in running.log
    nothing_is_lost(crowd, running)


def test_a_second_signal_ends_the_grace_under_load_and_nothing_is_lost(start_server: StartServer) -> None:
    running = start_server(shutdown_grace_seconds=600).wait_until_ready()
    crowd = Crowd(running.port)
    while len(crowd.answers) < 20:
        time.sleep(0.01)
    running.process.send_signal(signal.SIGTERM)
    running.wait_for("draining")
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(60) == 0, running.log
    crowd.join()
    nothing_is_lost(crowd, running)
