from __future__ import annotations

from pool_scenes import CLIP, PHOTO, a_pool, found, run

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
