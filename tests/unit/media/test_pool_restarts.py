"""Workers and fork servers that are killed from outside, again and again: the pool is whole soon after it ends."""

from __future__ import annotations

import asyncio
import ctypes
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from pool_scenes import HOSTILE_WORKER, a_pool, children, order, run, until, workers
from test_pool_starts import command_of, parent_of

from app.media import supervisor
from app.media.limits import MediaLimits
from app.media.messages import WorkerSettings
from app.media.process import ForkServer, WorkerProcess
from app.media.supervisor import FAILED_STARTS_TOLERATED

_PR_SET_CHILD_SUBREAPER = 36


@pytest.mark.parametrize(("ended_by", "struggles"), [(signal.SIGKILL, False), (signal.SIGABRT, True)])
def test_idle_workers_that_crash_are_failed_starts_and_those_that_are_killed_are_none(
    ended_by: signal.Signals, struggles: bool
) -> None:
    async def scene() -> None:
        async with a_pool() as (pool, counts):
            for rounds in range(1, FAILED_STARTS_TOLERATED + 1):
                await until(lambda: pool.worker_states["idle"] == 2)
                for worker in workers():
                    os.kill(worker, ended_by)
                await until(lambda rounds=rounds: counts.restarts.total() == 2 * rounds)  # type: ignore[misc]
            assert {group._supervisor.struggling for group in pool._groups.values()} == {struggles}
            await until(lambda: pool.worker_states["idle"] == 2)

    run(scene)


def test_failed_starts_are_forgotten_once_a_worker_was_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_PROVEN_AFTER_S", 0.0)

    async def scene() -> None:
        async with a_pool() as (pool, counts):
            images = pool._groups["image"]._supervisor
            images._failed_starts = 5000
            for worker in workers():
                os.kill(worker, signal.SIGABRT)
            await until(lambda: counts.restarts["crashed"] == 2)
            assert images._failed_starts == 0

    run(scene)


@pytest.fixture
def _process_1() -> Iterator[None]:
    """Inherit orphans, as a server does that is the first process of a container."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    yield
    prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.mark.usefixtures("_process_1")
def test_a_fork_server_that_is_killed_leaves_no_zombies_in_a_container() -> None:
    async def scene() -> None:
        async with a_pool(image_workers=3) as (pool, counts):
            for fork_server in children():
                os.kill(fork_server, signal.SIGKILL)
            await until(lambda: counts.restarts["killed"] == 4)
            await until(lambda: pool.worker_states["idle"] == 4)
            assert len(children()) == 2
        assert not children()

    run(scene)


async def a_worker() -> tuple[ForkServer, WorkerProcess, asyncio.Event]:
    """A fork server, a worker of it that is ready, and whether that has ended."""
    forks = ForkServer(WorkerSettings("image", MediaLimits(), memory_bytes=1 << 30), HOSTILE_WORKER)
    worker, ended = forks.fork(), asyncio.Event()
    worker.on_exit = ended.set
    await until(lambda: bool(select.select([worker.channel], [], [], 0)[0]))
    worker.receive()
    return forks, worker, ended


def test_a_worker_may_be_killed_when_its_fork_server_has_just_ended() -> None:
    async def scene() -> None:
        forks, worker, ended = await a_worker()
        forks.close()
        worker.kill()  # of its end it will be told in a moment
        await asyncio.wait_for(ended.wait(), 30)
        assert worker.reap() == -signal.SIGKILL

    run(scene)
    assert not children()


def test_a_fork_server_that_takes_no_more_orders_ends_with_the_worker_that_is_to_be_killed() -> None:
    async def scene() -> None:
        _, worker, ended = await a_worker()
        (fork_server,) = children()
        os.kill(fork_server, signal.SIGSTOP)
        for _ in range(5000):  # far more than a socket holds
            worker.kill()
        await asyncio.wait_for(ended.wait(), 30)
        assert worker.reap() == -signal.SIGKILL

    run(scene)
    assert not children()


def test_a_fork_server_that_is_retired_after_its_last_worker_ends() -> None:
    async def scene() -> None:
        forks, worker, ended = await a_worker()
        worker.hang_up()
        await asyncio.wait_for(ended.wait(), 30)
        assert worker.reap() == 0
        assert len(children()) == 1
        forks.retire()
        assert not children()

    run(scene)


def test_the_log_has_the_end_of_what_a_fork_server_said_last(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    says = "os.write(2, b'the beginning' + b'x' * 3000 + bytes([255]) + b' the end')"

    async def scene() -> None:
        async with a_pool(command=command_of(tmp_path, says)) as (pool, counts):
            for fork_server in children():
                os.kill(fork_server, signal.SIGKILL)
            await until(lambda: counts.restarts["killed"] == 2)
            await until(lambda: pool.worker_states["idle"] == 2)

    run(scene)
    told = [record.getMessage() for record in caplog.records if "its fork server has ended: xx" in record.getMessage()]
    assert len(told) == 2
    assert all("\ufffd the end" in each and "the beginning" not in each for each in told)


@pytest.mark.usefixtures("_process_1")
def test_a_worker_that_is_stopped_as_it_is_forked_and_outlives_its_fork_server_is_replaced(tmp_path: Path) -> None:
    stops = tmp_path / "stops"
    stop_at_start = (
        "closerange = os.closerange\ndef stop(*ends):\n"
        f"    if os.path.exists({str(stops)!r}): os.kill(os.getpid(), {signal.SIGSTOP:d})\n"
        "    closerange(*ends)\nos.closerange = stop"
    )

    async def scene() -> None:
        async with (
            asyncio.timeout(60),
            a_pool(start_timeout_s=2.0, command=command_of(tmp_path, stop_at_start)) as (pool, counts),
        ):
            with await order(pool, "fill:1") as decoded:
                worker = decoded.info.width
            forked_by = parent_of(worker)
            stops.touch()
            os.kill(worker, signal.SIGKILL)
            await until(lambda: counts.restarts["killed"] == 1)
            await until(lambda: any(map(is_stopped, workers())))
            stops.unlink()
            os.kill(forked_by, signal.SIGKILL)
            (await order(pool, "fill:2")).close()
            assert len(children()) == 2
        assert not children()

    run(scene)


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
