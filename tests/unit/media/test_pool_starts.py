"""Workers that cannot be started, or not all of them; and what whoever started the server leaves them with."""

from __future__ import annotations

import asyncio
import functools
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pool_scenes import HOSTILE_WORKER, a_pool, children, new_pool, order, run, until, workers

from app.errors import BrokenMedia, Unavailable
from app.media import sandbox
from app.media.limits import MediaLimits
from app.media.messages import WorkerSettings
from app.media.pool import MediaPool
from app.media.process import ForkServer
from app.media.supervisor import CRASHES_TOLERATED


def command_of(folder: Path, before: str) -> tuple[str, ...]:
    """What starts a hostile fork server after the lines of `before`."""
    script = folder / "worker.py"
    script.write_text(f"import os, runpy, sys\n{before}\nrunpy.run_path({HOSTILE_WORKER[-1]!r}, run_name='__main__')\n")
    return (sys.executable, "-P", "-s", str(script))


def test_a_hiccup_at_the_start_costs_many_workers_no_more_than_one(tmp_path: Path) -> None:
    tried = tmp_path / "tried"
    fails_at_first = f"open({str(tried)!r}, 'a').write('x')\nif os.path.getsize({str(tried)!r}) <= 2: sys.exit(1)"

    async def scene() -> None:
        async with a_pool(image_workers=6, command=command_of(tmp_path, fails_at_first)) as (pool, _):
            await until(lambda: pool.worker_states["idle"] == 7)

    run(scene)


def test_failing_for_ever_so_long_breaks_no_pool() -> None:
    async def scene() -> None:
        async with a_pool() as (pool, _):
            supervisor = pool._groups["image"]._supervisor
            supervisor._failed_starts = 5000
            supervisor._start_failed()
            assert supervisor._pause is not None
            (await order(pool, "fill:1")).close()

    run(scene)


def test_a_pool_starts_with_fewer_workers_where_no_more_can_be_had(tmp_path: Path) -> None:
    one_alone = (
        "fork, forks = os.fork, []\ndef once():\n    forks.append(1)\n"
        "    if len(forks) > 1: raise BlockingIOError(11, 'Resource temporarily unavailable')\n"
        "    return fork()\nos.fork = once"
    )

    async def scene() -> None:
        async with asyncio.timeout(60), a_pool(image_workers=2, command=command_of(tmp_path, one_alone)) as (pool, _):
            (await order(pool, "fill:1")).close()

    run(scene)


def test_a_pool_has_started_when_each_of_its_workers_has(tmp_path: Path) -> None:
    one_is_late = (
        "import time\nfork, forks = os.fork, []\ndef late():\n    forks.append(1)\n    pid = fork()\n"
        "    if pid == 0 and len(forks) == 2: time.sleep(0.3)\n    return pid\nos.fork = late"
    )

    async def scene() -> None:
        async with a_pool(image_workers=2, command=command_of(tmp_path, one_is_late)) as (pool, _):
            assert pool.worker_states == {"starting": 0, "idle": 3, "busy": 0}

    run(scene)


def test_whoever_waits_for_the_start_of_a_pool_that_is_closed_meanwhile_is_told() -> None:
    ends_when_it_is_told_to_kill = (
        "import socket, sys\nchannel = socket.socket(fileno=int(sys.argv[1]))\n"
        "for what in ('the settings', 'fork', 'kill'): channel.recv(65536)"
    )

    async def scene() -> None:
        pool = new_pool(command=(sys.executable, "-c", ends_when_it_is_told_to_kill))
        starting = asyncio.ensure_future(pool.start())
        await until(lambda: len(children()) == 2)
        await pool.close(0.0)
        with pytest.raises(Unavailable, match="shutting down"):
            await asyncio.wait_for(starting, 20.0)
        assert not children()

    run(scene)


