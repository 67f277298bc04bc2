"""The work of a request ends when its caller hangs up."""

from __future__ import annotations

import asyncio

import pytest
from asgi_double import Channel

from app.api.disconnect import CancelOnDisconnect
from app.errors import BrokenMedia, RequestCancelled


def test_work_is_cancelled_when_the_caller_leaves() -> None:
    cancelled = []

    async def scenario() -> None:
        channel = Channel()
        asyncio.get_running_loop().call_later(0.01, channel.leave)
        try:
            async with CancelOnDisconnect(channel.receive):
                try:
                    await asyncio.sleep(30)
                except asyncio.CancelledError:
                    cancelled.append(True)
                    raise
        finally:
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0  # the task can go on to answer

    with pytest.raises(RequestCancelled):
        asyncio.run(scenario())
    assert cancelled


def test_work_that_ends_first_is_left_alone_and_nothing_stays_behind() -> None:
    async def scenario() -> int:
        async with CancelOnDisconnect(Channel().receive):
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        return len(asyncio.all_tasks())

    assert asyncio.run(scenario()) == 1


def test_an_error_of_the_work_passes_through() -> None:
    async def scenario() -> None:
        async with CancelOnDisconnect(Channel().receive):
            raise BrokenMedia("cut off")

    with pytest.raises(BrokenMedia):
        asyncio.run(scenario())


def test_a_cancellation_from_elsewhere_stays_one() -> None:
    async def scenario() -> None:
        async def work() -> None:
            async with CancelOnDisconnect(Channel().receive):
                await asyncio.sleep(30)

        task = asyncio.create_task(work())
        await asyncio.sleep(0.01)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(scenario())
