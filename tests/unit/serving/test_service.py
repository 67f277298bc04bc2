"""From a file to a classification: admission, deadlines, cancellation, draining. Pool and engine are steered."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from serving_fakes import (
    CLASSES,
    FEATURES,
    PATIENCE_S,
    FakePool,
    FakeRows,
    FeaturesEngine,
    Gate,
    fake_features,
    flat_curve,
    manifest_of,
    note_terms,
    probabilities_of,
    rows_of,
)

from app.engines.base import EngineInfo
from app.errors import (
    BrokenMedia,
    DeadlineExceeded,
    EngineError,
    InvalidParameter,
    Overloaded,
    Unavailable,
    UnknownModel,
)
from app.media.shared import DecodedRows, SharedBytes
from app.media.spec import DecodeJob
from app.serving.admission import Admission
from app.serving.batcher import Batcher
from app.serving.curve import CostModel
from app.serving.demand import Arrival, InFlight
from app.serving.dispatcher import LocalDispatcher, deliver
from app.serving.instance import Instance
from app.serving.model import EngineChoice, LoadedModel
from app.serving.observer import SilentObserver, Stage
from app.serving.results import Classification, ClassifyOptions, Task
from app.serving.service import Service, ServiceDefaults


class Notes(SilentObserver):
    """An observer that remembers."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []
        self.seconds: dict[str, float] = {}  # of the latest file, by stage
        self.cancellations: list[Stage] = []
        self.rejections: list[str] = []

    def stage_duration(self, model: str, stage: Stage, seconds: float) -> None:
        assert 0 <= seconds < PATIENCE_S
        self.stages.append(stage)
        self.seconds[f"{stage}_s"] = seconds

    def cancelled(self, model: str, stage: Stage) -> None:
        self.cancellations.append(stage)

    def rejected(self, model: str, reason: str) -> None:
        self.rejections.append(reason)


