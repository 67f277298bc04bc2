"""How the engine host keeps its HTTP workers, with processes that stand for them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import open_descriptors

from app import processes
from app.http_worker import WRONG_SETTING_STATUS
from app.processes import EngineHost
from app.serving.board import AdmissionBoard
from app.serving.changes import Order
from app.serving.demand import InFlight
from app.serving.wire import State
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


@pytest.fixture
def sleepers() -> Iterator[list[tuple[socket.socket, subprocess.Popen[bytes]]]]:
    """The workers that `never_ends` has started, each with the far end of its channel."""
    started: list[tuple[socket.socket, subprocess.Popen[bytes]]] = []
    yield started
    for theirs, process in started:
        theirs.close()
        process.kill()
        process.wait()


def never_ends(sleepers: list[tuple[socket.socket, subprocess.Popen[bytes]]]) -> Callable[[int], Spawned]:
    """A worker that neither says nor does anything."""

    def spawn(line: int) -> Spawned:
        ours, theirs = socket.socketpair()
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
        )  # longer than the patience
        sleepers.append((theirs, process))
        return ours, process, os.pidfd_open(process.pid)

    return spawn


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


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


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

    def __init__(self, silent_s: float = 0.0, serving: bool = True) -> None:
        self.serving = serving
        self.unhealthy: str | None = None
        self.heard = time.monotonic() - silent_s
        self.asked = 0
        self.killed = False
        self.shown = 0
        self.shown_when_asked: list[int] = []
        self.reported: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.given: list[socket.socket] = []

    def show_models(self) -> None:
        self.shown += 1

    def show_state(self, state: object) -> None:
        self.asked += 1

    def report(self) -> asyncio.Future[None]:
        self.shown_when_asked.append(self.shown)
        return self.reported

    def give(self, connection: socket.socket) -> None:
        self.given.append(connection)

    def kill(self) -> None:
        self.killed = True


def seat(host: EngineHost, workers: list[StillWorker]) -> None:
    """Have the first of `workers` in the places of `host`."""
    for place, worker in zip(host._places, workers, strict=False):
        stand_in: Any = worker
        place.session, place.process = stand_in, stand_in


@pytest.mark.parametrize(
    ("told_s", "killed"),
    [
        (1.0, [True, False, False]),  # asked each second
        (25.0, [False, False, False]),  # the whole server stood still for 24 s
        (6.0, [True, False, False]),  # a short stop spares nobody who was silent for long enough besides
        (9.0, [False, False, False]),  # and the others for as long as it was
    ],
)
def test_silence_counts_only_while_somebody_asks(told_s: float, killed: list[bool], tmp_path: Path) -> None:
    async def scene(host: EngineHost) -> None:
        workers = [StillWorker(silent_s) for silent_s in (26.0, 18.0, 0.0)]
        seat(host, workers)
        host._places.append(processes._Place(2, workers[2], workers[2]))  # type: ignore[arg-type]
        host._told = time.monotonic() - told_s
        looking = asyncio.create_task(host._look())
        await until(lambda: all(worker.asked for worker in workers))
        await stop(looking)
        assert [worker.killed for worker in workers] == killed
        assert all(worker.heard <= time.monotonic() for worker in workers)  # else the next silence were longer

    hosting(tmp_path, scene)


def test_a_worker_that_is_being_started_may_be_silent_for_longer(tmp_path: Path) -> None:
    async def scene(host: EngineHost) -> None:
        workers = [StillWorker(silent_s, serving=False) for silent_s in (30.0, 70.0)]
        seat(host, workers)
        host._end_silent(time.monotonic())
        assert [worker.killed for worker in workers] == [False, True]

    hosting(tmp_path, scene)


@pytest.mark.parametrize("task", ["_look", "_keep"])
def test_a_fault_of_the_hosts_own_tasks_ends_it_and_is_logged(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    async def scenario() -> int:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            host = EngineHost(Settings(http_workers=2, model_repository=tmp_path), listener, lambda: None)
            monkeypatch.setattr(host, "_spawn", no_room)
            monkeypatch.setattr(host, task, fail)
            async with asyncio.timeout(PATIENCE_S):
                status = await host.run()
            os.close(host._board)
            return status

    assert asyncio.run(scenario()) == 1
    assert "a fault of the server's own ends it" in caplog.text
    assert "can't start new thread" in caplog.text


def test_a_server_ends_although_its_workers_do_not(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    sleepers: list[tuple[socket.socket, subprocess.Popen[bytes]]],
) -> None:
    monkeypatch.setattr(processes, "_CLEAN_UP_S", 0.0)
    bounds: dict[str, Any] = {"shutdown_grace_seconds": 0.0, "shutdown_timeout_seconds": 0.01}
    settings = Settings(http_workers=2, model_repository=tmp_path, watch_seconds=60.0, **bounds)
    of_others = set(threading.enumerate())

    def watches() -> list[threading.Thread]:
        return [each for each in threading.enumerate() if each.name == "watch-repository" and each not in of_others]

    async def scenario() -> int:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            host = EngineHost(settings, listener, lambda: None)
            monkeypatch.setattr(host, "_spawn", never_ends(sleepers))
            async with asyncio.timeout(PATIENCE_S):
                running = asyncio.create_task(host.run())
                await until(lambda: all(place.process for place in host._places))
                await until(lambda: bool(watches()))
                host._drain.signalled(signal.SIGTERM)
                status = await running
                await until(lambda: not watches())
            os.close(host._board)
            return status

    assert asyncio.run(scenario()) == 0
    assert [process.returncode for _, process in sleepers] == [-signal.SIGKILL] * 2
    assert caplog.text.count("did not end in time and is killed") == 2
    assert "Exception" not in caplog.text


def test_a_worker_that_ends_in_a_drain_is_no_loss(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    sleepers: list[tuple[socket.socket, subprocess.Popen[bytes]]],
) -> None:
    async def scene(host: EngineHost) -> None:
        monkeypatch.setattr(host, "_spawn", never_ends(sleepers))
        keeper = asyncio.create_task(host._keep(host._places[0]))
        await until(lambda: host._places[0].process is not None)
        host._begin_drain()
        session = host._places[0].session
        assert session is not None
        session.serving = True
        theirs, process = sleepers[0]
        theirs.shutdown(socket.SHUT_RDWR)
        await until(lambda: not session.serving)  # it has been heard to hang up
        for _ in range(10):
            await asyncio.sleep(0)
        process.terminate()
        await keeper
        assert process.returncode == -signal.SIGTERM  # it had all the time that it needed
        assert host._places[0].losses == 0

    hosting(tmp_path, scene)
    assert "HTTP worker" not in caplog.text


def test_a_lost_worker_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_FIRST_PAUSE_S", 0.01)

    async def scene(host: EngineHost) -> None:
        mine, other = (AdmissionBoard(host._board, 2, line) for line in (0, 1))
        mine.publish(InFlight(3, 300), {"cpu": 1.5})
        other.publish(InFlight(5, 500), {"cpu": 2.5})
        monkeypatch.setattr(host, "_spawn", ends_with(1))
        before = open_descriptors()
        place = host._places[0]
        keeper = asyncio.create_task(host._keep(place))
        await until(lambda: place.losses >= 3)
        host._draining.set()
        await keeper
        assert (place.process, place.session) == (None, None)
        assert open_descriptors() == before
        assert (other.in_flight(), other.backlog_s("cpu")) == (InFlight(0, 0), 0.0)
        assert (mine.in_flight(), mine.backlog_s("cpu")) == (InFlight(5, 500), 2.5)

    hosting(tmp_path, scene)


@pytest.mark.parametrize("ends", ["channel", "process"])
def test_a_worker_is_lost_once_it_hangs_up_or_its_process_ends(
    ends: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sleepers: list[tuple[socket.socket, subprocess.Popen[bytes]]],
) -> None:
    monkeypatch.setattr(processes, "_FIRST_PAUSE_S", 0.01)

    async def scene(host: EngineHost) -> None:
        monkeypatch.setattr(host, "_spawn", never_ends(sleepers))
        keeper = asyncio.create_task(host._keep(host._places[0]))
        for lost in (1, 2):  # the second takes over the descriptors of the first
            await until(lambda lost=lost: len(sleepers) == lost)  # type: ignore[misc]
            theirs, process = sleepers[-1]
            if ends == "channel":
                theirs.shutdown(socket.SHUT_RDWR)
            else:  # while something that it has left behind has the channel still
                process.terminate()
            await until(lambda lost=lost: host._places[0].losses == lost)  # type: ignore[misc]
            assert process.returncode == (-signal.SIGKILL if ends == "channel" else -signal.SIGTERM)
            theirs.setblocking(False)
            assert theirs.recv(1) == b""
            theirs.close()
        host._draining.set()
        await keeper

    hosting(tmp_path, scene)


def test_losses_count_together_only_where_they_follow_each_other_closely(tmp_path: Path) -> None:
    async def scene(host: EngineHost) -> None:
        place = host._places[0]
        now = time.monotonic()
        assert [host._count_loss(place, now) for _ in range(3)] == [0.5, 1.0, 2.0]
        assert host._count_loss(place, now - 31) == 0.5
        assert host._count_loss(place, now) == 1.0

    hosting(tmp_path, scene)


def test_a_worker_that_cannot_be_watched_is_not_left_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def none_left(pid: int) -> int:
        started.append(pid)
        raise OSError(24, "Too many open files")

    async def scene(host: EngineHost) -> None:
        before = open_descriptors()
        with monkeypatch.context() as full:
            full.setattr(os, "pidfd_open", none_left)
            with pytest.raises(OSError, match="Too many") as refusal:
                host._spawn(0)
        assert not Path(f"/proc/{started[0]}").exists()
        assert open_descriptors() == before, refusal  # while its traceback is held

    hosting(tmp_path, scene)


@contextlib.contextmanager
def input_from(path: Path) -> Iterator[None]:
    """Have `path` as this process's standard input."""
    kept, other = os.dup(0), os.open(path, os.O_RDONLY)
    os.dup2(other, 0)
    try:
        yield
    finally:
        os.dup2(kept, 0)
        os.close(kept)
        os.close(other)


