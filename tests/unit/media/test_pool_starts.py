"""Workers that cannot be started, or not all of them; and what whoever started the server leaves them with."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pool_scenes import HOSTILE_WORKER, a_pool, order, run, until, workers

from app.errors import BrokenMedia
from app.media import sandbox


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


@pytest.mark.parametrize(("server", "worker"), [(300, 800), (700, 1000)])
def test_a_worker_is_ended_before_the_server_whatever_that_has_for_a_score(server: int, worker: int) -> None:
    code = (
        f"from app.media import sandbox\nopen('/proc/self/oom_score_adj', 'w').write('{server}')\n"
        "sandbox._raise_oom_score()\nprint(open('/proc/self/oom_score_adj').read())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == worker
