"""An HTTP worker's link and the engine host's session, over a real socket pair and an engine that a test can hold."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import cast

import numpy as np
import pytest
from processes import open_descriptors
from scarcity import descriptors_left
from serving_fakes import (
    FEATURES,
    PATIENCE_S,
    ROW_SHAPE,
    FeaturesEngine,
    Gate,
    classes_of,
    fake_features,
    flat_curve,
    manifest_of,
    note_terms,
    rows_of,
)

from app.engines.base import EngineInfo
from app.errors import (
    ChangeRefused,
    DeadlineExceeded,
    EngineError,
    HieraError,
    Overloaded,
    Unavailable,
    UnknownModel,
)
from app.media.shared import ONE_SHOT, DecodedRows, RowBuffer, UploadedRows
from app.media.spec import DecodeInfo
from app.serving import host
from app.serving.batcher import Batcher
from app.serving.changes import Change, Order, Report, Standing, VersionOnDisk, decode_order, encode_order
from app.serving.curve import CostModel
from app.serving.dispatcher import LocalDispatcher, deliver
from app.serving.host import Session
from app.serving.instance import Instance
from app.serving.model import EngineChoice, LoadedModel
from app.serving.observer import SilentObserver
from app.serving.registry import ModelRegistry
from app.serving.remote import HostLink, LinkEvents
from app.serving.results import Task
from app.serving.status import ModelStatus
from app.serving.submission import Terms
from app.serving.table import ModelTable
from app.serving.wire import State


class Shelf:
    """A registry of at most one model, which a test can swap."""

    def __init__(self) -> None:
        self.model: LoadedModel | None = None
        self.trouble: HieraError | None = None

    def models(self) -> list[ModelStatus]:
        if self.model is None:
            return []
        model = self.model
        return [ModelStatus(model.name, model.version, "ready", None, model.manifest, model, True, 3)]

    def get(self, task: Task, name: str | None) -> LoadedModel:
        if self.trouble is not None:
            raise self.trouble
        if self.model is None or self.model.manifest.task != task:
            raise UnknownModel("none")
        self.model.retain()
        return self.model

    def unready_reason(self) -> str | None:
        return None

    def hopeless_reason(self) -> str | None:
        return None


class House:
    """An engine behind a gate, a host's session, and the worker's link to it."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.engine = FeaturesEngine(self.gate)
        self.batcher = Batcher(max_rows=64, deliver=deliver, predict_s=lambda rows: 1.0)
        cost = CostModel(flat_curve())
        self.instance = Instance("model", self.engine, self.batcher, cost, SilentObserver(), prove=lambda engine: None)
        self.shelf = Shelf()
        self.shelf.model = self.model()
        self.table = ModelTable(cast(ModelRegistry, self.shelf))
        self.table.refresh()
        self.ended = asyncio.Event()
        self.worker_end, self.host_end = socket.socketpair()
        self.orders: list[Order] = []
        self.outcome: Report | HieraError = Report()
        self.session = Session(self.host_end, self.table, self.scrape, self.administer, self.ended.set)
        self.link = HostLink(exact_images=False)

    def model(self, version: int = 1) -> LoadedModel:
        return LoadedModel(
            manifest_of(version=version),
            tuple(f"class {index}" for index in range(7)),
            engine=EngineInfo("fake", "fp32", "cpu"),
            choice=EngineChoice("fake", "a test"),
            cost=CostModel(flat_curve()),
            dispatcher=LocalDispatcher(self.batcher),
            feature_dim=FEATURES,
        )

    async def scrape(self, accept: str) -> tuple[bytes, str]:
        return b"text for " + accept.encode(), "text/plain"

    async def administer(self, order: Order) -> Report:
        self.orders.append(order)
        if isinstance(self.outcome, HieraError):
            raise self.outcome
        return self.outcome

    def shown(self) -> LoadedModel:
        """The model as the worker finds it, not retained."""
        model = self.link.models.get("image", None)
        model.release()
        return model


