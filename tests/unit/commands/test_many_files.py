"""Many files through a service whose faults are steered: which end the run, which are a file's own, what waits."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.commands import many_files
from app.commands.answer_lines import write_answers
from app.commands.file_lists import files_of
from app.commands.many_files import Answer, ManyFiles
from app.errors import (
    BrokenMedia,
    DeadlineExceeded,
    EngineError,
    EngineLost,
    HieraError,
    InvalidParameter,
    LimitExceeded,
    Overloaded,
)
from app.media.shared import SharedBytes, no_room
from app.serving.demand import Arrival
from app.serving.results import ClassifyOptions
from app.settings import Settings


class FakeCore:
    """What `create_core` gives: it classifies a file as its content, or raises what `faults` has for that."""

    def __init__(self) -> None:
        self.registry = self.pool = self.service = self
        self.faults: dict[bytes, list[HieraError]] = {}
        self.refusals: list[HieraError] = []
        self.admitted: list[tuple[str, ClassifyOptions, int]] = []
        self.loaded: list[tuple[str, str | None]] = []
        self.open = self.closed = 0
        self.held: asyncio.Event | None = None

    async def start(self) -> None:
        pass

    def close(self, _: float) -> Any:
        """Of the pool, which is awaited, and of the registry."""
        self.closed += 1
        return asyncio.sleep(0) if self.closed == 1 else None

    @contextlib.contextmanager
    def admit(self, arrival: Arrival) -> Iterator[object]:
        if self.refusals:
            raise self.refusals.pop(0)
        self.admitted.append((arrival.task, arrival.options, arrival.body_bytes))
        self.open += 1
        try:
            yield None
        finally:
            self.open -= 1

    async def classify(self, _: object, body: SharedBytes) -> Any:
        content = bytes(body.small)
        if self.held is not None and content == b"held":
            await self.held.wait()
        if self.faults.get(content):
            raise self.faults[content].pop(0)
        return SimpleNamespace(content=content)


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> FakeCore:
    core = FakeCore()

    def load(registry: object, packages: Path, task: str, name: str | None) -> None:
        core.loaded.append((task, name))

    monkeypatch.setattr(many_files, "create_core", lambda settings, metrics: core)
    monkeypatch.setattr(many_files, "load_model", load)
    return core


def files(folder: Path, *contents: bytes, ending: str = "jpg") -> list[Path]:
    paths = [folder / f"{number}.{ending}" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


def classify(paths: list[Path], options: ClassifyOptions | None = None, **settings: Any) -> list[Answer]:
    async def run() -> list[Answer]:
        async with asyncio.timeout(30):
            many = ManyFiles(Settings(**settings), options or ClassifyOptions(), None)
            return [answer async for answer in many.answers(paths)]

    return asyncio.run(run())


def test_a_fault_of_a_file_is_its_own(core: FakeCore, tmp_path: Path) -> None:
    own = {b"a": BrokenMedia("damaged"), b"b": DeadlineExceeded("too long"), b"c": EngineError("this row fails")}
    core.faults = {content: [error] for content, error in own.items()}
    answers = classify(files(tmp_path, b"a", b"x", b"b", b"c"))
    assert [answer.outcome for answer in answers if isinstance(answer.outcome, HieraError)] == list(own.values())
    assert answers[1].outcome == SimpleNamespace(content=b"x")
    assert core.open == 0


@pytest.mark.parametrize("error", [EngineLost("the device is gone"), InvalidParameter("top_k must be 1 or more")])
def test_a_fault_of_the_engine_or_the_options_ends_the_run(core: FakeCore, tmp_path: Path, error: HieraError) -> None:
    core.held = asyncio.Event()
    if isinstance(error, EngineLost):
        core.faults = {b"a": [error]}
    else:
        core.refusals = [error]
    with pytest.raises(type(error), match=str(error)):
        classify(files(tmp_path, b"a", b"held", b"held"))
    assert core.open == 0
    assert core.closed == 2


def test_who_takes_no_more_answers_leaves_nothing_behind(core: FakeCore, tmp_path: Path) -> None:
    async def first() -> Answer:
        core.held = asyncio.Event()
        many = ManyFiles(Settings(), ClassifyOptions(), None)
        async with asyncio.timeout(30), contextlib.aclosing(many.answers(endless())) as answers:
            return await anext(answers)

    def endless() -> Iterator[Path]:
        yield paths[0]
        while True:
            yield paths[1]

    paths = files(tmp_path, b"x", b"held")
    assert asyncio.run(first()).outcome == SimpleNamespace(content=b"x")
    assert core.open == 0
    assert core.closed == 2


def test_without_room_a_file_waits_and_is_read_again(core: FakeCore, tmp_path: Path) -> None:
    core.refusals = [Overloaded("full", retry_after_s=9.0) for _ in range(3)]
    core.faults = {b"a": [Overloaded("full after all", retry_after_s=9.0)]}
    (answer,) = classify(files(tmp_path, b"a"))
    assert answer.outcome == SimpleNamespace(content=b"a")
    assert len(core.admitted) == 2


def test_admission_is_told_the_task_its_options_and_the_size(core: FakeCore, tmp_path: Path) -> None:
    photo, video = files(tmp_path, b"photo"), files(tmp_path, b"a video", ending="MP4")
    options = ClassifyOptions(top_k=2, clips=3, crops=3, features=True)
    classify([*photo, *video], options)
    of_image = ClassifyOptions(top_k=2, features=True)
    assert sorted(core.admitted, key=lambda asked: asked[0]) == [("image", of_image, 5), ("video", options, 7)]


def test_an_answer_is_written_when_it_is_there(core: FakeCore, tmp_path: Path) -> None:
    async def run() -> None:
        core.held = asyncio.Event()
        many = ManyFiles(Settings(), ClassifyOptions(), None)
        with output.open("w") as lines:
            printing = asyncio.create_task(
                write_answers(many, iter(paths), lines, lambda answer: f"{answer.file.name}\n")
            )
            async with asyncio.timeout(30):
                while output.read_text() != "0.jpg\n":
                    await asyncio.sleep(0.01)
                core.held.set()
                assert await printing == 0
        assert output.read_text() == "0.jpg\n1.jpg\n"

    output = tmp_path / "lines"
    paths = files(tmp_path, b"x", b"held")
    asyncio.run(run())


def test_folders_are_walked_by_name_for_the_task_s_files(tmp_path: Path) -> None:
    photos = [tmp_path / name / "x.JPG" for name in ("b", "d/e", "a", "c", "d", "f/b", "f/a")]
    for path in photos:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        path.with_suffix(".mov").touch()
        path.with_suffix(".txt").touch()
    named = tmp_path / "a" / "x.txt"
    clips = [path.with_suffix(".mov") for path in photos]

    def in_order(paths: list[Path]) -> list[Path]:
        return sorted(paths, key=lambda path: (path.parent, path.name))

    assert list(files_of([tmp_path, named], "image")) == [*in_order(photos), named]
    assert list(files_of([tmp_path], "video")) == in_order(clips)
    assert list(files_of([tmp_path], None)) == in_order(photos + clips)


def test_each_task_has_its_model_loaded_once(core: FakeCore, tmp_path: Path) -> None:
    paths = [*files(tmp_path, *[b"x"] * 20), *files(tmp_path, b"y", b"y", ending="mp4")]
    classify(paths, default_image_model="mine")
    assert sorted(core.loaded) == [("image", "mine"), ("video", None)]
    core.loaded.clear()
    core.closed = 0
    classify(paths[:1], ClassifyOptions(model="named"), default_image_model="mine")
    assert core.loaded == [("image", "named")]


def test_a_machine_without_room_is_waited_for_and_in_the_end_said(
    core: FakeCore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that could not be opened for want of descriptors is sound: it must not be written down as unreadable."""
    paths = files(tmp_path, b"a")
    refusals = [OSError(errno.EMFILE, "Too many open files") for _ in range(3)]
    opened = Path.open

    def open_later(path: Path, *arguments: Any, **options: Any) -> Any:
        if path in paths and refusals:
            raise refusals.pop(0)
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", open_later)
    assert classify(paths)[0].outcome == SimpleNamespace(content=b"a")
    assert not refusals
    core.closed = 0
    monkeypatch.setattr(many_files, "_NO_ROOM_S", 0.1)
    refusals += [OSError(errno.EMFILE, "Too many open files") for _ in range(10_000)]
    with pytest.raises(Overloaded, match="there is no room for another file: Too many open files"):
        classify(paths)
    assert core.open == 0


def test_a_long_wait_for_others_is_not_counted_as_a_machine_without_room(
    core: FakeCore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many_files, "_NO_ROOM_S", 0.2)
    core.refusals = [Overloaded("full", retry_after_s=9.0) for _ in range(20)]  # 0.4 s at the least
    core.refusals.append(no_room(OSError(errno.EMFILE, "Too many open files")))
    assert classify(files(tmp_path, b"a"))[0].outcome == SimpleNamespace(content=b"a")


def test_a_file_that_grows_beyond_the_limit_is_read_no_further(core: FakeCore, tmp_path: Path) -> None:
    """What `stat` says of it may be old, or nothing: /proc's files have no size."""
    (answer,) = classify([Path("/proc/self/mountinfo")], max_image_bytes=16)
    assert isinstance(answer.outcome, LimitExceeded)
    assert core.open == 0
