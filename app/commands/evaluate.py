"""`hiera-serve evaluate FOLDER`: how often a model is right about labelled files, exactly as it would serve them."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from app.commands.accuracy import TOP, Score, Scores, interval, score
from app.commands.answer_lines import json_line, results_file, write_answers
from app.commands.class_names import ClassNames, match_classes, match_numbers
from app.commands.file_lists import ClassFolder, class_folders, listed_classes
from app.commands.local_model import default_model, first_choice, task_of_model
from app.commands.many_files import ManyFiles, add_view_flags
from app.commands.setting_flags import add_repository_flag, settings_here
from app.errors import InvalidParameter
from app.load.request import shown, task_of
from app.load.table import text_table
from app.open_files import allow_open_files
from app.repository.manifest import Manifest
from app.repository.store import LABELS, read_labels
from app.serving.results import ClassifyOptions, Task

_WORST = 10  # classes that the table has


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command; models, engine and limits are set by HIERA_ variables as for the server."""
    parser.description = (
        "Measure a model's accuracy on a folder of folders, one for each class and called like it, with the server's "
        "own decoders, model and engine: what the same files would get over HTTP. Folders may also carry ImageNet's "
        "synset ids, or be as many as the classes, in their order. Where files stand otherwise, --labels names a list "
        "of them. A file that cannot be classified is counted by itself, and the exit status is 1 then."
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="holds a folder of files for each class")
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="measure the files that are named there: a path below FOLDER and a class a line, which is a number from 0 "
        "or a name (ImageNet's val.txt, csv)",
    )
    parser.add_argument(
        "--task", choices=("image", "video"), help="which files count (told from --model or their names' endings)"
    )
    parser.add_argument("--model", help="the model to measure (the task's default)")
    add_view_flags(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, with every class")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="keep the answers there, as `hiera-serve classify --output` does: a run that was cut goes on",
    )
    add_repository_flag(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print.

    Raises:
        SettingsError, HieraError: a setting, an option, the folder or the model is at fault.
    """
    settings = settings_here(arguments)
    packages = settings.model_repository
    task = arguments.task or (task_of_model(packages, arguments.model) if arguments.model else None)
    if arguments.labels is None:
        folders = class_folders(arguments.folder, task)
    else:
        folders = listed_classes(arguments.folder, arguments.labels, task)
    task = task or _task_of(folders)
    manifest = first_choice(packages, task, arguments.model or default_model(settings, task))
    names = _classes_of(folders, arguments.labels, read_labels(packages / manifest.name / LABELS))
    folder_of = {str(file): each.name for each in folders for file in each.files}

    allow_open_files()
    options = ClassifyOptions(manifest.name, TOP, None, arguments.clips, arguments.crops)
    with _answers(arguments.output) as (lines, done):
        where = "the answers" if arguments.output is None else shown(arguments.output)
        _score_of(lines, where, folder_of, names, manifest.name)  # what is no good is not gone on with
        left = (file for each in folders for file in each.files if str(file) not in done)
        before = len(done & folder_of.keys())
        asyncio.run(write_answers(ManyFiles(settings, options, task), left, lines, json_line, before))
        scores = _score_of(lines, where, folder_of, names, manifest.name)
    if arguments.json:
        print(json.dumps(_document(scores, names), indent=2))
    else:
        _print(scores, names, manifest)
    return 1 if scores.failed else 0


def _classes_of(folders: Sequence[ClassFolder], listed: Path | None, labels: Sequence[str]) -> ClassNames:
    words = [each.name for each in folders]
    if listed is None:
        return match_classes(words, labels)
    try:
        return match_numbers(words, labels)
    except InvalidParameter as error:
        raise InvalidParameter(f"{shown(listed)}: {error}") from error


def _task_of(folders: Sequence[ClassFolder]) -> Task:
    tasks = {task_of(file) for each in folders for file in each.files}
    if len(tasks) > 1:
        raise InvalidParameter("there are photos and videos: say which count with --task image or --task video")
    return tasks.pop()


@contextlib.contextmanager
def _answers(output: Path | None) -> Iterator[tuple[TextIO, frozenset[str]]]:
    if output is None:
        with tempfile.TemporaryFile("w+", encoding="utf-8") as lines:
            yield lines, frozenset()
    else:
        with results_file(output) as opened:
            yield opened


def _score_of(lines: TextIO, where: str, folder_of: Mapping[str, str], names: ClassNames, model: str) -> Scores:
    lines.seek(0)
    try:
        scores = score(lines, folder_of, names.ids)
    except (ValueError, KeyError, TypeError):
        raise InvalidParameter(f"{where} holds something else than lines of hiera-serve classify") from None
    told = {_title(each) for each in scores.models}
    if len(told) > 1 or any(each["name"] != model for each in scores.models):
        raise InvalidParameter(
            f"{where} holds answers of {' and '.join(sorted(told))}, where one model is measured, {model}: name "
            "another file with --output"
        )
    return scores


def _title(model: Mapping[str, Any]) -> str:
    """Who answered, as an answer has it."""
    return f"{model['name']} version {model['version']}, {model['engine']} {model['precision']}"


def _document(scores: Scores, names: ClassNames) -> dict[str, Any]:
    return {
        "model": scores.models[0] if scores.models else None,
        "classes_told": names.how,
        "failed": scores.failed,
        **_figures(scores.of_all),
        "folders": {
            name: {
                "class_ids": sorted(names.ids[name]),
                **_figures(each),
                "taken_for": dict(each.taken_for.most_common()),
            }
            for name, each in scores.by_folder.items()
        },
    }


def _figures(scores: Score) -> dict[str, Any]:
    if not scores.files:
        return {"files": 0, "top1": None, "top5": None}
    figures = {"top1": scores.top1, "top5": scores.top5}
    return {
        "files": scores.files,
        **{name: right / scores.files for name, right in figures.items()},
        **{f"{name}_interval": interval(right, scores.files) for name, right in figures.items()},
    }


def _print(scores: Scores, names: ClassNames, manifest: Manifest) -> None:
    if not scores.models:
        print("no file was classified")
        return
    model = scores.models[0]
    print(_title(model))
    for flag, meaning in (
        ("noop", "THE NO-OP ENGINE IS ON: no model was run, these figures mean nothing."),
        ("random_weights", "THE WEIGHTS ARE RANDOM: these figures mean nothing."),
    ):
        if model.get(flag):
            print(meaning)
    told = [each for each in scores.by_folder.values() if each.files]
    failed = f"; {scores.failed:,} more failed" if scores.failed else ""
    print(f"{scores.of_all.files:,} files of {len(told):,} classes, told {names.how}{failed}\n")
    rows = [("top-1", *_shares(scores.of_all.top1, scores.of_all.files))]
    if manifest.num_classes > TOP:
        rows.append(("top-5", *_shares(scores.of_all.top5, scores.of_all.files)))
    print(text_table(("right", "share", "95% interval", "files"), rows))
    for each in manifest.accuracy if manifest.version == model["version"] else ():
        print(f"the package says: {each.top1:.1f}% top-1 on {each.dataset} ({each.how})")
    _print_worst(scores, names)


def _print_worst(scores: Scores, names: ClassNames) -> None:
    missed = {name: each for name, each in scores.by_folder.items() if each.top1 < each.files}
    worst = sorted(missed, key=lambda name: missed[name].top1 / missed[name].files)[:_WORST]
    if not worst:
        return
    rows = []
    for name in worst:
        each = missed[name]
        label, files = each.taken_for.most_common(1)[0]
        often = f"{label} ({files / each.files:.0%})"
        title = shown(Path(names.titles.get(name, name)))
        rows.append((title, f"{each.top1 / each.files:.1%}", f"{each.files:,}", often))
    print()
    print(text_table(("least often right", "top-1", "files", "most often taken for"), rows))


def _shares(right: int, files: int) -> tuple[str, str, str]:
    low, high = interval(right, files)
    return f"{right / files:.2%}", f"{low:.2%} to {high:.2%}", f"{right:,} of {files:,}"