def steps(scene: Callable[[House], Awaitable[None]]) -> None:
    """Run a scene in a house that is torn down afterwards."""

    async def scenario() -> None:
        async with furnished() as house:
            await scene(house)

    asyncio.run(scenario())


@contextlib.asynccontextmanager
async def furnished() -> AsyncIterator[House]:
    house = House()
    house.instance.start()
    house.link.open(
        house.worker_end, LinkEvents(lambda sock: None, lambda phase: None, lambda: None, lambda: b"[]", lambda: None)
    )
    await until(lambda: bool(house.link.models.models()))
    yield house
    house.gate.open()
    house.session.close()
    house.table.close()
    house.instance.stop()
    assert house.instance.join(PATIENCE_S)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


class Lease(DecodedRows):
    """Rows in sealed shared memory, as the media pool gives them; counts how often they were given back."""

    def __init__(self, *marks: int, reused: bool = True) -> None:
        rows = rows_of(*marks)
        self.buffer = RowBuffer(rows.nbytes, ONE_SHOT)
        os.pwrite(self.buffer.fd, rows.tobytes(), 0)
        self.closes = 0
        shared = self.buffer.rows((len(marks), *ROW_SHAPE))
        super().__init__(shared, DecodeInfo(2, 2, "fake"), 0.0, self.buffer.fd, self._count, reused=reused)

    def _count(self) -> None:
        self.closes += 1
        self.buffer.close()


def soon() -> float:
    return time.monotonic() + PATIENCE_S


def test_rows_are_classified_where_they_lie_and_given_back_once() -> None:
    async def scene(house: House) -> None:
        house.gate.open()
        lease = Lease(3, 4, 6)
        inference = await house.shown().dispatcher.infer(lease, Terms(soon()))
        assert classes_of(inference) == [3, 4, 6]
        assert inference.probabilities.dtype == np.float32
        assert (inference.batch_rows, inference.inference_s > 0) == (3, True)
        await until(lambda: lease.closes == 1)

    steps(scene)


def test_the_terms_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(house: House) -> None:
        submitted = note_terms(house.batcher, monkeypatch)
        house.gate.open()
        terms = [Terms(soon()), Terms(soon(), averaged=True), Terms(soon() + 1.0, "alice", with_features=True)]
        for each in terms:
            await house.shown().dispatcher.infer(Lease(1, 2), each)
        assert submitted == terms

    steps(scene)


def test_features_travel_where_they_are_asked_for() -> None:
    async def scene(house: House) -> None:
        house.gate.open()
        model = house.shown()
        assert model.feature_dim == FEATURES
        plain = await model.dispatcher.infer(Lease(1, 2), Terms(soon()))
        assert (classes_of(plain), plain.features, house.engine.fetched) == ([1, 2], None, [])
        inference = await model.dispatcher.infer(Lease(3, 4, 6), Terms(soon(), with_features=True))
        assert classes_of(inference) == [3, 4, 6]
        np.testing.assert_array_equal(inference.features, fake_features([3, 4, 6]))

    steps(scene)


def test_a_worker_can_decode_once_it_has_said_so() -> None:
    async def scene(house: House) -> None:
        assert house.session.unhealthy == "the media workers are being started"
        await house.session.report()
        assert house.session.unhealthy is None

    steps(scene)


def test_a_cancellation_travels_and_the_rows_are_never_run() -> None:
    async def scene(house: House) -> None:
        infer = house.shown().dispatcher.infer
        first, second = Lease(1), Lease(2)
        running = asyncio.create_task(infer(first, Terms(soon())))
        await asyncio.to_thread(house.gate.wait_entered)
        waiting = asyncio.create_task(infer(second, Terms(soon())))
        await until(lambda: house.batcher.pending_rows == 1)
        waiting.cancel()
        await until(lambda: second.closes == 1)
        assert house.batcher.pending_rows == 0
        assert first.closes == 0  # an engine reads them still
        house.gate.open()
        assert classes_of(await running) == [1]
        await until(lambda: first.closes == 1)
        assert house.engine.batches == [[1]]

    steps(scene)


