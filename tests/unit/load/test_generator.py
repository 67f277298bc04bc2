import asyncio
import contextlib
import socket
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from http_double import OK, Answerer, serving

from app.errors import InvalidParameter
from app.load.arrivals import poisson_arrivals
from app.load.connection import LOST, TIMED_OUT, Connection, connect
from app.load.generator import Samples, Workload, generate
from app.load.isolated import run_isolated
from app.load.request import multipart_request, raw_request
from app.load.target import Target

NOWHERE = Target("127.0.0.1", 9, "127.0.0.1")


def workload(target: Target, **changes: object) -> Workload:
    request = raw_request(target, "/", b"body", content_type="text/plain")
    base = Workload(target, (request,), connections=4, seconds=20.0, warmup_s=0.0, max_requests=40, timeout_s=20.0)
    return replace(base, **changes)  # type: ignore[arg-type]


def run(answer: Answerer, **changes: object) -> Samples:
    async def scenario() -> Samples:
        async with serving(answer) as target:
            return await generate(workload(target, **changes))

    return asyncio.run(scenario())


async def at_once(_: bytes) -> list[bytes]:
    return [OK]


@pytest.mark.parametrize("rate", [None, 400.0])
def test_a_plan_ends_with_its_last_request_and_every_request_has_one_answer(rate: float | None) -> None:
    samples = run(at_once, rate_per_s=rate)
    assert list(samples.status) == [200] * 40
    assert len(samples.latency_s) == len(samples.finished_s) == len(samples.timing) == 40


def test_a_closed_loop_has_as_many_requests_in_flight_as_connections() -> None:
    in_flight = most = 0

    async def answer(_: bytes) -> list[bytes]:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0.01)
        in_flight -= 1
        return [OK]

    run(answer, connections=4)
    assert most == 4


def test_an_open_loop_sends_on_while_nothing_is_answered() -> None:
    seen = 0
    all_there = asyncio.Event()

    async def answer(_: bytes) -> list[bytes]:
        nonlocal seen
        seen += 1
        if seen == 12:
            all_there.set()
        await all_there.wait()
        return [OK]

    samples = run(answer, rate_per_s=500.0, connections=64, max_requests=12)
    assert list(samples.status) == [200] * 12


def test_an_open_loop_counts_latency_from_when_a_request_was_due() -> None:
    pauses_s = [0.6]

    async def slow_first(_: bytes) -> list[bytes]:
        await asyncio.sleep(pauses_s.pop() if pauses_s else 0.0)
        return [OK]

    samples = run(slow_first, rate_per_s=100.0, connections=1, max_requests=10)
    # All were due in the first 0.2 s or so and had to wait for the one connection, though each was answered at once.
    assert min(samples.latency_s) > 0.1


def test_a_closed_loop_s_latency_has_no_part_in_connecting(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    clock = SimpleNamespace(perf_counter=lambda: now_s, process_time=time.process_time)
    for module in ("generator", "connection"):
        monkeypatch.setattr(f"app.load.{module}.time", clock)

    async def slow(target: Target) -> Connection:
        nonlocal now_s
        now_s += 5.0
        return await connect(target)

    async def answer(_: bytes) -> list[bytes]:
        nonlocal now_s
        now_s += 1.0
        return [OK]

    monkeypatch.setattr("app.load.generator.connect", slow)
    samples = run(answer, connections=1, max_requests=2)
    assert list(samples.latency_s) == [1.0, 1.0]
    assert list(samples.finished_s) == [6.0, 7.0]


def test_what_is_never_answered_times_out() -> None:
    async def never(_: bytes) -> list[bytes]:
        await asyncio.sleep(3600)
        return []

    samples = run(never, timeout_s=0.1, max_requests=4)
    assert list(samples.status) == [TIMED_OUT] * 4


def test_a_server_that_takes_no_connections_ends_no_later_than_its_time_out() -> None:
    async def scenario(listener: socket.socket) -> Samples:
        address, port = listener.getsockname()
        target = Target(address, port, address)
        return await asyncio.wait_for(generate(workload(target, seconds=0.1, timeout_s=0.1)), 5)

    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):  # more than the backlog takes
            caller = stack.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(listener.getsockname())
        assert set(asyncio.run(scenario(listener)).status) == {TIMED_OUT}


