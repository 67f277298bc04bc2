from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import uvloop
from pool_scenes import CLIP, HOSTILE_WORKER, a_pool, children, new_pool, order, run, until, workers
from processes import open_descriptors
from scarcity import descriptors_left

from app.errors import BrokenMedia, DeadlineExceeded, LimitExceeded, Overloaded, Unavailable
from app.media.limits import MediaLimits
from app.media.messages import WorkerSettings
from app.media.pool import RESTART_REASONS
from app.media.process import FORK_SERVER_COMMAND, ForkServer, WorkerProcess
from app.media.supervisor import CRASHES_TOLERATED


def test_a_crash_is_survived_in_the_event_loop_that_serves_too() -> None:
    async def scene() -> None:
        async with a_pool() as (pool, counts):
            with pytest.raises(BrokenMedia):
                await order(pool, "crash")
            with pytest.raises(DeadlineExceeded):
                await order(pool, "hang", CLIP, within_s=0.2)
            (await order(pool, "fill:1")).close()
            (await order(pool, "fill:1", CLIP)).close()
            assert counts.restarts == {"crashed": 1, "deadline": 1}

    uvloop.run(scene())
    assert not children()


@pytest.mark.parametrize(
    ("what", "error", "reason"),
    [
        ("crash", BrokenMedia, "crashed"),
        ("abort", BrokenMedia, "crashed"),
        ("exit", BrokenMedia, "crashed"),
        ("die of the processor limit", LimitExceeded, "cpu_time"),
        ("garble", BrokenMedia, "protocol"),
        ("forge", BrokenMedia, "protocol"),
        ("hang up", BrokenMedia, "protocol"),
    ],
)
def test_a_worker_that_fails_costs_its_one_request_and_is_replaced(
    what: str, error: type[Exception], reason: str
) -> None:
    assert reason in RESTART_REASONS

    async def scene() -> None:
        async with a_pool() as (pool, counts):
            with await order(pool, "fill:1") as decoded:
                first = decoded.info.width
            doomed = asyncio.ensure_future(order(pool, what))
            others = [asyncio.ensure_future(order(pool, f"fill:{value}")) for value in range(5)]
            with pytest.raises(error):
                await doomed
            for value, other in enumerate(others):
                with await other as decoded:
                    assert (decoded.rows == value).all()
                    assert decoded.info.width != first
            assert counts.restarts == {reason: 1}
            await until(lambda: len(workers()) == 2)

    run(scene)


def test_a_file_that_asks_for_too_much_memory_is_refused_and_its_worker_lives_on() -> None:
    async def scene() -> None:
        async with a_pool() as (pool, counts):
            with pytest.raises(LimitExceeded, match="memory"):
                await order(pool, "bomb")
            (await order(pool, "fill:1")).close()
            assert not counts.restarts

    run(scene)


def test_a_file_that_takes_longer_than_the_server_allows_is_refused_and_its_worker_killed() -> None:
    async def scene() -> None:
        async with a_pool(image_timeout_s=0.2) as (pool, counts):
            for endless in ("hang", "spin"):
                with pytest.raises(LimitExceeded, match=r"longer than 0\.2 s"):
                    await order(pool, endless)
            assert counts.restarts == {"timeout": 2}
            (await order(pool, "fill:1")).close()

    run(scene)


def test_a_job_that_runs_past_its_callers_deadline_is_answered_then_and_ended_soon() -> None:
    async def scene() -> None:
        async with a_pool() as (pool, counts):
            for ended, endless in enumerate(("hang", "spin"), start=1):
                await until(lambda: pool.worker_states["idle"] == 2)
                with pytest.raises(DeadlineExceeded):
                    await order(pool, endless, CLIP, within_s=0.2)
                await until(lambda ended=ended: counts.restarts == {"deadline": ended})  # type: ignore[misc]
            (await order(pool, "fill:1", CLIP)).close()

    run(scene)


