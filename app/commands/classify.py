"""`hiera-serve classify FILE`: the same service as the server's, in this process, for one file."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from pathlib import Path

from app.api.results import image_result, video_result
from app.commands.setting_flags import settings_from
from app.core import create_core
from app.errors import ChangeRefused, InvalidParameter, PackageError, UnknownModel
from app.load.request import task_of
from app.load.table import text_table
from app.media.shared import SharedBytes
from app.repository.manifest import Manifest, read_manifest
from app.repository.store import MANIFEST, PackagePath, discover
from app.serving.registry import ModelRegistry
from app.serving.results import Classification, ClassifyOptions, Task
from app.settings import Settings
from app.telemetry import logs
from app.telemetry.metrics import Metrics

_CHUNK_BYTES = 1024 * 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command; models, engine and limits are set by HIERA_ variables as for the server."""
    parser.description = __doc__
    parser.add_argument("file", type=Path, metavar="FILE", help="an image or a video")
    parser.add_argument("--task", choices=("image", "video"), help="what the file is (told from its name's ending)")
    parser.add_argument("--model", help="the model that answers (the task's default)")
    parser.add_argument("--top-k", type=int, default=5, metavar="N", help="how many classes to name (5)")
    parser.add_argument("--clips", type=int, default=1, metavar="N", help="temporal views of a video (1)")
    parser.add_argument("--crops", type=int, choices=(1, 3), default=1, help="spatial views of each clip (1)")
    parser.add_argument("--json", action="store_true", help="print JSON, as the server answers")
    parser.add_argument(
        "--model-repository", dest="setting_model_repository", metavar="DIR", help="where the packages are"
    )


def run(arguments: argparse.Namespace) -> int:
    """Classify and print.

    Raises:
        SettingsError, HieraError: a setting, the file or the model is at fault.
    """
    settings = settings_from(arguments)
    logs.configure(settings.log_format, "warning")
    file: Path = arguments.file
    if not file.is_file():
        raise InvalidParameter(f"{file}: no such file")
    task: Task = arguments.task or task_of(file)
    options = ClassifyOptions(arguments.model, arguments.top_k, None, arguments.clips, arguments.crops)
    outcome, total_s = asyncio.run(_classify(settings, task, options, file))
    if arguments.json:
        print(_document(outcome, total_s, task))
    else:
        _print_table(outcome, total_s, file)
    return 0


async def _classify(
    settings: Settings, task: Task, options: ClassifyOptions, file: Path
) -> tuple[Classification, float]:
    one_worker = settings.model_copy(update={"image_workers": 1, "video_workers": 1})
    core = create_core(one_worker, Metrics())
    try:
        await asyncio.gather(
            core.pool.start(),
            asyncio.to_thread(_load, core.registry, settings.model_repository, task, _name(settings, task, options)),
        )
        with _read(file) as body:
            started = time.monotonic()
            with core.service.admit(task, options, started=started, body_bytes=body.size) as ticket:
                return await core.service.classify(ticket, body), time.monotonic() - started
    finally:
        await core.pool.close(0.0)
        await asyncio.to_thread(core.registry.close, 1.0)


def _name(settings: Settings, task: Task, options: ClassifyOptions) -> str | None:
    return options.model or (settings.default_image_model if task == "image" else settings.default_video_model)


def _load(registry: ModelRegistry, packages: Path, task: Task, name: str | None) -> None:
    """Load one model only: the one that was named, or the one that the server would take.

    As in the server, a package that is refused gives way to a lower version; without a name to the next model, too.
    """
    fitting = [
        manifest
        for package in discover(packages)
        if name in (None, package.name) and (manifest := _manifest(package)) is not None and manifest.task == task
    ]
    if not fitting:
        if name is None:
            raise UnknownModel(f"{packages} holds no model for the task {task}; make one with hiera-export build")
        registry.load(name)  # which says why not, or that it is for another task
        return
    fitting.sort(key=lambda manifest: (manifest.preference, -manifest.version))
    for manifest in fitting[:-1]:
        try:
            registry.load(manifest.name, manifest.version)
        except ChangeRefused as error:
            _pass_over(error)
        else:
            return
    registry.load(fitting[-1].name, fitting[-1].version)


def _manifest(package: PackagePath) -> Manifest | None:
    try:
        return read_manifest(package.folder / MANIFEST)
    except PackageError as error:
        _pass_over(error)
        return None


def _pass_over(error: Exception) -> None:
    print(f"hiera-serve: passed over: {error}", file=sys.stderr)


def _read(file: Path) -> SharedBytes:
    body = SharedBytes()
    with file.open("rb") as source:
        while chunk := source.read(_CHUNK_BYTES):
            body.write(chunk)
    return body


def _document(outcome: Classification, total_s: float, task: Task) -> str:
    build = video_result if task == "video" else image_result
    result = build(outcome, os.urandom(16).hex(), upload_s=0.0, total_s=total_s)
    return result.model_dump_json(exclude_none=True, indent=2)


def _print_table(outcome: Classification, total_s: float, file: Path) -> None:
    model, latency = outcome.model, outcome.latency
    print(f"{file.name}: {model.name} version {model.version}, {model.engine} {model.precision}")
    for flag, meaning in (
        (model.noop, "THE NO-OP ENGINE IS ON: no model was run, these classes mean nothing."),
        (model.random_weights, "THE WEIGHTS ARE RANDOM: these classes mean nothing."),
        (model.demo, "This is a small demo model."),
    ):
        if flag:
            print(meaning)
    print()
    rows = [
        (each.label, f"{each.probability:.1%}", f"{'█' * round(20 * each.probability)}") for each in outcome.predictions
    ]
    print(text_table(("class", "probability", ""), rows))
    if len(outcome.clips) > 1:
        spans = [
            (f"{clip.start_s:.2f} to {clip.end_s:.2f} s", clip.label, f"{clip.probability:.1%}")
            for clip in outcome.clips
        ]
        print()
        print(text_table(("clip", "class", "probability"), spans))
    print(
        f"\ndecode {1000 * latency.decode_s:.1f} ms, inference {1000 * latency.inference_s:.1f} ms, "
        f"total {1000 * total_s:.1f} ms"
    )