def test_an_open_loop_sends_nothing_once_its_time_and_a_time_out_are_over() -> None:
    seen = 0

    async def never(_: bytes) -> list[bytes]:
        nonlocal seen
        seen += 1
        await asyncio.sleep(3600)
        return []

    samples = run(never, rate_per_s=200.0, connections=1, seconds=0.1, timeout_s=0.1)
    assert set(samples.status) == {TIMED_OUT}
    assert len(samples.status) == len(list(poisson_arrivals(200.0, 0.1, 0))) > 10
    assert seen < 5


def test_answers_in_a_closed_loop_s_warm_up_are_not_counted() -> None:
    samples = run(at_once, connections=1, warmup_s=0.2, max_requests=5)
    assert 5 <= len(samples.status) <= 6  # and the one that the end of the warm-up found unanswered
    assert samples.seconds < 20


def test_what_was_due_in_an_open_loop_s_warm_up_is_not_counted_though_it_is_answered_later() -> None:
    pauses_s = [0.4]

    async def slow_first(_: bytes) -> list[bytes]:
        await asyncio.sleep(pauses_s.pop() if pauses_s else 0.0)
        return [OK]

    samples = run(slow_first, rate_per_s=400.0, connections=1, warmup_s=0.2, max_requests=5)
    assert list(samples.status) == [200] * 5
    assert samples.seconds < 20


def test_an_open_loop_lasts_as_long_as_planned_though_its_last_answer_comes_before() -> None:
    due_s = list(poisson_arrivals(20.0, 0.5, 0))
    samples = run(at_once, rate_per_s=20.0, seconds=0.5)
    assert due_s[-1] < 0.49
    assert len(samples.status) == len(due_s)
    assert samples.seconds == pytest.approx(0.5)


def test_a_server_that_is_not_there_costs_a_sample_each_and_no_spinning() -> None:
    samples = asyncio.run(generate(workload(NOWHERE, connections=2, seconds=0.3, max_requests=1000)))
    assert 0 < len(samples.status) < 50
    assert set(samples.status) == {LOST}


def test_a_lost_connection_is_replaced() -> None:
    answered = 0

    async def every_third_breaks(_: bytes) -> list[bytes]:
        nonlocal answered
        answered += 1
        return [b""] if answered % 3 == 0 else [OK]

    samples = run(every_third_breaks, connections=1, max_requests=9)
    assert list(samples.status).count(LOST) == 3
    assert list(samples.status).count(200) == 6


def test_the_first_body_of_each_status_is_kept() -> None:
    samples = run(at_once)
    assert samples.bodies == {200: b"ok"}


def test_requests_are_sent_in_turn() -> None:
    seen: list[bytes] = []

    async def answer(request: bytes) -> list[bytes]:
        seen.append(request.rpartition(b"\r\n\r\n")[2])
        return [OK]

    async def scenario() -> None:
        async with serving(answer) as target:
            requests = tuple(raw_request(target, "/", body, content_type="text/plain") for body in (b"a", b"b"))
            await generate(workload(target, requests=requests, connections=1, max_requests=4))

    asyncio.run(scenario())
    assert seen == [b"a", b"b", b"a", b"b"]


@pytest.mark.parametrize(
    "change", [{"connections": 0}, {"seconds": 1e9}, {"max_requests": 0}, {"rate_per_s": 0.0}, {"requests": ()}]
)
def test_a_plan_without_bounds_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InvalidParameter):
        workload(NOWHERE, **change)


def test_a_generator_in_its_own_process_reports_the_same() -> None:
    async def scenario() -> Samples:
        async with serving(at_once) as target:
            return await asyncio.to_thread(run_isolated, workload(target))

    assert list(asyncio.run(scenario()).status) == [200] * 40


def test_a_form_names_its_file_and_counts_its_bytes() -> None:
    request = multipart_request(NOWHERE, "/classify", b"\xff\xd8data", filename="a.jpg")
    head, _, body = request.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert b'name="file"; filename="a.jpg"' in body
    assert b"\r\n\r\n\xff\xd8data\r\n--" in body
