from __future__ import annotations

from pathlib import Path

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


def test_a_worker_may_do_what_codecs_do() -> None:
    async def scene() -> None:
        async with a_pool() as (pool, _):
            for what in ("run threads", "use numpy"):
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
                assert "unlimited" not in bounds["Max address space"]
                status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
                assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")

    run(scene)
