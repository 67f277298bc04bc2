"""Jobs that wait for a worker, and the timer that their deadlines go by."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
from pool_scenes import PHOTO, run

from app.errors import DeadlineExceeded, Unavailable
from app.media.queue import JobQueue, Ticket
from app.media.shared import SharedBytes
from app.media.timer import Timer


def a_ticket(number: int, within_s: float) -> Ticket:
    return Ticket(number, SharedBytes.of(b""), PHOTO, time.monotonic() + within_s)


def in_a_loop(scene: Callable[[], Awaitable[None]]) -> None:
    """Play a scene that must end, whatever the code does."""

    async def play() -> None:
        async with asyncio.timeout(30):
            await scene()

    run(play)


def test_the_most_urgent_comes_first_and_among_equals_who_came_first() -> None:
    async def scene() -> None:
        queue = JobQueue()
        tickets = [a_ticket(number, within_s) for number, within_s in enumerate((50.0, 20.0, 40.0))]
        tickets += [Ticket(number, SharedBytes.of(b""), PHOTO, tickets[1].deadline) for number in (9, 7)]
        for ticket in tickets:
            queue.push(ticket)
        assert len(queue) == 5
        popped = [queue.pop() for _ in tickets]
        assert [ticket.number for ticket in popped if ticket is not None] == [1, 9, 7, 2, 0]
        assert queue.pop() is None
        assert len(queue) == 0

    in_a_loop(scene)


def test_callers_take_turns_by_the_time_that_their_files_take() -> None:
    async def scene() -> None:
        queue = JobQueue()
        for number in range(6):
            queue.push(Ticket(number, SharedBytes.of(b""), PHOTO, time.monotonic() + 20.0, "slow"))
        for number in range(100, 106):
            queue.push(Ticket(number, SharedBytes.of(b""), PHOTO, time.monotonic() + 90.0, "quick"))
        order = []
        while (ticket := queue.pop()) is not None:
            order.append(ticket.number)
            queue.done(ticket, 3.0 if ticket.caller == "slow" else 1.0)
        assert order == [0, 100, 101, 102, 1, 103, 104, 105, 2, 3, 4, 5]

    in_a_loop(scene)


def test_who_has_long_jobs_gets_no_second_worker_before_the_first_one_is_done() -> None:
    async def scene() -> None:
        queue = JobQueue()

        def push(caller: str, *numbers: int) -> None:
            for number in numbers:
                queue.push(Ticket(number, SharedBytes.of(b""), PHOTO, time.monotonic() + 50.0, caller))

        def pop() -> Ticket:
            ticket = queue.pop()
            assert ticket is not None
            return ticket

        push("long", *range(6))
        push("short", *range(100, 108))
        for seconds in (60.0, 1.0):  # now it is known what their jobs take
            queue.done(pop(), seconds)
        running = [pop() for _ in range(4)]
        assert [ticket.caller for ticket in running] == ["short"] * 4
        for ticket in running:
            queue.done(ticket, 15.0)
        running = [pop() for _ in range(3)]
        assert [ticket.caller for ticket in running] == ["long", "short", "short"]

    in_a_loop(scene)


def test_who_is_settled_or_late_does_not_wait_in_earnest_and_is_passed_over() -> None:
    async def scene() -> None:
        queue = JobQueue()
        late, left, waiting = a_ticket(1, -1.0), a_ticket(2, 20.0), a_ticket(3, 50.0)
        for ticket in (late, left, waiting):
            queue.push(ticket)
        left.future.cancel()
        assert len(queue) == 2
        assert queue.pop() is waiting
        with pytest.raises(DeadlineExceeded, match="before the file was decoded"):
            late.future.result()
        assert left.future.cancelled()

    in_a_loop(scene)


def test_a_deadline_that_passes_is_said_then_and_only_while_a_job_waits() -> None:
    async def scene() -> None:
        queue = JobQueue()
        waiting, taken = a_ticket(1, 0.05), a_ticket(2, 0.04)
        queue.push(waiting)
        queue.push(taken)
        if queue.pop() is not taken:  # on a machine that stood still for as long
            return
        with pytest.raises(DeadlineExceeded):
            await waiting.future
        await asyncio.sleep(0.05)
        assert not taken.future.done()
        taken.fail(Unavailable("first"))
        taken.fail(Unavailable("second"))
        with pytest.raises(Unavailable, match="first"):
            await taken.future

    in_a_loop(scene)


def test_closing_settles_all_who_wait_and_no_timer_comes_back_to_them() -> None:
    async def scene() -> None:
        queue = JobQueue()
        tickets = [a_ticket(number, 50.0 + number) for number in range(3)]
        for ticket in tickets:
            queue.push(ticket)
        tickets[1].future.cancel()
        queue.fail_all(lambda: Unavailable("closed"))
        for ticket in (tickets[0], tickets[2]):
            with pytest.raises(Unavailable, match="closed"):
                await ticket.future
        assert queue.pop() is None
        assert all(ticket.timer._handle is None for ticket in tickets)

    in_a_loop(scene)


def test_a_timer_comes_back_once_for_what_was_set_last() -> None:
    async def scene() -> None:
        told: list[tuple[str, int]] = []
        done = asyncio.Event()

        def tell(what: str, number: int) -> None:
            told.append((what, number))
            done.set()

        timer = Timer()
        timer.set(0.0, tell, "never", 1)
        timer.set(3600.0, tell, "never", 2)
        timer.set(-5.0, tell, "this", 3)
        await done.wait()
        await asyncio.sleep(0.01)
        assert told == [("this", 3)]
        timer.set(0.0, tell, "never", 4)
        timer.cancel()
        timer.cancel()
        await asyncio.sleep(0.01)
        assert told == [("this", 3)]

    in_a_loop(scene)