class House:
    """A service over a fake pool and a fake engine, with everything between them real."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.engine = FeaturesEngine(self.gate)
        self.notes = Notes()
        self.pool = FakePool()
        cost = CostModel(flat_curve(seconds=0.5))
        self.batcher = Batcher(max_rows=100, deliver=deliver, predict_s=cost.predict_s)
        self.instance = Instance("model", self.engine, self.batcher, cost, self.notes, prove=lambda engine: None)
        self.models = {
            task: LoadedModel(
                manifest_of(f"{task}_model", task),
                tuple(f"class {index}" for index in range(CLASSES)),
                engine=EngineInfo("noop", "fp32", "cpu"),
                choice=EngineChoice("noop", "for tests"),
                cost=cost,
                dispatcher=LocalDispatcher(self.batcher),
                feature_dim=FEATURES,
            )
            for task in ("image", "video")
        }
        self.admission = Admission(
            max_rows=20, max_bytes=10_000, on_reject=lambda model, reason: self.notes.rejected(model, reason)
        )
        self.service = Service(
            self, self.pool, self.admission, ServiceDefaults(image_timeout_s=PATIENCE_S, max_clips=4), self.notes
        )
        self.instance.start()

    def get(self, task: Task, name: str | None) -> LoadedModel:
        if name not in (None, self.models[task].name):
            raise UnknownModel(f"there is no model named {name}")
        self.models[task].retain()
        return self.models[task]

    async def classify(self, marks: bytes, task: Task = "image", **options: Any) -> Classification:
        with (
            self.service.admit(Arrival(task, ClassifyOptions(**options), time.monotonic())) as ticket,
            SharedBytes.of(marks) as body,
        ):
            return await self.service.classify(ticket, body)

    def check_nothing_is_held(self) -> None:
        assert self.admission.in_flight == InFlight(0, 0)
        assert self.service.open_tickets == 0
        assert all(model.wait_idle(PATIENCE_S) for model in self.models.values())
        assert self.batcher.pending_rows == 0
        assert {rows.closes for rows in self.pool.made} <= {1}

    def close(self) -> None:
        self.gate.open()
        self.instance.stop()
        assert self.instance.join(PATIENCE_S)
        self.check_nothing_is_held()


@pytest.fixture
def house() -> Iterator[House]:
    house = House()
    yield house
    house.close()


def run(scenario: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(3 * PATIENCE_S):
            await scenario

    asyncio.run(bounded())


async def entered(gate: Gate) -> None:
    await asyncio.to_thread(gate.wait_entered)


def test_an_image_is_classified(house: House) -> None:
    house.gate.open()
    answer = asyncio.run(house.classify(bytes([3]), top_k=2))
    assert [(each.class_id, each.label) for each in answer.predictions] == [(3, "class 3"), (0, "class 0")]
    assert answer.predictions[0].probability == pytest.approx(0.7)
    assert (answer.model.name, answer.model.version, answer.model.noop) == ("image_model", 1, True)
    assert (answer.batch_rows, answer.clips) == (1, ())
    assert house.notes.stages == ["decode", "queue", "inference", "postprocess"]
    assert house.notes.seconds == asdict(answer.latency)


def test_the_views_of_a_video_are_averaged_and_each_clip_named(house: House) -> None:
    house.gate.open()
    answer = asyncio.run(house.classify(bytes([1, 1, 2, 4, 4, 4]), "video", clips=2, crops=3))
    assert answer.predictions[0].class_id == 4
    assert [(clip.start_s, clip.end_s, clip.label) for clip in answer.clips] == [
        (0.0, 2.0, "class 1"),
        (1.0, 3.0, "class 4"),
    ]
    assert answer.batch_rows == 6


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("image", {"top_k": 0}, "top_k"),
        ("image", {"timeout_ms": 0}, "timeout_ms"),
        ("image", {"clips": 2}, "videos"),
        ("image", {"crops": 3}, "videos"),
        ("video", {"clips": 5}, "clips must be from 1 to 4"),
        ("video", {"clips": 0}, "clips"),
        ("video", {"crops": 2}, "crops must be 1 or 3"),
    ],
)
def test_an_option_out_of_range_is_refused_in_plain_words(
    house: House, task: Task, options: dict[str, int], words: str
) -> None:
    with pytest.raises(InvalidParameter, match=words):
        asyncio.run(house.classify(b"\1", task, **options))


def test_a_model_that_does_not_exist_is_refused(house: House) -> None:
    with pytest.raises(UnknownModel):
        asyncio.run(house.classify(b"\1", model="other"))


def test_files_of_one_request_share_a_ticket_and_have_their_own_outcomes(house: House) -> None:
    async def scenario() -> None:
        async def broken(marks: bytes) -> None:
            if marks == b"\2":
                raise BrokenMedia("the file ends too soon")

        house.gate.open()
        house.pool.before = broken
        bodies = [SharedBytes.of(bytes([mark])) for mark in (1, 2, 3)]
        with house.service.admit(Arrival("image", ClassifyOptions(), time.monotonic())) as ticket:
            ticket.grow(files=2, body_bytes=100)
            assert house.admission.in_flight == InFlight(3, 3 * 12 + 100)
            outcomes = await asyncio.gather(
                *(house.service.classify(ticket, body) for body in bodies), return_exceptions=True
            )
        for body in bodies:
            body.close()
        assert isinstance(outcomes[0], Classification)
        assert isinstance(outcomes[1], BrokenMedia)
        assert isinstance(outcomes[2], Classification)
        assert outcomes[2].predictions[0].class_id == 3

    run(scenario())


def test_a_ticket_is_released_once_however_often_it_is_asked_to(house: House) -> None:
    first = house.service.admit(Arrival("image", ClassifyOptions(), time.monotonic()))
    second = house.service.admit(Arrival("image", ClassifyOptions(), time.monotonic()))
    for _ in range(3):
        first.release()
    assert house.service.open_tickets == 1
    assert house.admission.in_flight.rows == 1
    second.release()


def test_a_queue_that_cannot_make_the_deadline_refuses_before_decoding(house: House) -> None:
    async def scenario() -> None:
        running = asyncio.create_task(house.classify(bytes(8), "video", clips=4, crops=1))
        await entered(house.gate)
        with pytest.raises(Overloaded) as refusal:
            await house.classify(b"\1", timeout_ms=600)
        assert 0 < refusal.value.retry_after_s < 1
        assert len(house.pool.made) == 1
        assert house.notes.rejections == ["deadline"]
        house.gate.open()
        await running

    run(scenario())


def test_who_is_in_a_hurry_is_let_in_beside_a_long_queue_and_answered_before_it(house: House) -> None:
    async def scenario() -> None:
        running = asyncio.create_task(house.classify(b"\1"))
        await entered(house.gate)
        answered: list[str] = []

        async def note(name: str, **options: Any) -> None:
            await house.classify(b"\1", **options)
            answered.append(name)

        patient = [asyncio.create_task(note("patient")) for _ in range(10)]  # 5 s of work
        while house.batcher.pending_rows < len(patient):
            await asyncio.sleep(0)
        hurried = asyncio.create_task(note("hurried", timeout_ms=5000))
        while house.batcher.pending_rows <= len(patient):
            await asyncio.sleep(0)
        house.gate.open()
        await asyncio.gather(running, hurried, *patient)
        assert answered[0] == "hurried"
        assert house.notes.rejections == []

    run(scenario())


def test_the_gate_is_told_what_admission_would_refuse_and_nothing_is_held_for_that(house: House) -> None:
    def refusal(task: Task = "image", body_bytes: int = 0, **options: Any) -> Overloaded | None:
        return house.service.refusal(Arrival(task, ClassifyOptions(**options), time.monotonic(), body_bytes=body_bytes))

    async def scenario() -> None:
        assert refusal(body_bytes=10**9) is None  # alone in the house
        running = asyncio.create_task(house.classify(bytes(8), "video", clips=4, crops=1))
        await entered(house.gate)
        in_flight = house.admission.in_flight
        late = refusal(timeout_ms=600)
        assert late is not None
        with pytest.raises(Overloaded) as admitted:
            await house.classify(b"\1", timeout_ms=600)
        assert str(late) == str(admitted.value)
        assert late.retry_after_s == pytest.approx(admitted.value.retry_after_s, abs=0.1)
        assert refusal() is None
        large = refusal(body_bytes=10**9)
        assert large is not None
        assert house.notes.rejections == ["deadline", "deadline", "queue_bytes"]
        assert refusal(model="unknown", timeout_ms=600) is None
        assert refusal(clips=99, timeout_ms=600) is None
        assert house.admission.in_flight == in_flight
        assert house.models["image"].wait_idle(0)
        house.service.drain()
        assert refusal(timeout_ms=600) is None
        house.gate.open()
        await running

    run(scenario())


def test_a_deadline_that_has_passed_before_the_body_is_read_is_not_admitted(house: House) -> None:
    with pytest.raises(DeadlineExceeded):
        house.service.admit(Arrival("image", ClassifyOptions(timeout_ms=50), time.monotonic() - 1))


def test_the_deadline_holds_while_the_engine_is_stuck(house: House) -> None:
    async def scenario() -> None:
        with pytest.raises(DeadlineExceeded):
            await house.classify(b"\1", timeout_ms=30)
        assert house.notes.cancellations == ["queue"]
        house.gate.open()
        while not house.pool.made[0].closes:
            await asyncio.sleep(0)

    run(scenario())


def test_a_busy_spell_that_is_over_takes_at_most_half_of_the_time_for_decoding(house: House) -> None:
    latest: list[float] = []
    decode = house.pool.decode

    async def note(body: SharedBytes, job: DecodeJob, deadline: float, caller: str = "") -> DecodedRows:
        latest.append(deadline - time.monotonic())
        return await decode(body, job, deadline)

    async def scenario() -> None:
        house.pool.decode = note  # type: ignore[method-assign]
        house.gate.open()
        house.models["image"].cost.follow(8.0)  # 4 s a row, by what was observed
        await house.classify(b"\1", timeout_ms=3000)
        house.models["image"].cost.follow(2.0)
        await house.classify(b"\1", timeout_ms=3000)

    run(scenario())
    assert latest == [pytest.approx(1.5, abs=0.4), pytest.approx(2.0, abs=0.4)]


def test_several_engines_do_not_make_one_row_quicker(house: House) -> None:
    model = house.models["image"]
    four = LoadedModel(
        model.manifest,
        model.labels,
        engine=model.engine,
        choice=model.choice,
        cost=model.cost,
        dispatcher=model.dispatcher,
        instances=4,
    )
    assert [four.predict_s(rows) for rows in (1, 4, 5)] == [model.predict_s(rows) for rows in (1, 1, 2)]


def test_a_timeout_longer_than_the_server_allows_is_cut_to_its_bound(house: House) -> None:
    with house.service.admit(Arrival("image", ClassifyOptions(timeout_ms=10**9), 1000000000.0)) as ticket:
        assert ticket.deadline == 1e9 + PATIENCE_S


def test_a_caller_that_leaves_while_its_file_is_decoded_holds_nothing(house: House) -> None:
    async def scenario() -> None:
        decoding = asyncio.Event()

        async def hang(marks: bytes) -> None:
            decoding.set()
            await asyncio.Event().wait()

        house.pool.before = hang
        task = asyncio.create_task(house.classify(b"\1"))
        await decoding.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert house.notes.cancellations == ["decode"]
        house.check_nothing_is_held()

    run(scenario())


def test_a_caller_that_leaves_during_inference_holds_nothing_once_the_engine_returns(house: House) -> None:
    async def scenario() -> None:
        task = asyncio.create_task(house.classify(b"\1"))
        await entered(house.gate)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert house.admission.in_flight == InFlight(0, 0)
        house.gate.open()
        while not house.pool.made[0].closes:
            await asyncio.sleep(0)

    run(scenario())
    assert house.notes.cancellations == ["queue"]


def test_a_failure_of_the_engine_reaches_the_caller_and_releases_everything(house: House) -> None:
    def fail(marks: list[int]) -> None:
        raise EngineError("broken")

    house.engine.before_run = fail
    with pytest.raises(EngineError):
        asyncio.run(house.classify(b"\1"))
    house.check_nothing_is_held()
    assert house.notes.cancellations == []


def test_draining_refuses_new_requests_and_finishes_the_admitted_ones(house: House) -> None:
    async def scenario() -> None:
        running = asyncio.create_task(house.classify(b"\5"))
        await entered(house.gate)
        house.service.drain()
        with pytest.raises(Unavailable) as refusal:
            await house.classify(b"\1")
        assert refusal.value.code == "draining"
        assert house.notes.rejections == ["draining"]
        assert await house.service.drained(0.01) is False
        house.gate.open()
        assert await house.service.drained(PATIENCE_S) is True
        assert (await running).predictions[0].class_id == 5

    run(scenario())


def test_a_service_that_stood_idle_before_is_drained_by_its_last_request_alone(house: House) -> None:
    async def scenario() -> None:
        house.gate.open()
        await house.classify(b"\1")
        ticket = house.service.admit(Arrival("image", ClassifyOptions(), time.monotonic()))
        house.service.drain()
        assert await house.service.drained(0.01) is False
        ticket.release()
        assert await house.service.drained(PATIENCE_S) is True

    run(scenario())


def test_an_idle_service_is_drained_at_once(house: House) -> None:
    async def scenario() -> None:
        house.service.drain()
        assert await house.service.drained(PATIENCE_S) is True

    run(scenario())


def test_a_burst_is_answered_in_batches(house: House) -> None:
    async def scenario() -> None:
        first = asyncio.create_task(house.classify(b"\0"))
        await entered(house.gate)
        rest = [asyncio.create_task(house.classify(bytes([mark]))) for mark in range(1, 7)]
        while house.batcher.pending_rows < 6:
            await asyncio.sleep(0)
        house.gate.open()
        answers = await asyncio.gather(first, *rest)
        assert [answer.predictions[0].class_id for answer in answers] == [0, 1, 2, 3, 4, 5, 6]
        assert [answer.batch_rows for answer in answers] == [1] + [6] * 6

    run(scenario())


def test_features_come_with_the_classes_if_they_are_asked_for(house: House) -> None:
    async def scenario() -> None:
        house.gate.open()
        assert (await house.classify(b"\3")).features is None
        of_image = await house.classify(b"\3", features=True)
        assert of_image.features is not None
        np.testing.assert_array_equal(of_image.features, fake_features([3])[0])
        of_video = await house.classify(bytes([1, 1, 2, 4, 4, 6]), "video", clips=2, crops=3, features=True)
        assert of_video.features is not None
        assert of_video.features.dtype == np.float32
        np.testing.assert_array_equal(of_video.features, fake_features([3])[0])  # the mean over the views
        assert (
            of_video.predictions
            == (await house.classify(bytes([1, 1, 2, 4, 4, 6]), "video", clips=2, crops=3)).predictions
        )

    run(scenario())


def test_several_views_count_by_their_mean_and_rows_by_themselves(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted = note_terms(house.batcher, monkeypatch)
    house.gate.open()

    async def scenario() -> None:
        await house.classify(b"\1")
        await house.classify(b"\1\2", "video", clips=2)
        with (
            house.service.admit(Arrival("video", ClassifyOptions(clips=2), time.monotonic())) as ticket,
            SharedBytes.of(b"\1\2") as body,
        ):
            await house.service.run_file(ticket, body)

    run(scenario())
    assert [terms.averaged for terms in submitted] == [False, True, False]


def test_who_asks_is_known_to_media_workers_and_engine(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted = note_terms(house.batcher, monkeypatch)

    async def scenario() -> None:
        house.gate.open()
        for caller in ("alice", ""):
            with (
                house.service.admit(Arrival("image", ClassifyOptions(), time.monotonic(), caller=caller)) as ticket,
                SharedBytes.of(b"\1") as body,
            ):
                assert ticket.caller == caller
                await house.service.classify(ticket, body)

    run(scenario())
    assert house.pool.callers == ["alice", ""]
    assert [terms.caller for terms in submitted] == ["alice", ""]


def test_a_caller_who_fills_the_queue_keeps_no_other_out(house: House) -> None:
    def arrival(caller: str) -> Arrival:
        return Arrival("image", ClassifyOptions(), time.monotonic(), caller=caller)

    async def scenario() -> None:
        with contextlib.ExitStack() as held:
            house.service.admit(arrival("few")).release()
            with contextlib.suppress(Overloaded):
                for _ in range(100):
                    held.enter_context(house.service.admit(arrival("many")))
            assert house.service.refusal(arrival("many"))
            assert not house.service.refusal(arrival("few"))
            held.enter_context(house.service.admit(arrival("few")))

    run(scenario())
    assert house.notes.rejections == ["share", "share"]


def test_a_model_without_features_is_not_asked_for_them(house: House) -> None:
    house.models["image"].feature_dim = 0
    with pytest.raises(InvalidParameter, match="image_model gives no features"):
        asyncio.run(house.classify(b"\3", features=True))
    assert house.pool.made == []


@pytest.mark.parametrize("with_features", [False, True])
def test_what_the_model_itself_gives_for_a_file_or_for_rows_can_be_had(house: House, with_features: bool) -> None:
    async def scenario() -> None:
        house.gate.open()
        rows = FakeRows(rows_of(3, 5))
        with (
            house.service.admit(Arrival("image", ClassifyOptions(), time.monotonic())) as ticket,
            SharedBytes.of(b"\4") as body,
        ):
            of_file = await house.service.run_file(ticket, body, with_features=with_features)
            assert house.notes.stages == ["decode", "queue", "inference"]
            assert of_file.latency.decode_s == house.notes.seconds["decode_s"] > 0
            of_rows = await house.service.run_rows(ticket, rows, with_features=with_features)
        assert house.notes.stages[3:] == ["queue", "inference"]
        assert (of_rows.latency.decode_s, of_rows.batch_rows, of_rows.model.name) == (0.0, 2, "image_model")
        for outputs, marks in ((of_file, [4]), (of_rows, [3, 5])):
            np.testing.assert_array_equal(outputs.probabilities, probabilities_of(marks))
            if with_features:
                assert outputs.features is not None
                np.testing.assert_array_equal(outputs.features, fake_features(marks))
            else:
                assert outputs.features is None
        while not rows.closes:
            await asyncio.sleep(0)
        assert rows.closes == 1

    run(scenario())


def test_rows_that_come_decoded_are_late_or_given_up_like_a_file_s(house: House) -> None:
    async def scenario() -> None:
        rows = [FakeRows(rows_of(1)), FakeRows(rows_of(2))]
        with house.service.admit(Arrival("image", ClassifyOptions(), time.monotonic())) as ticket:
            left = asyncio.create_task(house.service.run_rows(ticket, rows[0]))
            await entered(house.gate)
            left.cancel()
            with pytest.raises(asyncio.CancelledError):
                await left
            ticket.hurry(time.monotonic() + 0.03)
            with pytest.raises(DeadlineExceeded):
                await house.service.run_rows(ticket, rows[1])
        assert house.notes.cancellations == ["queue", "queue"]
        house.gate.open()
        while not all(each.closes for each in rows):
            await asyncio.sleep(0)

    run(scenario())


def test_a_caller_may_hurry_and_not_take_longer_than_it_had(house: House) -> None:
    started = time.monotonic()
    with house.service.admit(Arrival("image", ClassifyOptions(), started)) as ticket:
        ticket.hurry(started + 2 * PATIENCE_S)
        assert ticket.deadline == started + PATIENCE_S
        ticket.hurry(started + PATIENCE_S - 1)
        assert ticket.deadline == ticket.reservation.held.deadline == started + PATIENCE_S - 1
        with pytest.raises(DeadlineExceeded, match="passed while the request was read"):
            ticket.hurry(started)