def test_a_job_that_is_done_soon_after_its_callers_deadline_costs_no_worker() -> None:
    async def scene() -> None:
        async with a_pool(abandoned_grace_s=30.0) as (pool, counts):
            with await order(pool, "fill:1") as decoded:
                worker = decoded.info.width
            with pytest.raises(DeadlineExceeded):
                await order(pool, "sleep:0.5", within_s=0.2)
            with await order(pool, "fill:2") as decoded:
                assert decoded.info.width == worker
            assert not counts.restarts

    run(scene)


def test_a_job_whose_worker_is_killed_by_someone_else_is_done_by_another() -> None:
    async def scene() -> None:
        async with a_pool() as (pool, counts):
            with await order(pool, "fill:1") as decoded:
                victim = decoded.info.width
            job = asyncio.ensure_future(order(pool, "sleep:0.2"))
            await until(lambda: pool.worker_states["busy"] == 1)
            os.kill(victim, signal.SIGKILL)
            with await job as decoded:
                assert decoded.info.width != victim
            assert counts.restarts == {"killed": 1}

    run(scene)


def test_a_job_whose_workers_are_killed_twice_is_given_up_as_too_large() -> None:
    async def scene() -> None:
        async with a_pool() as (pool, counts):
            job = asyncio.ensure_future(order(pool, "hang"))
            for kills in (1, 2):
                await until(lambda: pool.worker_states["busy"] == 1)
                running = await busy_children()
                os.kill(running, signal.SIGKILL)
                await until(lambda kills=kills: counts.restarts["killed"] == kills)  # type: ignore[misc]
            with pytest.raises(LimitExceeded, match="memory"):
                await job

    async def busy_children() -> int:
        await asyncio.sleep(0.05)
        sleeping = [pid for pid in workers() if b"nanosleep" in wait_channel(pid)]
        assert len(sleeping) == 1
        return sleeping[0]

    run(scene)


def wait_channel(pid: int) -> bytes:
    with open(f"/proc/{pid}/wchan", "rb") as file:
        return file.read()


def test_an_idle_worker_that_dies_is_replaced_without_anyone_noticing() -> None:
    async def scene() -> None:
        async with a_pool() as (pool, counts):
            with await order(pool, "fill:1") as decoded:
                victim = decoded.info.width
            os.kill(victim, signal.SIGKILL)
            with await order(pool, "fill:2") as decoded:
                assert decoded.info.width != victim
            await until(lambda: pool.worker_states == {"starting": 0, "idle": 2, "busy": 0})
            assert counts.restarts == {"killed": 1}

    run(scene)


def test_a_job_that_the_kernel_cannot_carry_costs_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> None:
        raise OSError(105, "No buffer space available")

    async def scene() -> None:
        async with a_pool() as (pool, counts):
            with monkeypatch.context() as full:
                full.setattr(WorkerProcess, "send", no_memory)
                before = open_descriptors()
                with pytest.raises(Overloaded):
                    await order(pool, "fill:1")
                assert open_descriptors() == before
            assert pool.worker_states == {"starting": 0, "idle": 2, "busy": 0}
            with await order(pool, "fill:2") as decoded:
                assert (decoded.rows == 2).all()
            assert not counts.restarts

    run(scene)


def test_a_job_that_there_is_no_memory_for_costs_no_worker() -> None:
    async def scene() -> None:
        async with a_pool() as (pool, counts):
            with descriptors_left(0), pytest.raises(Overloaded):
                await order(pool, "fill:1")
            assert pool.worker_states == {"starting": 0, "idle": 2, "busy": 0}
            with await order(pool, "fill:2") as decoded:
                assert (decoded.rows == 2).all()
            assert not counts.restarts

    run(scene)


