from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from pool_scenes import CLIP, PHOTO, a_pool, children, found, order, run, workers

from app.errors import BrokenMedia, LimitExceeded

SERVER = """
import asyncio, os, signal, sys, time
sys.path.insert(0, {here!r})
from app.errors import BrokenMedia, LimitExceeded
from pool_scenes import a_pool, children, order, workers

async def main():
    async with a_pool(image_workers=2) as (pool, counts):
        job = asyncio.ensure_future(order(pool, {job!r}))
        while pool.worker_states["busy"] == 0:
            await asyncio.sleep(0.01)
        interrupted = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupted.set)
        print(*workers(), *children(), flush=True)
        await interrupted.wait()
        with await job as decoded:
            print("finished", decoded.rows.shape, dict(counts.restarts), flush=True)

asyncio.run(main())
"""


def a_server(job: str) -> tuple[subprocess.Popen[str], list[int]]:
    """A process that runs a pool, in a process group of its own as a shell would start it; its workers and their two
    fork servers."""
    code = SERVER.format(here=str(Path(__file__).parent), job=job)
    root = str(Path(__file__).resolve().parents[3])
    server = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert server.stdout is not None
    return server, [int(pid) for pid in server.stdout.readline().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_workers_die_with_a_server_that_is_killed_even_in_the_middle_of_a_job() -> None:
    server, processes = a_server("spin")
    with server:
        assert len(processes) == 3 + 2
        assert all(is_running(pid) for pid in processes)
        server.kill()
    end = time.monotonic() + 10
    while any(is_running(pid) for pid in processes):
        assert time.monotonic() < end, "a worker outlived its server"
        time.sleep(0.01)


def test_ctrl_c_in_a_terminal_reaches_the_server_and_its_workers_finish_their_jobs() -> None:
    server, processes = a_server("sleep:0.5")
    with server:
        assert all(os.getpgid(pid) != server.pid for pid in processes)
        os.killpg(server.pid, signal.SIGINT)
        out, _ = server.communicate(timeout=30)
    assert out == "finished (1, 32, 24, 3) {}\n"
    assert not any(is_running(pid) for pid in processes)


def test_a_worker_leaves_signals_that_are_meant_for_the_server_to_the_server() -> None:
    async def scene() -> None:
        async with a_pool() as (pool, counts):
            for pid in children() | workers():
                for meant_for_the_server in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    os.kill(pid, meant_for_the_server)
            (await order(pool, "sleep:0.05")).close()
            (await order(pool, "fill:1", CLIP)).close()
            assert not counts.restarts

    run(scene)


def test_a_worker_starts_from_any_folder_and_inherits_no_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HIERA_API_KEYS", "secret")
    (tmp_path / "numpy.py").write_text("raise SystemExit('imported from the current folder')")

    async def scene() -> None:
        async with a_pool() as (pool, _):
            assert await found(pool, "environment:HIERA_API_KEYS") == "False"
            assert await found(pool, "environment:PYTHONPATH") == "True"

    run(scene)


def test_a_worker_keeps_no_descriptor_of_jobs_that_are_done() -> None:
    async def scene() -> None:
        async with a_pool() as (pool, _):
            (await order(pool, "fill:1")).close()
            before = await found(pool, "descriptors")
            for _ in range(20):
                (await order(pool, "fill:1")).close()
                with pytest.raises(Exception, match="broken as ordered"):
                    await order(pool, "broken")
            assert await found(pool, "descriptors") == before

    run(scene)


def test_a_file_that_does_not_fit_into_a_workers_memory_is_too_large_and_not_broken() -> None:
    async def scene() -> None:
        async with a_pool(worker_memory_bytes=64 << 20) as (pool, counts):
            with pytest.raises(LimitExceeded, match="memory"):
                await order(pool, b"length:" + bytes(100 << 20))
            (await order(pool, "fill:1")).close()
            assert not counts.restarts

    run(scene)


def test_a_worker_says_how_long_a_file_took() -> None:
    async def scene() -> None:
        async with a_pool() as (pool, _):
            with await order(pool, "sleep:0.1") as decoded:
                assert decoded.decode_s >= 0.1

    run(scene)


def test_a_worker_that_filled_its_stderr_works_on_and_can_still_say_what_went_wrong(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scene() -> None:
        async with a_pool() as (pool, counts):
            (await order(pool, "shout", PHOTO)).close()
            with pytest.raises(BrokenMedia):
                await order(pool, "bug")
            (await order(pool, "fill:1")).close()
            assert not counts.restarts

    with caplog.at_level(logging.ERROR):
        run(scene)
    assert "RuntimeError: a decoder" in caplog.text

    run(scene)