def test_a_worker_is_started_apart_from_the_terminal_with_the_hosts_code_and_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, said = tmp_path / "there", tmp_path / "said"
    there.mkdir()
    (there / "sitecustomize.py").write_text(
        "import json, os, sys\n"
        "seen = [os.getpgid(0) == os.getpid(), os.readlink('/proc/self/fd/0'), sys.flags.safe_path, sys.path[:2]]\n"
        f"open({str(said)!r}, 'w').write(json.dumps(seen))\n"
        "os._exit(0)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(there))

    async def scene(host: EngineHost) -> None:
        before = open_descriptors()
        with input_from(there):
            channel, process, watch = host._spawn(0)
        try:
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
            process.wait()
        assert open_descriptors() == before + 2
        channel.settimeout(PATIENCE_S)
        assert channel.recv(1) == b""  # nobody else holds the other end
        channel.close()
        os.close(watch)

    hosting(tmp_path, scene)
    root = str(Path(processes.__file__).resolve().parent.parent)
    assert json.loads(said.read_text()) == [True, os.devnull, True, [root, str(there)]]


def test_connections_wait_while_no_worker_takes_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    async def scene(host: EngineHost) -> None:
        monkeypatch.setattr(host, "_on_serving", lambda: told.append("serving"))
        worker = StillWorker(serving=False)
        seat(host, [worker])
        looking = asyncio.create_task(host._look())
        with socket.create_connection(host._listener.getsockname()):
            await until(lambda: worker.asked > 0)
            assert (worker.given, told) == ([], [])
            worker.serving = True
            await until(lambda: len(worker.given) == 1)
        worker.serving = False
        with socket.create_connection(host._listener.getsockname()):
            await until(lambda: not host._accepting)  # rather than be told of it without end
            assert len(worker.given) == 1
            worker.serving = True
            await until(lambda: len(worker.given) == 2)
        await stop(looking)
        for connection in worker.given:
            connection.close()

    hosting(tmp_path, scene)
    assert told == ["serving"]


@pytest.mark.parametrize(
    ("error", "goes_on"),
    [
        (ConnectionAbortedError(103, "Software caused connection abort"), True),  # the caller has gone already
        (OSError(24, "Too many open files"), False),  # till the next look; the listener stays readable meanwhile
    ],
)
def test_a_connection_that_cannot_be_accepted_ends_nothing(
    error: OSError,
    goes_on: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Listener:
        """The listener, but `accept` fails."""

        def __init__(self, listener: socket.socket) -> None:
            self.fileno = listener.fileno

        def accept(self) -> None:
            raise error

    async def scene(host: EngineHost) -> None:
        worker = StillWorker()
        seat(host, [worker])
        looking = asyncio.create_task(host._look())
        await until(lambda: host._accepting)
        with monkeypatch.context() as full:
            full.setattr(host, "_listener", Listener(host._listener))
            host._accept()
            assert host._accepting == goes_on
        with socket.create_connection(host._listener.getsockname()):
            await until(lambda: len(worker.given) == 1)
        await stop(looking)
        worker.given[0].close()

    hosting(tmp_path, scene)
    assert ("connections cannot be accepted: [Errno 24]" in caplog.text) != goes_on


def test_no_connection_is_taken_once_the_server_stops(tmp_path: Path) -> None:
    async def scene(host: EngineHost) -> None:
        worker = StillWorker()
        seat(host, [worker])
        host._stopping.set()
        looking = asyncio.create_task(host._look())
        await until(lambda: worker.asked > 0)
        assert not host._accepting
        await stop(looking)

    hosting(tmp_path, scene)


def test_a_change_is_answered_once_every_worker_that_serves_has_taken_it_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_REPORT_TIMEOUT_S", 3600.0)
    order: Any = "an order"
    let_go: list[tuple[int, int]] = []

    async def obey(given: Order) -> Any:
        return f"done: {given}"

    async def scene(host: EngineHost) -> None:
        serving, starting = StillWorker(), StillWorker(serving=False)
        seat(host, [serving, starting])
        monkeypatch.setattr(host._rollout, "administer", obey)
        monkeypatch.setattr(host._table, "refresh", lambda: True)
        monkeypatch.setattr(host._table, "let_go", lambda: let_go.append((serving.shown, starting.shown)))
        change = asyncio.create_task(host._administer(order))
        await until(lambda: bool(serving.shown_when_asked))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not change.done()
        serving.reported.set_result(None)
        assert str(await change) == "done: an order"
        assert (serving.shown_when_asked, starting.shown_when_asked) == ([1], [])
        assert let_go == [(1, 1)]  # what is no longer in the table, once all have been shown that

    hosting(tmp_path, scene)


def test_a_worker_that_does_not_report_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_REPORT_TIMEOUT_S", 0.01)

    async def scene(host: EngineHost) -> None:
        worker = StillWorker()
        seat(host, [worker])
        await host._hear_all()
        assert worker.shown_when_asked == [0]

    hosting(tmp_path, scene)


def test_the_workers_are_told_of_a_turn_at_once_and_asked_every_so_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = [State("not yet", None, {})]

    async def scene(host: EngineHost) -> None:
        worker = StillWorker()
        seat(host, [worker])
        monkeypatch.setattr(host._table, "state", lambda _: states[-1])
        host._state, host._told = states[0], time.monotonic()
        looking = asyncio.create_task(host._look())
        await until(lambda: host._accepting)  # it has looked once
        assert worker.asked == 0
        for turns, state in enumerate((State(None, None, {}), State(None, "hopeless", {})), start=1):
            states.append(state)
            await until(lambda turns=turns: worker.asked == turns)  # type: ignore[misc]
        monkeypatch.setattr(processes, "_BEAT_S", 0.0)
        await until(lambda: worker.asked >= 4)
        await stop(looking)

    monkeypatch.setattr(processes, "_BEAT_S", 3600.0)
    hosting(tmp_path, scene)


def test_the_workers_are_well_when_each_of_them_is(tmp_path: Path) -> None:
    async def scene(host: EngineHost) -> None:
        first, second = StillWorker(), StillWorker(serving=False)
        seat(host, [first])
        assert host._workers_reason() == "an HTTP worker is being started"
        seat(host, [first, second])
        assert host._workers_reason() == "an HTTP worker is being started"
        second.serving, second.unhealthy = True, "no decoder"
        assert host._workers_reason() == "no decoder"
        second.unhealthy = None
        assert host._workers_reason() is None

    hosting(tmp_path, scene)
