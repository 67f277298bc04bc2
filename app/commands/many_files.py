"""What `hiera-serve classify` does: files through the service at the pace of decoders and engine, answers in order."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import os
import stat
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from app.commands.local_model import default_model, load_model
from app.core import Core, create_core
from app.engines.cpus import available_cpus
from app.errors import DeadlineExceeded, EngineError, EngineLost, HieraError, Overloaded, RequestError, UnknownModel
from app.load.request import task_of
from app.media.limits import MediaLimits
from app.media.shared import SharedBytes, no_room
from app.serving.demand import Arrival
from app.serving.registry import ModelRegistry
from app.serving.results import Classification, ClassifyOptions, Task
from app.serving.ticket import Ticket
from app.settings import Settings
from app.telemetry.metrics import Metrics

_CHUNK_BYTES = 1024 * 1024
_PATIENCE_S = 24 * 3600.0  # no answer is late: what counts is when the last one comes
_TRY_AGAIN_S = 0.02
_NO_ROOM_S = 60.0  # without descriptors or memory for so long, a run would wait for ever

T = TypeVar("T")


def add_view_flags(parser: argparse.ArgumentParser) -> None:
    """How a video is looked at."""
    parser.add_argument("--clips", type=int, default=1, metavar="N", help="temporal views of a video (1)")
    parser.add_argument("--crops", type=int, choices=(1, 3), default=1, help="spatial views of each clip (1)")


@dataclass(frozen=True)
class Answer:
    """What came of a file: a classification, or what is wrong with it; and the seconds that it took."""

    file: Path
    task: Task
    outcome: Classification | HieraError
    total_s: float


class UnreadableFile(RequestError):
    """It cannot be opened."""

    code = "unreadable_file"


class ManyFiles:
    """Classifies files, several at a time, on one event loop.

    Args:
        task: of all files; None tells it from each name's ending.
    """

    def __init__(self, settings: Settings, options: ClassifyOptions, task: Task | None) -> None:
        patient = {"image_timeout_seconds": _PATIENCE_S, "video_timeout_seconds": _PATIENCE_S}
        self._settings = settings.model_copy(update=patient)
        self._name = options.model
        self._task = task
        # Clips and crops are for videos; who names no task may mix them with photos.
        of_images = options if task is not None else replace(options, clips=1, crops=1)
        self._options: dict[Task, ClassifyOptions] = {"image": of_images, "video": options}
        cpus = available_cpus()
        # Enough that neither decoders nor the engine ever wait for a file.
        self._at_once = 2 * settings.max_batch_rows + 4 * cpus
        self._videos = asyncio.Semaphore(2 * cpus)  # their rows are large
        self._models: dict[Task, asyncio.Future[None]] = {}
        self._limits = {
            "image": MediaLimits(max_bytes=settings.max_image_bytes),
            "video": MediaLimits(max_bytes=settings.max_video_bytes),
        }

    async def answers(self, files: Iterable[Path]) -> AsyncGenerator[Answer, None]:
        """The answers, in the order of the files.

        Raises:
            HieraError: no model answers for a task, or the engine is lost.
        """
        core = create_core(self._settings, Metrics())
        starting = asyncio.ensure_future(core.pool.start())
        begun: deque[asyncio.Task[Answer]] = deque()
        try:
            for file in files:
                begun.append(asyncio.create_task(self._answer(core, starting, file)))
                if len(begun) >= self._at_once:
                    yield await begun.popleft()
            while begun:
                yield await begun.popleft()
        finally:
            for each in begun:
                each.cancel()
            await asyncio.gather(starting, *begun, *self._models.values(), return_exceptions=True)
            await core.pool.close(0.0)
            await asyncio.to_thread(core.registry.close, 1.0)

    async def _answer(self, core: Core[ModelRegistry], starting: asyncio.Future[None], file: Path) -> Answer:
        task = self._task or task_of(file)
        await asyncio.shield(starting)
        try:
            nbytes = await self._with_room(lambda: asyncio.to_thread(_size, file, self._limits[task]))
        except RequestError as error:
            return Answer(file, task, error, 0.0)
        await asyncio.shield(self._model(core, task))
        async with self._videos if task == "video" else contextlib.nullcontext():
            began = time.monotonic()
            outcome = await self._with_room(lambda: self._outcome(core, task, file, nbytes))
            return Answer(file, task, outcome, time.monotonic() - began)

    async def _outcome(
        self, core: Core[ModelRegistry], task: Task, file: Path, nbytes: int
    ) -> Classification | HieraError:
        # What is refused here is a fault of the options, not of the file.
        with core.service.admit(Arrival(task, self._options[task], time.monotonic(), body_bytes=nbytes)) as ticket:
            return await _classify(core, ticket, file, self._limits[task])

    async def _with_room(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """What `attempt` gives, again and again while there is no room: of rows or bytes, which comes when others are
        done, or of the machine's descriptors and memory, which may not.

        Raises:
            Overloaded: the machine has none for a minute.
        """
        ends = time.monotonic() + _NO_ROOM_S
        while True:
            try:
                return await attempt()
            except Overloaded as error:
                if not isinstance(error.__cause__, OSError):
                    ends = time.monotonic() + _NO_ROOM_S
                elif time.monotonic() > ends:
                    reason = error.__cause__.strerror or error.__cause__
                    raise Overloaded(f"there is no room for another file: {reason}", retry_after_s=0.0) from error
                await asyncio.sleep(_TRY_AGAIN_S)

    def _model(self, core: Core[ModelRegistry], task: Task) -> asyncio.Future[None]:
        """The loading of the task's model, begun when the first file of it comes."""
        if task not in self._models:
            name = self._name or default_model(self._settings, task)
            load = asyncio.to_thread(load_model, core.registry, self._settings.model_repository, task, name)
            self._models[task] = asyncio.ensure_future(self._named(task, load))
        return self._models[task]

    async def _named(self, task: Task, load: Awaitable[None]) -> None:
        try:
            await load
        except UnknownModel as error:
            if self._task is not None or self._name is not None:
                raise
            other = "video" if task == "image" else "image"
            raise UnknownModel(f"{error}, or pass over {task}s with --task {other}") from error