def test_rows_that_an_engine_reads_are_kept_when_their_caller_has_left() -> None:
    async def scene(house: House) -> None:
        lease = Lease(1)
        running = asyncio.create_task(house.shown().dispatcher.infer(lease, Terms(soon())))
        await asyncio.to_thread(house.gate.wait_entered)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await asyncio.sleep(0.05)
        assert lease.closes == 0
        house.gate.open()
        await until(lambda: lease.closes == 1)

    steps(scene)


def test_the_deadline_answers_the_caller_while_the_engine_is_stuck_and_its_rows_are_kept() -> None:
    async def scene(house: House) -> None:
        infer = house.shown().dispatcher.infer
        held, waiting = Lease(1), Lease(2)
        stuck = asyncio.create_task(infer(held, Terms(time.monotonic() + 0.05)))
        await asyncio.to_thread(house.gate.wait_entered)
        with pytest.raises(DeadlineExceeded):
            await infer(waiting, Terms(time.monotonic() + 0.01))
        await until(lambda: waiting.closes == 1)
        with pytest.raises(DeadlineExceeded):
            await stuck
        assert (held.closes, house.batcher.pending_rows) == (0, 0)
        house.gate.open()
        await until(lambda: held.closes == 1)
        assert house.engine.batches == [[1]]

    steps(scene)


def test_memory_is_read_anew_each_time_that_it_comes() -> None:
    async def scene(house: House) -> None:
        house.gate.open()
        lease = Lease(1, 2)
        for marks in ([3, 4], [5, 6]):
            os.pwrite(lease.buffer.fd, rows_of(*marks).tobytes(), 0)
            rows = DecodedRows(lease.rows, DecodeInfo(2, 2, "fake"), 0.0, lease.buffer.fd, reused=True)
            assert classes_of(await house.shown().dispatcher.infer(rows, Terms(soon()))) == marks
        lease.close()

    steps(scene)


def test_memory_that_will_not_be_used_again_does_not_stay_mapped() -> None:
    async def scene(house: House) -> None:
        house.gate.open()
        before = open_descriptors()
        for mark in (3, 4):
            inference = await house.shown().dispatcher.infer(Lease(mark, reused=False), Terms(soon()))
            assert classes_of(inference) == [mark]
        await until(lambda: open_descriptors() == before)
        assert not house.session._memory._kept

    steps(scene)


def test_uploaded_rows_are_classified_where_they_lie() -> None:
    async def scene(house: House) -> None:
        house.gate.open()
        uploaded = UploadedRows((2, *ROW_SHAPE))
        uploaded.write(rows_of(5, 6).tobytes())
        inference = await house.shown().dispatcher.infer(uploaded, Terms(soon(), with_features=True))
        assert classes_of(inference) == [5, 6]
        np.testing.assert_array_equal(inference.features, fake_features([5, 6]))
        await until(lambda: uploaded.fd < 0)
        assert not house.session._memory._kept

    steps(scene)


def test_memory_that_the_worker_no_longer_uses_is_given_up_by_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(house: House) -> None:
        house.gate.open()
        lease = Lease(3)
        await house.shown().dispatcher.infer(lease, Terms(soon()))
        await until(lambda: lease.closes == 1)
        assert len(house.session._memory._kept) == 1
        monkeypatch.setattr(host, "KEPT_S", -1.0)
        house.session.show_state(State(None, None, {}))
        assert not house.session._memory._kept

    steps(scene)


def test_a_full_queue_is_refused_and_the_rows_come_back() -> None:
    async def scene(house: House) -> None:
        infer = house.shown().dispatcher.infer
        running = asyncio.create_task(infer(Lease(1), Terms(soon())))
        await asyncio.to_thread(house.gate.wait_entered)
        waiting = asyncio.create_task(infer(Lease(2), Terms(soon())))
        await until(lambda: house.batcher.pending_rows == 1)
        lease = Lease(*range(64))
        with pytest.raises(Overloaded, match="full"):
            await infer(lease, Terms(soon()))
        await until(lambda: lease.closes == 1)
        house.gate.open()
        await asyncio.gather(running, waiting)

    steps(scene)


