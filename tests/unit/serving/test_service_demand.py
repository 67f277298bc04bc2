"""What a request asks of admission: its rows, and the time that files lately took to be decoded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from test_service import House, run

from app.errors import DeadlineExceeded
from app.media.shared import SharedBytes
from app.serving.admission import Reservation
from app.serving.demand import Arrival, Demand, InFlight
from app.serving.results import ClassifyOptions, Task
from app.serving.service import Service, ServiceDefaults

PAUSE_S = 0.01  # what decoding takes at the least
AT_LEAST_S = 0.9 * PAUSE_S  # for the clocks' ticks
LONG_S = 3600.0  # no prediction of these tests comes near


@pytest.fixture
def house() -> Iterator[House]:
    house = House()
    house.service = Service(
        house,
        house.pool,
        house.admission,
        ServiceDefaults(image_timeout_s=LONG_S, video_timeout_s=LONG_S, image_workers=4, video_workers=1),
        house.notes,
    )
    house.gate.open()
    yield house
    house.close()


@pytest.fixture
def asked(house: House, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of decoding that admission is told of, by request."""
    told: list[float] = []
    admit = house.admission.admit

    def note(demand: Demand) -> Reservation:
        told.append(demand.decode_s or 0.0)
        return admit(demand)

    monkeypatch.setattr(house.admission, "admit", note)
    return told


def look_in(house: House, files: int, task: Task = "image") -> None:
    """A request of so many files that leaves again."""
    house.service.admit(Arrival(task, ClassifyOptions(), time.monotonic(), files=files)).release()


def test_every_view_of_a_video_is_a_row(house: House) -> None:
    options = ClassifyOptions(clips=2, crops=3)
    with house.service.admit(Arrival("video", options, time.monotonic(), files=2, body_bytes=7)):
        assert house.admission.in_flight == InFlight(2 * 6, 2 * 6 * 4 * 2 * 2 * 3 + 7)


@pytest.mark.parametrize(("task", "turns"), [("image", [1, 2]), ("video", [2, 8])])
def test_the_wait_for_a_worker_of_the_task_is_predicted_while_files_are_in_decoding(
    house: House, asked: list[float], task: Task, turns: list[int]
) -> None:
    go_on = asyncio.Event()
    decoding = asyncio.Event()

    async def pause(marks: bytes) -> None:
        await asyncio.sleep(PAUSE_S)

    async def wait(marks: bytes) -> None:
        decoding.set()
        await go_on.wait()

    async def scenario() -> None:
        house.pool.before = pause
        await house.classify(bytes([1]), task)
        house.pool.before = wait
        second = asyncio.create_task(house.classify(bytes([2]), task))
        await decoding.wait()
        for files in (1, 7):  # four workers for images, and one for videos
            look_in(house, files, task)
        go_on.set()
        await second
        look_in(house, 1, task)

    run(scenario())
    first, second, one_more, seven_more, alone = asked
    assert (first, second, alone) == (0.0, 0.0, 0.0)
    turn_s = one_more / turns[0]
    assert turn_s > AT_LEAST_S
    assert seven_more == pytest.approx(turns[1] * turn_s)


def test_of_another_caller_s_files_only_a_turn_is_waited_for(
    house: House, asked: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[float] = []
    monkeypatch.setattr(house.admission, "refusal", lambda demand: refused.append(demand.decode_s))
    resumed: list[float] = []
    monkeypatch.setattr(Reservation, "resume", lambda reservation, decode_s: resumed.append(decode_s))
    go_on = asyncio.Event()

    async def pause(marks: bytes) -> None:
        await asyncio.sleep(PAUSE_S)

    async def wait(marks: bytes) -> None:
        await go_on.wait()

    async def scenario() -> None:
        house.pool.before = pause
        await house.classify(b"\1", "video")
        house.pool.before = wait
        with house.service.admit(Arrival("video", ClassifyOptions(), time.monotonic(), caller="many")) as ticket:
            body = SharedBytes.of(b"\2")
            running = [asyncio.create_task(house.service.classify(ticket, body)) for _ in range(8)]
            while len(house.pool.callers) < 9:
                await asyncio.sleep(0)
            asked.clear()
            for caller in ("many", "few"):
                arrival = Arrival("video", ClassifyOptions(), time.monotonic(), caller=caller)
                with house.service.admit(arrival) as waiting:
                    waiting.resume()
                house.service.refusal(arrival)
            go_on.set()
            await asyncio.gather(*running)
            body.close()

    run(scenario())
    own, others = asked
    assert own > 8 * AT_LEAST_S
    assert others == pytest.approx(own * 2.5 / 9)  # a turn of the other's, half of the one in hand, its own
    assert refused == resumed == asked


def test_files_that_expire_in_decoding_count_in_what_it_takes(house: House, asked: list[float]) -> None:
    async def expire(marks: bytes) -> None:
        await asyncio.sleep(PAUSE_S)
        raise DeadlineExceeded("no worker was free")

    async def scenario() -> None:
        house.pool.before = expire
        with pytest.raises(DeadlineExceeded):
            await house.classify(bytes([1]), "video")
        look_in(house, 2, "video")

    run(scenario())
    assert asked[1] > 2 * AT_LEAST_S