async def _classify(
    core: Core[ModelRegistry], ticket: Ticket, file: Path, limits: MediaLimits
) -> Classification | HieraError:
    try:
        with await asyncio.to_thread(_read, file, limits) as body:
            return await core.service.classify(ticket, body)
    except EngineLost:
        raise
    except (RequestError, DeadlineExceeded, EngineError) as error:
        return error


def _size(file: Path, limits: MediaLimits) -> int:
    """Bytes of a file that may be read: a pipe would never end, and who waits for one is not to be interrupted.

    Raises:
        UnreadableFile: it is no file, or not for us.
        LimitExceeded: it is too large.
        Overloaded: no descriptor or memory is left to look.
    """
    try:
        found = file.stat()
        if stat.S_ISDIR(found.st_mode):
            os.scandir(file).close()  # a folder comes here where it could not be walked: why?
    except OSError as error:
        raise _unreadable(error) from error
    if not stat.S_ISREG(found.st_mode):
        raise UnreadableFile("it is no regular file")
    limits.check_bytes(found.st_size)
    return found.st_size


def _read(file: Path, limits: MediaLimits) -> SharedBytes:
    body = SharedBytes()
    try:
        with file.open("rb") as source:
            while chunk := source.read(_CHUNK_BYTES):
                limits.check_bytes(body.size + len(chunk))  # it may have grown
                body.write(chunk)
    except OSError as error:
        body.close()
        raise _unreadable(error) from error
    except BaseException:
        body.close()
        raise
    return body


def _unreadable(error: OSError) -> HieraError:
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):  # the machine's fault, and not the file's
        return no_room(error)
    return UnreadableFile(f"it cannot be read: {error.strerror}")
