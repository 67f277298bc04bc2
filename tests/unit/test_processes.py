"""How the engine host keeps its HTTP workers, with processes that stand for them."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from app import processes
from app.http_worker import WRONG_SETTING_STATUS
from app.processes import EngineHost
from app.settings import Settings

PATIENCE_S = 20.0
Scene = Callable[[EngineHost], Awaitable[None]]
Spawned = tuple[socket.socket, "subprocess.Popen[bytes]", int]


def hosting(tmp_path: Path, scene: Scene) -> None:
    """Run a scene with a host that has loaded nothing."""

    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            host = EngineHost(Settings(http_workers=2, model_repository=tmp_path), listener, lambda: None)
            async with asyncio.timeout(PATIENCE_S):
                await scene(host)
            host._stop_accepting()
            host._table.close()
            host._registry.close(1.0)
            os.close(host._board)

    asyncio.run(scenario())


def ends_with(status: int) -> Callable[[int], Spawned]:
    """A worker that ends at once."""

    def spawn(line: int) -> Spawned:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-S", "-c", f"raise SystemExit({status})"]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()
        return ours, process, os.pidfd_open(process.pid)

    return spawn


def no_room(line: int) -> Spawned:
    raise OSError(24, "Too many open files")


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("spawn", [ends_with(1), no_room])
def test_a_drain_does_not_wait_until_a_lost_worker_would_be_replaced(
    spawn: Callable[[int], Spawned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_FIRST_PAUSE_S", 30.0)  # longer than the patience of this test

    async def scene(host: EngineHost) -> None:
        monkeypatch.setattr(host, "_spawn", spawn)
        keeper = asyncio.create_task(host._keep(host._places[0]))
        await until(lambda: host._places[0].losses == 1)
        host._draining.set()
        await keeper
        assert host._status == 0

    hosting(tmp_path, scene)


def test_a_setting_that_turns_wrong_while_the_server_serves_costs_no_more_than_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_FIRST_PAUSE_S", 0.01)

    async def scene(host: EngineHost) -> None:
        monkeypatch.setattr(host, "_spawn", ends_with(WRONG_SETTING_STATUS))
        host._has_served = True
        keeper = asyncio.create_task(host._keep(host._places[0]))
        await until(lambda: host._places[0].losses == 3)
        assert not host._stopping.is_set()
        host._draining.set()
        await keeper
        assert host._status == 0

    hosting(tmp_path, scene)


def test_a_setting_that_is_wrong_at_the_start_ends_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(host: EngineHost) -> None:
        monkeypatch.setattr(host, "_spawn", ends_with(WRONG_SETTING_STATUS))
        await host._keep(host._places[0])
        assert host._stopping.is_set()
        assert host._status == WRONG_SETTING_STATUS

    hosting(tmp_path, scene)


class StillWorker:
    """A worker's session and process: it has last been heard of `silent_s` ago, and says nothing more."""

    def __init__(self, silent_s: float) -> None:
        self.serving, self.unhealthy = True, None
        self.heard = time.monotonic() - silent_s
        self.asked = 0
        self.killed = False

    def show_models(self) -> None:
        pass

    def show_state(self, state: object) -> None:
        self.asked += 1

    def kill(self) -> None:
        self.killed = True


@pytest.mark.parametrize(
    ("told_s", "killed"),
    [
        (1.0, [True, False, False]),  # asked each second
        (25.0, [False, False, False]),  # the whole server stood still for 24 s
        (6.0, [True, False, False]),  # a short stop spares nobody who was silent for long enough besides
    ],
)
def test_silence_counts_only_while_somebody_asks(told_s: float, killed: list[bool], tmp_path: Path) -> None:
    async def scene(host: EngineHost) -> None:
        workers = [StillWorker(silent_s) for silent_s in (26.0, 18.0, 0.0)]
        for place, worker in zip(host._places, workers, strict=False):
            stand_in: Any = worker
            place.session, place.process = stand_in, stand_in
        host._places.append(processes._Place(2, workers[2], workers[2]))  # type: ignore[arg-type]
        host._told = time.monotonic() - told_s
        looking = asyncio.create_task(host._look())
        await until(lambda: all(worker.asked for worker in workers))
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        assert [worker.killed for worker in workers] == killed

    hosting(tmp_path, scene)


def test_a_fault_of_the_hosts_own_tasks_ends_it_and_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        raise RuntimeError("can't start new thread")

    async def scenario() -> int:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            host = EngineHost(Settings(http_workers=2, model_repository=tmp_path), listener, lambda: None)
            monkeypatch.setattr(host, "_look", fail)
            monkeypatch.setattr(host, "_spawn", no_room)
            async with asyncio.timeout(PATIENCE_S):
                status = await host.run()
            os.close(host._board)
            return status

    assert asyncio.run(scenario()) == 1
    assert "a fault of the server's own ends it" in caplog.text
    assert "can't start new thread" in caplog.text