def test_idle_workers_that_have_died_cost_the_next_job_nothing() -> None:
    async def scene() -> None:
        async with a_pool(image_workers=2, video_workers=1) as (pool, _):
            for worker in workers():
                os.kill(worker, signal.SIGKILL)
            time.sleep(0.1)  # the event loop has not heard of it
            jobs = await asyncio.gather(*(order(pool, "fill:1") for _ in range(3)))
            for rows in jobs:
                rows.close()

    run(scene)


def test_a_server_whose_starter_ignores_sigchld_loses_only_the_worker_that_crashes() -> None:
    async def scene() -> None:
        before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        try:
            async with a_pool(image_workers=2) as (pool, counts):
                bystander = asyncio.ensure_future(order(pool, "sleep:0.5"))
                await asyncio.sleep(0.1)
                with pytest.raises(BrokenMedia):
                    await order(pool, "crash")
                (await bystander).close()
                assert counts.restarts == {"crashed": 1}
        finally:
            signal.signal(signal.SIGCHLD, before)

    run(scene)


@pytest.mark.parametrize("arrive", [0, 1])  # of the two descriptors that the fork server is sent
def test_a_fork_server_without_room_for_descriptors_costs_no_bystander(arrive: int) -> None:
    async def scene() -> None:
        async with a_pool(image_workers=2) as (pool, counts):
            with await order(pool, "fill:1") as decoded:
                forked_by = parent_of(decoded.info.width)
            open_ones = {int(fd) for fd in os.listdir(f"/proc/{forked_by}/fd")}
            free = next(fd for fd in range(1000) if fd not in open_ones)
            soft, hard = resource.prlimit(forked_by, resource.RLIMIT_NOFILE)
            resource.prlimit(forked_by, resource.RLIMIT_NOFILE, (free + arrive, hard))
            bystander = asyncio.ensure_future(order(pool, "sleep:0.5"))
            await until(lambda: pool.worker_states["busy"] == 1)
            with pytest.raises(BrokenMedia):
                await order(pool, "crash")
            (await bystander).close()
            await until(lambda: counts.restarts["start_failed"] >= 1)
            resource.prlimit(forked_by, resource.RLIMIT_NOFILE, (soft, hard))
            await until(lambda: pool.worker_states["idle"] == 3)
            assert set(counts.restarts) == {"crashed", "start_failed"}
            # what did come was closed: the control socket, the pidfds of two workers, and the three of any process
            assert len(os.listdir(f"/proc/{forked_by}/fd")) == 6

    run(scene)


def test_what_goes_wrong_with_one_lost_worker_keeps_no_other_from_being_told_of() -> None:
    async def scene() -> None:
        told: list[int] = []

        def exited(number: int) -> None:
            told.append(number)
            if number == 0:
                raise RuntimeError("as ordered")

        errors: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context["exception"]))
        forks = ForkServer(WorkerSettings("image", MediaLimits(), memory_bytes=1 << 30), HOSTILE_WORKER)
        lost = [forks.fork() for _ in range(3)]
        for number, worker in enumerate(lost):
            worker.on_exit = functools.partial(exited, number)
        forks.kill()
        await until(lambda: bool(errors))
        await asyncio.sleep(0)
        assert told == [0, 1, 2]
        assert [str(error) for error in errors] == ["as ordered"]
        for worker in lost:
            worker.reap()

    run(scene)


