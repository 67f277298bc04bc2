"""`hiera-serve classify FILE…`: the same service as the server's, in this process, for a file or for millions."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from pathlib import Path

from app.commands.answer_lines import json_line, result_of, results_file, text_line, write_answers
from app.commands.file_lists import files_of
from app.commands.local_model import task_of_model
from app.commands.many_files import Answer, ManyFiles, UnreadableFile, add_view_flags
from app.commands.setting_flags import add_repository_flag, settings_here
from app.errors import InvalidParameter
from app.load.request import shown, task_of
from app.load.table import text_table
from app.open_files import allow_open_files
from app.serving.results import Classification, ClassifyOptions, Task
from app.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command; models, engine and limits are set by HIERA_ variables as for the server."""
    parser.description = (
        "Classify files with the server's own decoders, models and engines, without a server: one, with a table, or "
        "many, with a line for each in their order. A file that fails costs the others nothing; the exit status is 1 "
        "then."
    )
    parser.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="an image, a video, or a folder (with those below it)"
    )
    parser.add_argument(
        "--task", choices=("image", "video"), help="what the files are (told from their names' endings)"
    )
    parser.add_argument("--model", help="the model that answers (the task's default)")
    parser.add_argument("--top-k", type=int, default=5, metavar="N", help="how many classes to name (5)")
    add_view_flags(parser)
    parser.add_argument("--json", action="store_true", help="print JSON; for many files a line for each")
    parser.add_argument("--features", action="store_true", help="with JSON: add the features (the embedding)")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write JSON lines there; files that have a line there are passed over, so a run that was cut goes on",
    )
    add_repository_flag(parser)


def run(arguments: argparse.Namespace) -> int:
    """Classify and print.

    Raises:
        SettingsError, HieraError: a setting, an option, the model or, if it is the only one, the file is at fault.
    """
    settings = settings_here(arguments)
    options = ClassifyOptions(
        arguments.model, arguments.top_k, None, arguments.clips, arguments.crops, arguments.features
    )
    if arguments.features and not (arguments.json or arguments.output):
        raise InvalidParameter("--features goes with --json or --output: a table has no room for them")
    allow_open_files()
    paths: list[Path] = arguments.files
    task = arguments.task
    if task is None and arguments.model is not None:
        task = task_of_model(settings.model_repository, arguments.model)
    if len(paths) == 1 and not os.path.isdir(paths[0]) and not arguments.output:
        return _one_file(settings, options, paths[0], task or task_of(paths[0]), as_json=arguments.json)
    many = ManyFiles(settings, options, task)
    files = files_of(paths, task)
    if arguments.output is None:
        line = json_line if arguments.json else text_line
        return asyncio.run(write_answers(many, files, sys.stdout, line))
    with results_file(arguments.output) as (lines, done):
        left = (file for file in files if str(file) not in done)
        return asyncio.run(write_answers(many, left, lines, json_line, len(done)))


def _one_file(settings: Settings, options: ClassifyOptions, file: Path, task: Task, *, as_json: bool) -> int:
    if not os.path.lexists(file):
        raise InvalidParameter(f"{shown(file)}: no such file")
    one_worker = settings.model_copy(update={"image_workers": 1, "video_workers": 1})
    many = ManyFiles(one_worker, options, task)

    async def first() -> Answer:
        async with contextlib.aclosing(many.answers([file])) as answers:
            return await anext(answers)

    answer = asyncio.run(first())
    if isinstance(answer.outcome, UnreadableFile):
        raise InvalidParameter(f"{shown(file)}: {answer.outcome}")
    result = result_of(answer, os.urandom(16).hex())
    if as_json:
        print(result.model_dump_json(exclude_none=True, indent=2))
    elif isinstance(answer.outcome, Classification):
        _print_table(answer.outcome, answer.total_s, file)
    return 0


def _print_table(outcome: Classification, total_s: float, file: Path) -> None:
    model, latency = outcome.model, outcome.latency
    print(f"{shown(Path(file.name))}: {model.name} version {model.version}, {model.engine} {model.precision}")
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
