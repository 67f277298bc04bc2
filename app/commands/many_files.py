"""What `hiera-serve classify` does: files through the service at the pace of decoders and engine, answers in order."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from app.commands.local_model import load_model
from app.core import Core, create_core
from app.engines.cpus import available_cpus
from app.errors import DeadlineExceeded, EngineError, EngineLost, HieraError, Overloaded, RequestError
from app.load.request import task_of
from app.media.shared import SharedBytes
from app.serving.registry import ModelRegistry
from app.serving.results import Classification, ClassifyOptions, Task
from app.serving.ticket import Ticket
from app.settings import Settings
from app.telemetry.metrics import Metrics

_CHUNK_BYTES = 1024 * 1024
_PATIENCE_S = 24 * 3600.0  # no answer is late: what counts is when the last one comes
_TRY_AGAIN_S = 0.02


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
        await asyncio.shield(self._model(core, task))
        async with self._videos if task == "video" else contextlib.nullcontext():
            try:
                nbytes = await asyncio.to_thread(_size, file)
            except UnreadableFile as error:
                return Answer(file, task, error, 0.0)
            began = time.monotonic()
            outcome = await self._outcome(core, task, file, nbytes)
            return Answer(file, task, outcome, time.monotonic() - began)

    async def _outcome(
        self, core: Core[ModelRegistry], task: Task, file: Path, nbytes: int
    ) -> Classification | HieraError:
        while True:
            try:
                # What is refused here is a fault of the options, not of the file.
                with core.service.admit(
                    task, self._options[task], started=time.monotonic(), body_bytes=nbytes
                ) as ticket:
                    return await _classify(core, ticket, file)
            except Overloaded:  # by rows or by bytes
                await asyncio.sleep(_TRY_AGAIN_S)

    def _model(self, core: Core[ModelRegistry], task: Task) -> asyncio.Future[None]:
        """The loading of the task's model, begun when the first file of it comes."""
        if task not in self._models:
            settings = self._settings
            default = settings.default_image_model if task == "image" else settings.default_video_model
            name = self._name or default
            load = asyncio.to_thread(load_model, core.registry, settings.model_repository, task, name)
            self._models[task] = asyncio.ensure_future(load)
        return self._models[task]


async def _classify(core: Core[ModelRegistry], ticket: Ticket, file: Path) -> Classification | HieraError:
    try:
        with await asyncio.to_thread(_read, file) as body:
            return await core.service.classify(ticket, body)
    except EngineLost:
        raise
    except (RequestError, DeadlineExceeded, EngineError) as error:
        return error


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        raise UnreadableFile(f"it cannot be read: {error.strerror}") from error


def _read(file: Path) -> SharedBytes:
    body = SharedBytes()
    try:
        with file.open("rb") as source:
            while chunk := source.read(_CHUNK_BYTES):
                body.write(chunk)
    except OSError as error:
        body.close()
        raise UnreadableFile(f"it cannot be read: {error.strerror}") from error
    return body