@pytest.mark.parametrize("fails", ["sys.exit(1)", "os.fork = lambda: open('/no/such/file')"])
def test_a_fork_server_that_works_goes_on_until_another_does(fails: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    command = command_of(tmp_path, f"if os.path.exists({str(broken)!r}): {fails}")

    async def scene() -> None:
        async with a_pool(image_workers=2, command=command) as (pool, counts):
            forked_by = await the_fork_server(pool)
            broken.touch()  # as while the installation is being replaced
            await crash(pool, CRASHES_TOLERATED)
            await until(lambda: counts.restarts["start_failed"] == 1)
            assert pool._groups["image"]._supervisor._failed_starts == 0
            assert await the_fork_server(pool) == forked_by
            assert len(children()) == 2
            broken.unlink()
            await crash(pool, CRASHES_TOLERATED)
            await until(lambda: forked_by not in children())
            await until(lambda: pool.worker_states == {"starting": 0, "idle": 3, "busy": 0})
            assert len(children()) == 2
            assert counts.restarts["start_failed"] == 1

    run(scene)


def test_a_pool_closes_while_a_fork_server_is_being_renewed(tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    hangs = "lambda fork=os.fork: fork() or time.sleep(3600)"
    command = command_of(tmp_path, f"import time\nif os.path.exists({str(slow)!r}): os.fork = {hangs}")

    async def scene() -> None:
        async with a_pool(command=command) as (pool, _):
            slow.touch()
            await crash(pool, CRASHES_TOLERATED)
            assert len(children()) == 3
            await pool.close(0.0)
        assert not children()

    run(scene)


async def crash(pool: MediaPool, times: int) -> None:
    for _ in range(times):
        with pytest.raises(BrokenMedia):
            await order(pool, "crash")


async def the_fork_server(pool: MediaPool) -> int:
    """Which one the image worker that is next comes from."""
    with await order(pool, "fill:1") as decoded:
        return parent_of(decoded.info.width)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_fork_servers_import_from_where_the_server_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / "only_here.py").touch()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["relative", str(there), ""]))

    async def scene() -> None:
        async with a_pool(command=command_of(tmp_path, "import only_here")) as (pool, _):
            (await order(pool, "fill:1")).close()
            fork_server = await the_fork_server(pool)
            environment = Path(f"/proc/{fork_server}/environ").read_bytes().decode().split("\0")
            paths = next(line for line in environment if line.startswith("PYTHONPATH="))
            assert paths.partition("=")[2].split(os.pathsep)[1:] == [str(there)]

    run(scene)


def test_a_limit_that_cannot_be_set_is_no_files_fault(tmp_path: Path) -> None:
    refuses = (
        "import resource\nsetrlimit = resource.setrlimit\ndef refuse(limit, bounds):\n"
        "    if limit == resource.RLIMIT_CPU: raise ValueError('not allowed to raise maximum limit')\n"
        "    setrlimit(limit, bounds)\nresource.setrlimit = refuse"
    )

    async def scene() -> None:
        async with a_pool(command=command_of(tmp_path, refuses)) as (pool, counts):
            (await order(pool, "fill:1")).close()
            assert not counts.restarts

    run(scene)


def test_no_hard_limit_in_force_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[int, tuple[int, int]] = {}
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (10, 10))
    monkeypatch.setattr(resource, "setrlimit", lambda limit, bounds: asked.update({limit: bounds}))
    sandbox.allow_cpu_time(1000.0)
    assert asked == {resource.RLIMIT_CPU: (10, 10)}
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (10, resource.RLIM_INFINITY))
    sandbox.allow_cpu_time(1000.0)
    soft, hard = asked[resource.RLIMIT_CPU]
    assert soft > 1000
    assert hard == resource.RLIM_INFINITY


@pytest.mark.parametrize("least", [300, 700])
def test_a_worker_is_ended_before_the_server_whatever_that_has_for_a_score(least: int) -> None:
    # Only who has CAP_SYS_RESOURCE may lower a score, and Kubernetes starts us with one of up to 1000.
    server = max(least, int(Path("/proc/self/oom_score_adj").read_text()))
    code = (
        f"from app.media import sandbox\nopen('/proc/self/oom_score_adj', 'w').write('{server}')\n"
        "sandbox._raise_oom_score()\nprint(open('/proc/self/oom_score_adj').read())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == min(1000, server + 500)


def test_processor_time_that_earlier_jobs_used_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    used = resource.struct_rusage((100.5, 20.5, *[0] * 14))
    monkeypatch.setattr(resource, "getrusage", lambda who: used)
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", lambda limit, bounds: asked.append(bounds[0]))
    sandbox.allow_cpu_time(10.0)
    assert 131 <= asked[0] <= 134
