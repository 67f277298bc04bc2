from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pool_scenes import CLIP, PHOTO, a_pool, found, run, workers

from app.media.sandbox import MAX_OPEN_FILES, MAX_WRITTEN_BYTES

DENIED = [
    "read a file",
    "write a file",
    "list a folder",
    "open a socket",
    "open a pair of sockets",
    "fork",
    "clone",
    "run a program",
    "make a file",
    "signal the server",
    "trace the server",
    "read the server's memory",
    "limit the server",
    "limit the server's processor time",
    "abort the server",
    "have the server signalled",
    "map code",
    "watch system calls",
    "become another user",
    "leave the sandbox",
    "raise a limit",
]


def test_a_worker_is_denied_everything_that_decoding_does_not_need() -> None:
    async def scene() -> None:
        async with a_pool() as (pool, counts):
            assert pool.confinement == "seccomp"
            for job in (PHOTO, CLIP):
                assert {what: await found(pool, f"try:{what}", job) for what in DENIED} == dict.fromkeys(
                    DENIED, "PermissionError"
                )
            assert not counts.restarts

    run(scene)


@pytest.mark.parametrize(
    "script",
    [
        "platform.machine = lambda: 'riscv64'\nprint(sandbox.confine(1 << 30))",
        "sandbox._program = lambda architecture: bytes(8) + b'no filter'\nprint(sandbox.confine(1 << 30))",
    ],
    ids=["an architecture without a filter", "a kernel that refuses it"],
)
def test_where_no_filter_can_be_had_it_is_said(script: str) -> None:
    """In a process of its own, as it is for good."""
    code = f"import platform\nfrom app.media import sandbox\n{script}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "rlimits\n"


def test_a_worker_may_do_what_codecs_do() -> None:
    async def scene() -> None:
        async with a_pool() as (pool, _):
            for what in ("run threads", "use numpy", "draw random numbers"):
                assert await found(pool, f"try:{what}") == "done"

    run(scene)


def test_a_worker_holds_few_files_writes_little_and_leaves_no_core_with_a_caller_s_pixels() -> None:
    async def scene() -> None:
        async with a_pool() as (pool, _):
            await found(pool, "try:use numpy")
            assert workers()
            for pid in workers():
                limits = Path(f"/proc/{pid}/limits").read_text()
                bounds = {line[:26].strip(): line[26:].split()[:2] for line in limits.splitlines()}
                assert bounds["Max core file size"] == ["0", "0"]
                assert bounds["Max open files"] == [str(MAX_OPEN_FILES)] * 2
                assert bounds["Max file size"] == [str(MAX_WRITTEN_BYTES)] * 2
                status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
                room = int(bounds["Max address space"][0]) - int(status["VmSize"].split()[0]) * 1024
                assert (512 - 64) << 20 <= room <= 513 << 20  # of what the pool gives it, the job has left some mapped
                score = int(Path(f"/proc/{pid}/oom_score_adj").read_text())
                assert score == min(1000, 500 + int(Path("/proc/self/oom_score_adj").read_text()))
                assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")

    run(scene)