def test_a_job_whose_worker_is_killed_is_done_by_one_that_is_idle_where_no_other_can_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_room(_: ForkServer) -> WorkerProcess:
        raise OSError(11, "Resource temporarily unavailable")

    async def scene() -> None:
        async with a_pool(image_workers=2) as (pool, counts):
            with await order(pool, "fill:1") as decoded:
                victim = decoded.info.width
            job = asyncio.ensure_future(order(pool, "sleep:0.5", within_s=20.0))  # goes to whoever was idle last
            await until(lambda: pool.worker_states["busy"] == 1)
            with monkeypatch.context() as full:
                full.setattr(ForkServer, "fork", no_room)
                os.kill(victim, signal.SIGKILL)
                with await job as decoded:
                    assert decoded.info.width != victim
            assert counts.restarts == {"killed": 1}

    run(scene)


def test_a_decoders_bug_is_the_files_fault_to_the_caller_and_an_error_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scene() -> None:
        async with a_pool() as (pool, counts):
            with pytest.raises(BrokenMedia) as caught:
                await order(pool, "bug")
            assert "bug" not in str(caught.value)
            assert not counts.restarts

    with caplog.at_level(logging.ERROR):
        run(scene)
    assert "RuntimeError: a decoder" in caplog.text
    assert all("\n" not in record.getMessage() for record in caplog.records)  # a file's author forges no line of it


def test_workers_that_end_at_their_start_again_and_again_make_the_pool_unavailable() -> None:
    async def scene() -> None:
        pool = new_pool(image_workers=2, command=(sys.executable, "-c", "raise SystemExit(1)"))
        with pytest.raises(Unavailable):
            await pool.start()
        with pytest.raises(Unavailable):
            await order(pool, "fill:1")
        assert not children()

    run(scene)


def test_a_worker_that_cannot_be_started_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> int:
        raise OSError(24, "Too many open files")

    async def scene() -> None:
        before = open_descriptors()
        settings = WorkerSettings("image", MediaLimits(), memory_bytes=1 << 30)
        with pytest.raises(FileNotFoundError):
            ForkServer(settings, ("/no/such/program",)).fork()
        assert open_descriptors() == before
        forks = ForkServer(settings, HOSTILE_WORKER)
        with monkeypatch.context() as full:
            full.setattr(os, "memfd_create", none_left)
            with pytest.raises(OSError, match="Too many"):
                forks.fork()
        assert open_descriptors() == before
        forks.fork().hang_up()
        with monkeypatch.context() as full:
            full.setattr(os, "memfd_create", none_left)
            with pytest.raises(OSError, match="Too many"):
                forks.fork()
        forks.close()
        assert open_descriptors() <= before + 1  # the stderr of the one that was forked, which nobody has reaped
        assert not children()

    run(scene)


def test_workers_are_forked_by_a_process_with_one_thread_and_are_as_good_as_new() -> None:
    async def scene() -> None:
        async with a_pool(image_workers=3, command=FORK_SERVER_COMMAND):
            assert len(children()) == 2
            assert len(workers()) == 4
            for pid in children():
                assert len(os.listdir(f"/proc/{pid}/task")) == 1
            for pid in workers():
                # stdin, stdout, stderr, the socket to the pool: nothing of the fork server's or another worker's
                assert sorted(map(int, os.listdir(f"/proc/{pid}/fd"))) == [0, 1, 2, 3]
            names = sorted(Path(f"/proc/{pid}/comm").read_text() for pid in workers())
            assert names == ["media-image\n"] * 3 + ["media-video\n"]

    run(scene)


def test_a_fork_server_that_is_killed_takes_its_workers_along_and_their_jobs_are_done_by_others() -> None:
    async def scene() -> None:
        async with a_pool() as (pool, counts):
            with await order(pool, "fill:1") as decoded:
                forked_by = parent_of(decoded.info.width)
            job = asyncio.ensure_future(order(pool, "sleep:0.3"))
            await until(lambda: pool.worker_states["busy"] == 1)
            os.kill(forked_by, signal.SIGKILL)
            with await job as decoded:
                assert parent_of(decoded.info.width) != forked_by
            assert counts.restarts == {"killed": 1}
            assert len(children()) == 2

    run(scene)


