"""Orders on a registry of real packages: what they change, what they report, and what the log keeps of them."""

from __future__ import annotations

import asyncio
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from serving_fakes import PATIENCE_S

from app.engines.factory import EngineOptions
from app.errors import ChangeRefused, UnknownModel
from app.serving.changes import Action, Change, Order, Outcome, Report
from app.serving.deployment import ServingOptions
from app.serving.registry import ModelRegistry
from app.serving.rollout import Rollout

MakePackage = Callable[..., Path]
SURVEY = Order("survey", "op")
RELOAD = Order("reload", "op")


class Office:
    """A rollout over a registry that has loaded what was there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        engine = EngineOptions(name="onnxruntime", threads=1, max_batch=4)
        self.registry = ModelRegistry(root, engine, ServingOptions(warmup_budget_s=0.05))
        self.registry.load_all()
        self.rollout = Rollout(self.registry, root)

    def served(self) -> dict[str, int]:
        return {status.name: status.version for status in self.registry.models() if status.state == "ready"}

    def pending(self) -> dict[str, str | None]:
        return {standing.name: standing.pending for standing in self.rollout.perform(SURVEY).standings}


@pytest.fixture
def open_office(tmp_path: Path) -> Iterator[Callable[[], Office]]:
    offices: list[Office] = []

    def open_one() -> Office:
        offices.append(Office(tmp_path / "repo"))
        return offices[-1]

    yield open_one
    for office in offices:
        office.registry.close(PATIENCE_S)


def test_a_survey_tells_what_a_reload_would_do_and_a_reload_does_it(
    make_package: MakePackage, open_office: Callable[[], Office]
) -> None:
    for name in ("same", "newer", "gone", "rebuilt"):
        make_package(name)
    office = open_office()
    assert office.pending() == {"same": None, "newer": None, "gone": None, "rebuilt": None}
    make_package("new")
    make_package("newer", 2)
    shutil.rmtree(office.root / "gone")
    shutil.rmtree(office.root / "rebuilt")
    make_package("rebuilt", seed=3)
    assert office.pending() == {"same": None, "newer": "swap", "gone": "unload", "rebuilt": "swap", "new": "load"}
    outcomes = {change.name: change.outcome for change in office.rollout.perform(RELOAD).changes}
    assert outcomes == {"newer": "swapped", "gone": "unloaded", "rebuilt": "swapped", "new": "loaded"}
    assert office.served() == {"same": 1, "newer": 2, "rebuilt": 1, "new": 1}
    assert office.rollout.perform(RELOAD) == Report()


def test_one_bad_package_does_not_stop_a_reload_and_what_it_would_replace_serves_on(
    make_package: MakePackage, open_office: Callable[[], Office]
) -> None:
    make_package("model")
    office = open_office()
    make_package("bad", wrong_golden=True)
    make_package("model", 2)
    (office.root / "model" / "2" / "model.onnx").write_bytes(b"half a file")
    make_package("zoo")
    bad, model, zoo = office.rollout.perform(RELOAD).changes
    assert (bad.outcome, model.outcome, zoo.outcome) == ("refused", "refused", "loaded")
    assert (bad.version, model.version) == (None, 1)
    assert "disagrees with the reference" in (bad.reason or "")
    assert "changed after the build" in (model.reason or "")
    assert office.served() == {"model": 1, "zoo": 1}


@pytest.mark.parametrize("vanish", [True, False])
def test_an_empty_repository_unloads_nothing(
    make_package: MakePackage, open_office: Callable[[], Office], vanish: bool
) -> None:
    make_package("model")
    office = open_office()
    shutil.rmtree(office.root if vanish else office.root / "model")
    with pytest.raises(ChangeRefused, match="no such folder" if vanish else "were not mounted"):
        office.rollout.perform(RELOAD)
    assert office.served() == {"model": 1}
    if not vanish:
        assert office.rollout.perform(Order("unload", "op", "model")).changes[0].outcome == "unloaded"


def test_a_reload_unloads_no_model_whose_folder_is_there_and_empty(
    make_package: MakePackage, open_office: Callable[[], Office], caplog: pytest.LogCaptureFixture
) -> None:
    make_package("model")
    make_package("other")
    office = open_office()
    shutil.rmtree(office.root / "model")
    (office.root / "model").mkdir()
    assert office.pending() == {"model": None, "other": None}
    (change,) = office.rollout.perform(RELOAD).changes
    assert (change.name, change.outcome, change.version) == ("model", "refused", 1)
    assert "no version can be seen" in (change.reason or "")
    assert office.served() == {"model": 1, "other": 1}
    (record,) = [record for record in caplog.records if record.name == "hiera.admin"]
    assert record.__dict__["fields"] == {"key": "op", "action": "reload", "model": "model"}
    (office.root / "model").rmdir()
    assert office.pending() == {"model": "unload", "other": None}
    assert office.rollout.perform(RELOAD).changes[0].outcome == "unloaded"


def test_the_log_names_who_changed_what(
    make_package: MakePackage, open_office: Callable[[], Office], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "hiera.admin")
    make_package("model")
    office = open_office()
    make_package("model", 2)
    office.rollout.perform(Order("load", "alice", "model", 2, "request-1"))
    with pytest.raises(UnknownModel):
        office.rollout.perform(Order("unload", "bob", "none", None, "request-2"))
    office.rollout.perform(SURVEY)
    fields = [record.__dict__["fields"] for record in caplog.records if record.name == "hiera.admin"]
    assert [(each["key"], each["action"], each["model"], each["request_id"]) for each in fields] == [
        ("alice", "load", "model", "request-1"),
        ("bob", "unload", "none", "request-2"),
    ]
    assert (fields[0]["version"], fields[0]["replaced"], fields[0]["wanted_version"]) == (2, 1, 2)
    assert "wanted_version" not in fields[1]


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        ("loaded", "model is loaded"),
        ("swapped", "model is swapped"),
        ("unchanged", "model serves already"),
        ("unloaded", "model is unloaded"),
    ],
)
def test_the_log_says_what_became_of_an_order_and_how_long_it_took(
    make_package: MakePackage,
    open_office: Callable[[], Office],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    outcome: Outcome,
    said: str,
) -> None:
    caplog.set_level(logging.INFO, "hiera.admin")
    make_package("model")
    office = open_office()
    change = Change("model", outcome, 2, replaced=1, ready_s=1.23456, drain_s=2.34567, drained=False)
    monkeypatch.setattr(office.registry, "load", lambda name, version: change)
    monkeypatch.setattr(office.registry, "unload", lambda name: change)
    action: Action = "unload" if outcome == "unloaded" else "load"
    assert office.rollout.perform(Order(action, "op", "model")) == Report(changes=(change,))
    (record,) = [record for record in caplog.records if record.name == "hiera.admin"]
    assert record.getMessage() == said
    assert record.__dict__["fields"] == {
        "key": "op",
        "action": action,
        "model": "model",
        "version": 2,
        "replaced": 1,
        "ready_s": 1.235,
        "drain_s": 2.346,
        "drained": False,
    }


def test_the_version_that_an_order_names_is_loaded(
    make_package: MakePackage, open_office: Callable[[], Office]
) -> None:
    make_package("model", 1)
    make_package("model", 2)
    office = open_office()
    (change,) = office.rollout.perform(Order("load", "op", "model", 1)).changes
    assert (change.outcome, change.version) == ("swapped", 1)
    assert office.served() == {"model": 1}


def test_what_a_reload_does_is_logged_as_its_callers(
    make_package: MakePackage, open_office: Callable[[], Office], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "hiera.admin")
    make_package("model")
    office = open_office()
    make_package("new")
    office.rollout.perform(Order("reload", "alice", request_id="request-1"))
    (record,) = [record for record in caplog.records if record.name == "hiera.admin"]
    fields = record.__dict__["fields"]
    assert (fields["key"], fields["model"], fields["request_id"]) == ("alice", "new", "request-1")


def test_the_log_keeps_the_beginning_of_a_name_that_a_caller_made_up(
    make_package: MakePackage, open_office: Callable[[], Office], caplog: pytest.LogCaptureFixture
) -> None:
    make_package("model")
    office = open_office()
    with pytest.raises(UnknownModel):
        office.rollout.perform(Order("unload", "op", "n" * 1000))
    (record,) = [record for record in caplog.records if record.name == "hiera.admin"]
    assert record.__dict__["fields"]["model"] == "n" * 128


def test_a_survey_tells_what_serves_from_what_was_refused(
    make_package: MakePackage, open_office: Callable[[], Office]
) -> None:
    root = make_package("model", 1)
    make_package("model", 2, wrong_golden=True)
    make_package("wrong", wrong_golden=True)
    (root / "unreadable" / "1").mkdir(parents=True)
    office = open_office()
    model, unreadable, wrong = office.rollout.perform(SURVEY).standings
    assert (model.version, model.state, model.fingerprint) == (1, "ready", model.on_disk[0].fingerprint)
    assert [each.serves for each in model.on_disk] == [True, False]
    assert "version 2 was refused" in (model.reason or "")
    for standing in (unreadable, wrong):
        assert (standing.version, standing.state, standing.fingerprint) == (1, "failed", None)
        assert [each.serves for each in standing.on_disk] == [False]
        assert "version 1 was refused" in (standing.reason or "")
    assert unreadable.on_disk[0].fingerprint is None  # as that of what serves in its place, which is nothing
    assert office.pending() == {"model": "swap", "unreadable": "load", "wrong": "load"}


def test_a_refusal_names_no_version_where_none_serves(
    make_package: MakePackage, open_office: Callable[[], Office]
) -> None:
    make_package("model")
    root = make_package("hidden", wrong_golden=True)
    make_package("wrong", wrong_golden=True)
    office = open_office()
    shutil.rmtree(root / "hidden" / "1")
    changes = office.rollout.perform(RELOAD).changes
    assert [(change.name, change.outcome, change.version) for change in changes] == [
        ("hidden", "refused", None),
        ("wrong", "refused", None),
    ]


def test_changes_take_turns_and_are_carried_out_though_who_wanted_them_leaves(
    make_package: MakePackage, open_office: Callable[[], Office]
) -> None:
    make_package("model")
    make_package("other")
    office = open_office()
    held = office.registry.get("image", "model")

    async def scenario() -> None:
        administer = office.rollout.administer
        first = asyncio.create_task(administer(Order("unload", "op", "model")))
        while office.served() != {"other": 1}:
            await asyncio.sleep(0.001)
        second = asyncio.create_task(administer(Order("unload", "op", "other")))
        third = asyncio.create_task(administer(Order("load", "op", "model")))
        await administer(SURVEY)  # looks without waiting for its turn
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert not first.done()
        assert not third.done()
        held.release()
        assert (await first).changes[0].outcome == "unloaded"
        assert (await third).changes[0].outcome == "loaded"

    asyncio.run(scenario())
    wait_for_changes()
    assert office.served() == {"model": 1}


def test_reloads_at_the_same_time_do_not_trip_over_each_other(
    make_package: MakePackage, open_office: Callable[[], Office], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("model", "gone", "held"):
        make_package(name)
    office = open_office()
    make_package("model", 2)
    shutil.rmtree(office.root / "gone")
    held = office.registry.get("image", "held")
    begun = []
    unload = office.registry.unload

    def watched(name: str) -> Change:
        begun.append(name)
        return unload(name)

    monkeypatch.setattr(office.registry, "unload", watched)

    async def scenario() -> None:
        administer = office.rollout.administer
        first = asyncio.create_task(administer(Order("unload", "op", "held")))
        while "held" in office.served():
            await asyncio.sleep(0.001)
        reloads = [asyncio.create_task(administer(RELOAD)) for _ in range(2)]
        async with asyncio.timeout(PATIENCE_S):
            while begun.count("gone") < 2:  # both have seen what is to be done, and neither has done it
                await asyncio.sleep(0.001)
        held.release()
        await asyncio.gather(first, *reloads)

    asyncio.run(scenario())
    assert office.served() == {"model": 2, "held": 1}


def test_a_change_under_way_is_carried_through_when_its_caller_leaves(
    make_package: MakePackage, open_office: Callable[[], Office]
) -> None:
    make_package("model")
    office = open_office()
    held = office.registry.get("image", "model")

    async def scenario() -> None:
        change = asyncio.create_task(office.rollout.administer(Order("unload", "op", "model")))
        while office.served():
            await asyncio.sleep(0.001)
        change.cancel()
        await asyncio.gather(change, return_exceptions=True)

    asyncio.run(scenario())
    held.release()
    wait_for_changes()
    assert office.registry.models() == []


def test_what_goes_wrong_with_an_order_is_its_callers_to_hear(
    make_package: MakePackage, open_office: Callable[[], Office], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_package("model")
    office = open_office()

    async def administer(order: Order) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await office.rollout.administer(order)

    with pytest.raises(UnknownModel, match="there is no model named nothing"):
        asyncio.run(administer(Order("unload", "op", "nothing")))

    def fail(name: str) -> Change:
        raise RuntimeError("no thread to be had")

    monkeypatch.setattr(office.registry, "unload", fail)
    with pytest.raises(RuntimeError, match="no thread to be had"):
        asyncio.run(administer(Order("unload", "op", "model")))


def test_a_change_that_nobody_waits_for_any_more_ends_in_silence_and_keeps_no_process_from_ending(
    make_package: MakePackage, open_office: Callable[[], Office]
) -> None:
    make_package("model")
    office = open_office()
    held = office.registry.get("image", "model")
    troubles: list[object] = []

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: troubles.append(context))
        change = asyncio.create_task(office.rollout.administer(Order("unload", "op", "model")))
        while office.served():
            await asyncio.sleep(0.001)
        change.cancel()
        await asyncio.gather(change, return_exceptions=True)
        assert [thread.daemon for thread in threading.enumerate() if thread.name == "model-change"] == [True]
        held.release()
        await asyncio.to_thread(wait_for_changes)
        await asyncio.sleep(0)  # what the change had for the loop came before the end of its thread

    asyncio.run(scenario())
    assert office.registry.models() == []
    assert troubles == []


def wait_for_changes() -> None:
    """Those that nobody waits for any more."""
    for thread in threading.enumerate():
        if thread.name == "model-change":
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
