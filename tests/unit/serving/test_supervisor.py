"""Stuck and dead engines are noticed by progress and rebuilt with growing pauses; clock and engine are steered."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from serving_fakes import PATIENCE_S, Clock, FakeEngine, Gate, Listener, classes_of, deliver_here, flat_curve, rows_of

from app.engines.base import Engine, Rows
from app.errors import EngineError, EngineLost
from app.serving.batcher import Batcher
from app.serving.curve import BatchCurve, CostModel
from app.serving.instance import Instance
from app.serving.observer import SilentObserver
from app.serving.submission import Terms
from app.serving.supervisor import InstanceKeeper, SupervisionOptions, Supervisor

FAR = float("inf")
OPTIONS = SupervisionOptions(
    stuck_factor=10, stuck_floor_s=5, first_pause_s=1, longest_pause_s=8, interval_s=0.001, hopeless_after=2
)


class House:
    """A keeper around real instances; builds run at once, and engines come from a list."""

    def __init__(self, *engines: Engine | Exception) -> None:
        self.clock = Clock()
        self.batcher = Batcher(max_rows=100, deliver=deliver_here, predict_s=lambda rows: 0.0)
        self.cost = CostModel(flat_curve(seconds=0.1))
        self.engines = list(engines)
        self.changes = 0
        self.builds = 0
        self.no_threads = 0  # so many times there is none to be had
        self.prove: Callable[[Engine], object] = lambda engine: None
        self.instances: list[Instance] = []
        self.keeper = InstanceKeeper(
            "model",
            self.build,
            self.build(),
            self.cost,
            OPTIONS,
            on_change=self.changed,
            clock=self.clock,
            spawn=self.spawn,
        )

    def build(self) -> Instance:
        self.builds += 1
        engine = self.engines.pop(0)
        if isinstance(engine, Exception):
            raise engine
        instance = Instance(
            "model",
            engine,
            self.batcher,
            self.cost,
            SilentObserver(),
            prove=lambda suspect: self.prove(suspect),
            clock=self.clock,
        )
        self.instances.append(instance)
        return instance

    def spawn(self, work: Callable[[], None], name: str) -> None:
        if self.no_threads:
            self.no_threads -= 1
            raise RuntimeError("can't start new thread")
        work()

    def changed(self) -> None:
        self.changes += 1

    def submit(self, *marks: int) -> Listener:
        listener = Listener()
        self.batcher.submit(rows_of(*marks), Terms(FAR), listener)
        return listener

    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds
        self.keeper.check()


@pytest.fixture
def gates() -> list[Gate]:
    return [Gate() for _ in range(3)]


@pytest.fixture
def open_house(gates: list[Gate]) -> Iterator[Callable[..., House]]:
    houses: list[House] = []

    def build(*engines: Engine | Exception) -> House:
        houses.append(House(*engines))
        return houses[-1]

    yield build
    for gate in gates:
        gate.open()
    for house in houses:
        house.keeper.stop()
        assert house.keeper.join(PATIENCE_S)
        assert all(instance.join(PATIENCE_S) for instance in house.instances)


OpenHouse = Callable[..., House]


def die(marks: list[int]) -> None:
    raise SystemExit


def test_a_run_that_takes_many_times_its_prediction_is_stuck(open_house: OpenHouse, gates: list[Gate]) -> None:
    house = open_house(FakeEngine(gates[0]), FakeEngine())
    stuck = house.submit(1)
    gates[0].wait_entered()
    house.pass_time(4.9)
    assert house.keeper.reason is None
    house.pass_time(0.2)
    assert "running for 5.1 s" in (house.keeper.reason or "")
    assert isinstance(stuck.error(), EngineError)
    assert stuck.releases == 0
    waiting = house.submit(2)
    house.pass_time(0.9)
    assert house.builds == 1
    house.pass_time(0.2)
    assert house.keeper.reason is None
    assert classes_of(waiting.inference()) == [2]
    assert house.changes == 2
    gates[0].open()
    assert stuck.released.wait(PATIENCE_S)
    stuck.error()


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_an_idle_engine_is_never_stuck(open_house: OpenHouse, device: str) -> None:
    house = open_house(FakeEngine(device=device))
    house.submit(1).inference()
    house.pass_time(1e6)
    assert house.keeper.reason is None
    assert house.changes == 0


def test_a_large_batch_is_given_its_time(open_house: OpenHouse, gates: list[Gate]) -> None:
    house = open_house(FakeEngine(gates[0]))
    house.cost.observe(1, 100.0)
    house.cost.curve = flat_curve(seconds=2.0)
    house.submit(1)
    gates[0].wait_entered()
    house.pass_time(19.0)
    assert house.keeper.reason is None


def test_a_batch_may_take_as_much_longer_as_it_has_more_rows(open_house: OpenHouse, gates: list[Gate]) -> None:
    house = open_house(FakeEngine(gates[0]))
    house.cost.curve = BatchCurve((1, 8), (4.0, 8.0))
    house.submit(*range(8))
    gates[0].wait_entered()
    house.pass_time(79)
    assert house.keeper.reason is None
    house.pass_time(2)
    assert "a batch of 8 rows has been running for 81.0 s" in (house.keeper.reason or "")


def test_an_engine_whose_thread_died_is_rebuilt(open_house: OpenHouse) -> None:
    house = open_house(FakeEngine(die), FakeEngine())
    assert isinstance(house.submit(1).error(), EngineError)
    assert house.instances[0].join(PATIENCE_S)
    house.pass_time(0.1)
    assert "SystemExit" in (house.keeper.reason or "")
    house.pass_time(1.1)
    assert house.keeper.reason is None
    assert classes_of(house.submit(3).inference()) == [3]


def test_a_proof_that_hangs_is_noticed(open_house: OpenHouse, gates: list[Gate]) -> None:
    def fail(marks: list[int]) -> None:
        raise EngineError("a device in a bad state")

    house = open_house(FakeEngine(fail), FakeEngine())
    house.prove = lambda engine: gates[0]([])
    for _ in range(3):
        house.submit(1).error()
    gates[0].wait_entered()
    house.pass_time(4.9)
    assert house.keeper.reason is None
    house.pass_time(0.2)
    assert "running for 5.1 s" in (house.keeper.reason or "")
    house.pass_time(1.1)
    assert house.keeper.reason is None
    assert classes_of(house.submit(2).inference()) == [2]


def test_a_batch_whose_gathering_hangs_while_the_engine_idles_is_noticed(
    open_house: OpenHouse, gates: list[Gate]
) -> None:
    class Stages(FakeEngine):
        def stage(self, rows: Rows) -> None:
            gates[0]([])

    lost = Stages(device="cuda:0")
    house = open_house(lost, FakeEngine())
    stuck = house.submit(1, 2)
    gates[0].wait_entered()
    house.pass_time(4.9)
    assert house.keeper.reason is None
    house.pass_time(0.2)
    assert "a batch of 2 rows has been gathering for 5.1 s" in (house.keeper.reason or "")
    assert isinstance(stuck.error(), EngineError)
    assert stuck.releases == 0
    house.pass_time(1.1)
    assert house.keeper.reason is None
    assert classes_of(house.submit(3).inference()) == [3]
    gates[0].open()
    assert stuck.released.wait(PATIENCE_S)
    assert house.instances[0].join(PATIENCE_S)
    assert lost.closed.is_set()


def test_an_engine_for_which_there_is_no_thread_is_closed_and_made_again_later(
    open_house: OpenHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(instance: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    threadless = FakeEngine()
    house = open_house(FakeEngine(die), threadless, FakeEngine())
    house.submit(1).error()
    assert house.instances[0].join(PATIENCE_S)
    house.keeper.check()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        house.pass_time(1.0)
    assert "can't start new thread" in (house.keeper.reason or "")
    assert threadless.closed.is_set()
    assert not house.instances.pop(1).alive
    house.pass_time(2.0)
    assert house.keeper.reason is None
    assert classes_of(house.submit(3).inference()) == [3]


def test_a_rebuild_for_which_there_is_no_thread_is_tried_again(open_house: OpenHouse) -> None:
    house = open_house(FakeEngine(die), FakeEngine())
    house.no_threads = 2
    house.submit(1).error()
    assert house.instances[0].join(PATIENCE_S)
    house.keeper.check()
    seen = []
    for pause_s in (1.0, 2.0, 3.9):
        house.pass_time(pause_s)
        seen.append(house.keeper.reason)
    assert ["can't start new thread" in (reason or "") for reason in seen] == [True] * 3
    assert house.builds == 1
    house.pass_time(0.1)
    assert house.keeper.reason is None
    assert classes_of(house.submit(3).inference()) == [3]


def test_pauses_between_rebuilds_grow_up_to_the_longest(open_house: OpenHouse) -> None:
    house = open_house(FakeEngine(die), *[EngineError("no device")] * 5, FakeEngine())
    house.submit(1).error()
    assert house.instances[0].join(PATIENCE_S)
    house.keeper.check()
    pauses = []
    while house.keeper.reason is not None:
        waited, builds = 0, house.builds
        while house.builds == builds:
            house.pass_time(1.0)
            waited += 1
        pauses.append(waited)
    assert pauses == [1, 2, 4, 8, 8, 8]


def test_a_long_good_time_shortens_the_next_pause_again(open_house: OpenHouse) -> None:
    house = open_house(FakeEngine(die), EngineError("no device"), FakeEngine(die), FakeEngine())
    house.submit(1).error()
    assert house.instances[0].join(PATIENCE_S)
    house.keeper.check()
    house.pass_time(1.0)
    house.pass_time(2.0)
    assert house.keeper.reason is None
    house.pass_time(8.1)
    house.submit(1).error()
    assert house.instances[1].join(PATIENCE_S)
    house.keeper.check()
    house.pass_time(1.0)
    assert house.keeper.reason is None


def test_an_engine_that_dies_young_is_waited_for_longer_however_long_the_one_before_had_lived(
    open_house: OpenHouse,
) -> None:
    house = open_house(FakeEngine(die), FakeEngine(die), FakeEngine())
    house.clock.now += 100
    house.submit(1).error()
    assert house.instances[0].join(PATIENCE_S)
    house.keeper.check()
    house.pass_time(1.0)
    assert (house.keeper.reason, house.builds) == (None, 2)
    house.pass_time(0.5)  # nothing is wrong, and the good time is a short one
    house.submit(2).error()
    assert house.instances[1].join(PATIENCE_S)
    house.keeper.check()
    builds = []
    for pause_s in (1.9, 0.2):
        house.pass_time(pause_s)
        builds.append(house.builds)
    assert builds == [2, 3]


def test_engines_that_hang_again_and_again_leave_only_a_restart(open_house: OpenHouse, gates: list[Gate]) -> None:
    house = open_house(FakeEngine(gates[0]), FakeEngine(gates[1]), FakeEngine())
    seen = []
    for gate in gates[:2]:
        seen.append(house.keeper.hopeless)
        house.submit(1)
        gate.wait_entered()
        house.pass_time(6)
        house.pass_time(8)
    seen.append(house.keeper.hopeless)
    assert house.builds == 2
    gates[0].open()
    assert house.instances[0].join(PATIENCE_S)
    seen.append(house.keeper.hopeless)
    assert seen == [False, False, True, False]
    house.pass_time(8)
    assert house.keeper.reason is None


def test_a_lost_device_is_not_tried_again_and_a_failed_build_is(open_house: OpenHouse) -> None:
    house = open_house(FakeEngine(die), EngineError("it failed"), EngineLost("an illegal memory access"), FakeEngine())
    house.submit(1).error()
    assert house.instances[0].join(PATIENCE_S)
    house.pass_time(0.1)
    seen = []
    for _ in range(4):
        house.pass_time(8)
        seen.append((house.builds, house.keeper.hopeless))
    assert seen == [(2, False), (3, True), (3, True), (3, True)]


def test_an_engine_that_failed_and_then_hangs_while_it_is_closed_is_replaced(
    open_house: OpenHouse, gates: list[Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = FakeEngine(die)
    monkeypatch.setattr(failed, "close", lambda: gates[0]([]))
    house = open_house(failed, FakeEngine())
    assert isinstance(house.submit(1).error(), EngineError)
    gates[0].wait_entered()
    lost = []
    for seconds in (4.9, 0.2):
        house.pass_time(seconds)
        lost.append(house.keeper.reason is not None)
    assert lost == [False, True]
    house.pass_time(1.1)
    assert classes_of(house.submit(2).inference()) == [2]


def test_nothing_is_rebuilt_after_the_end(open_house: OpenHouse) -> None:
    house = open_house(FakeEngine())
    house.keeper.stop()
    assert house.keeper.join(PATIENCE_S)
    house.pass_time(100)
    assert house.builds == 1


def test_the_supervisor_goes_on_when_one_check_fails() -> None:
    looked = Gate()
    looked.open()

    class Broken:
        def check(self) -> None:
            raise RuntimeError("a fault of the supervisor's own")

    class Fine:
        def check(self) -> None:
            looked([])

    supervisor = Supervisor(lambda: [Broken(), Fine()], 0.001)
    supervisor.start()
    looked.wait_entered()
    looked.wait_entered()
    supervisor.stop()