def test_a_fork_server_that_hangs_is_replaced_once_it_was_waited_for() -> None:
    async def scene() -> None:
        async with a_pool(start_timeout_s=1.0) as (pool, counts):
            with await order(pool, "fill:1") as decoded:
                forked_by = parent_of(decoded.info.width)
            os.kill(forked_by, signal.SIGSTOP)
            os.kill(decoded.info.width, signal.SIGKILL)
            await until(lambda: pool.worker_states["starting"] == 1)
            with await order(pool, "fill:2") as decoded:
                assert parent_of(decoded.info.width) != forked_by
            assert counts.restarts["start_failed"] >= 1
            assert pool.unhealthy is None

    run(scene)


def test_a_pool_closes_although_a_fork_server_hangs() -> None:
    async def scene() -> None:
        async with a_pool() as (pool, _):
            with await order(pool, "fill:1") as decoded:
                os.kill(parent_of(decoded.info.width), signal.SIGSTOP)
            await pool.close(0.0)
        assert not children()

    run(scene)


def test_after_many_crashes_workers_come_from_a_fork_server_with_another_layout_of_memory() -> None:
    """Else who crashes them could find out, try by try, where everything lies."""

    async def scene() -> None:
        async with a_pool(image_workers=2) as (pool, counts):
            with await order(pool, "fill:1") as decoded:
                forked_by = parent_of(decoded.info.width)
            for _ in range(CRASHES_TOLERATED):
                with pytest.raises(BrokenMedia):
                    await order(pool, "crash")
                (await order(pool, "fill:1")).close()
            await until(lambda: forked_by not in children())
            await until(lambda: pool.worker_states == {"starting": 0, "idle": 3, "busy": 0})
            assert len(children()) == 2
            assert len(workers()) == 3
            assert counts.restarts["crashed"] == CRASHES_TOLERATED
            assert set(counts.restarts) == {"crashed", "recycled"}

    run(scene)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_worker_that_never_becomes_ready_is_ended() -> None:
    async def scene() -> None:
        pool = new_pool(start_timeout_s=0.1, command=(sys.executable, "-c", "import time; time.sleep(3600)"))
        with pytest.raises(Unavailable):
            await pool.start()
        assert not children()

    run(scene)


def test_a_running_pool_that_loses_its_workers_for_good_says_so_and_recovers_when_it_can(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    script = tmp_path / "worker.py"
    script.write_text(
        f"import os, runpy, sys\n"
        f"if os.path.exists({str(broken)!r}): sys.exit(1)\n"
        f"runpy.run_path({__file__.replace('test_pool_faults', 'hostile_worker')!r}, run_name='__main__')\n"
    )

    async def scene() -> None:
        async with a_pool(command=(sys.executable, "-P", "-s", str(script))) as (pool, counts):
            broken.touch()
            with pytest.raises(BrokenMedia):
                await order(pool, "crash")
            with await order(pool, "fill:1") as decoded:  # forked from memory, whatever has become of the disk
                forked_by = parent_of(decoded.info.width)
            waiting = asyncio.ensure_future(order(pool, "sleep:3600"))
            await until(lambda: pool.worker_states["busy"] == 1)
            os.kill(forked_by, signal.SIGKILL)
            with pytest.raises(Unavailable):
                await waiting
            assert pool.unhealthy is not None
            assert "image" in (pool.unhealthy or "")
            assert counts.restarts["start_failed"] >= 3
            (await order(pool, "fill:1", CLIP)).close()
            broken.unlink()
            await until(lambda: pool.unhealthy is None)
            (await order(pool, "fill:1")).close()

    run(scene)


def test_the_pool_closes_while_its_workers_are_being_replaced() -> None:
    async def scene() -> None:
        async with a_pool() as (pool, _):
            with pytest.raises(BrokenMedia):
                await order(pool, "crash")
            started = time.monotonic()
            await pool.close(60.0)
            assert time.monotonic() - started < 30
        assert not children()

    run(scene)