def test_a_worker_without_descriptors_answers_that_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(house: House) -> None:
        house.gate.open()

        def no_descriptor(fd: int) -> int:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        lease = Lease(1)
        with monkeypatch.context() as patched:
            patched.setattr(os, "dup", no_descriptor)
            with pytest.raises(Overloaded, match="no room for another file"):
                await house.shown().dispatcher.infer(lease, Terms(soon()))
        assert lease.closes == 1
        assert classes_of(await house.shown().dispatcher.infer(Lease(2), Terms(soon()))) == [2]

    steps(scene)


def test_a_connection_that_a_worker_has_no_descriptor_for_is_closed_and_the_worker_lives() -> None:
    async def scene(house: House) -> None:
        house.gate.open()
        caller, accepted = socket.socketpair()
        with caller:
            house.session.give(accepted)
            house.session._channel._flush()  # now, as another process would: what has left is closed here
            with descriptors_left(0):
                async with asyncio.timeout(PATIENCE_S):
                    caller.setblocking(False)
                    assert await asyncio.get_running_loop().sock_recv(caller, 1) == b""
        assert classes_of(await house.shown().dispatcher.infer(Lease(1), Terms(soon()))) == [1]
        assert not house.ended.is_set()

    steps(scene)


def test_a_host_without_descriptors_answers_that_there_is_no_room_and_keeps_the_worker(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scene(house: House) -> None:
        house.gate.open()
        assert classes_of(await house.shown().dispatcher.infer(Lease(1), Terms(soon()))) == [1]
        kept = house.session._memory._kept
        assert len(kept) == 1
        outcomes: list[object] = []
        lease = Lease(2)
        house.shown().dispatcher.submit(lease, Terms(soon()), outcomes.append)
        house.link._channel._flush()  # now, as another process would: what has left is closed here
        with descriptors_left(0):
            await until(lambda: bool(outcomes))
        assert isinstance(outcomes[0], Overloaded)
        assert "no room for another file" in str(outcomes[0])
        await until(lambda: lease.closes == 1)
        assert not kept  # each held a descriptor
        assert "a file's rows cannot be mapped: [Errno 24] Too many open files" in caplog.messages
        assert classes_of(await house.shown().dispatcher.infer(Lease(3), Terms(soon()))) == [3]
        assert not house.ended.is_set()

    steps(scene)


def test_an_engine_s_error_comes_out_as_the_same_exception() -> None:
    async def scene(house: House) -> None:
        def fail(marks: list[int]) -> None:
            raise EngineError("no such kernel")

        house.engine.before_run = fail
        lease = Lease(1)
        with pytest.raises(EngineError, match="no such kernel"):
            await house.shown().dispatcher.infer(lease, Terms(soon()))
        await until(lambda: lease.closes == 1)

    steps(scene)


def test_a_worker_s_death_takes_its_rows_out_of_the_queue_and_lets_go_of_the_models() -> None:
    async def scene(house: House) -> None:
        infer = house.shown().dispatcher.infer
        tasks = [asyncio.create_task(infer(Lease(1), Terms(soon())))]
        await asyncio.to_thread(house.gate.wait_entered)
        tasks.append(asyncio.create_task(infer(Lease(2), Terms(soon()))))
        await until(lambda: house.batcher.pending_rows == 1)
        house.link._channel.close()
        await until(house.ended.is_set)
        assert house.batcher.pending_rows == 0
        house.table.close()
        assert house.shelf.model is not None
        assert house.shelf.model.wait_idle(0.0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    steps(scene)


def test_memory_that_could_shrink_under_the_engine_is_refused_with_its_worker() -> None:
    async def scene(house: House) -> None:
        lease = Lease(1)
        unsealed = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
        os.ftruncate(unsealed, 1 << 16)
        lease._fd = unsealed
        task = asyncio.create_task(house.shown().dispatcher.infer(lease, Terms(soon())))
        await until(house.ended.is_set)
        task.cancel()
        os.close(unsealed)

    steps(scene)


def test_a_swapped_model_stays_loaded_until_the_worker_has_done_with_it() -> None:
    async def scene(house: House) -> None:
        old = house.shelf.model
        assert old is not None
        for _ in range(3):
            assert not house.table.refresh()
            house.session.show_models()  # as when another model changes
            house.table.let_go()
        used = house.link.models.get("image", "model")  # a request of the worker
        house.shelf.model = house.model(version=2)
        assert house.table.refresh()
        house.session.show_models()
        house.table.let_go()
        await until(lambda: house.shown().version == 2)
        assert not old.wait_idle(0.2)
        used.release()
        await until(lambda: old.wait_idle(0.0))
        assert not house.table.refresh()

    steps(scene)


def test_a_model_whose_engine_is_lost_is_refused_in_the_registry_s_own_words() -> None:
    async def scene(house: House) -> None:
        house.shelf.trouble = Unavailable("the model model is being restarted; try again soon")
        assert house.table.refresh()
        house.session.show_models()

        def refused() -> bool:
            try:
                house.shown()
            except Unavailable as error:
                return "being restarted" in str(error)
            return False

        await until(refused)
        house.shelf.trouble = None
        house.table.refresh()
        house.session.show_models()
        await until(lambda: not refused())
        with pytest.raises(UnknownModel, match="no model named other"):
            house.link.models.get("image", "other")
        with pytest.raises(UnknownModel, match="not video"):
            house.link.models.get("video", "model")

    steps(scene)


def test_what_changes_from_second_to_second_follows() -> None:
    async def scene(house: House) -> None:
        assert house.shelf.model is not None
        house.shelf.model.cost.follow(2.0)
        house.session.show_state(house.table.state("an HTTP worker is being started"))
        await until(lambda: house.link.models.unready_reason() == "an HTTP worker is being started")
        assert house.shown().cost.correction == 2.0
        assert house.link.models.models()[0].queue_rows == 3
        await house.session.report()
        assert await house.link.scrape("any") == (b"text for any", "text/plain")

    steps(scene)


def test_a_scrape_that_fails_is_answered_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(house: House) -> None:
        async def broken(accept: str) -> tuple[bytes, str]:
            raise KeyError("a family")

        house.session._scrape = broken
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(EngineError, match="its log says why"):
                await house.link.scrape("any")
        assert house.link._asked == {}

    steps(scene)
    assert [record.message for record in caplog.records] == ["a scrape failed"]


def test_an_order_travels_to_the_host_and_its_report_or_refusal_comes_back() -> None:
    async def scene(house: House) -> None:
        order = Order("load", "op", "model", 3, "request-1")
        change = Change("model", "swapped", 3, 2, "passed", None, 0.5, 0.25, True)
        standing = Standing("model", 3, "ready", None, "ab", (VersionOnDisk(3, "ab", True),), None)
        house.outcome = Report((change,), (standing,))
        assert await house.link.administer(order) == house.outcome
        assert house.orders == [order]
        house.outcome = ChangeRefused("model version 3 is refused: a file is missing")
        with pytest.raises(ChangeRefused, match="a file is missing"):
            await house.link.administer(order)
        assert house.link._asked == {}

    steps(scene)


@pytest.mark.parametrize(
    "order",
    [
        Order("load", "op"),
        Order("survey", "op", "model"),
        Order("erase", "op"),  # type: ignore[arg-type]
        Order("load", "op", "model", "3"),  # type: ignore[arg-type]
        Order("reload", 1),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_order_is_not_taken_for_one(order: Order) -> None:
    with pytest.raises(ValueError, match="an order that is none"):
        decode_order(encode_order(order))
