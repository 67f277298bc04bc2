"""The answers for many files as lines, for people or for programs, and how far it is."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from app.api.results import image_result, video_result
from app.api.schemas import ImageResult
from app.commands.many_files import Answer, ManyFiles
from app.errors import HieraError, InvalidParameter
from app.load.request import shown

_PROGRESS_S = 0.5
_LINE_START = "\r\033[K"
_BEGINNING = '{"file":'
# Of a server's answer, what says nothing of the file.
_LEFT_OUT = {"request_id", "latency_ms", "batch_rows"}


def result_of(answer: Answer, request_id: str) -> ImageResult:
    """The server's answer for a file. Raises HieraError: what is wrong with it."""
    if isinstance(answer.outcome, HieraError):
        raise answer.outcome
    build = video_result if answer.task == "video" else image_result
    return build(answer.outcome, request_id, upload_s=0.0, total_s=answer.total_s)


def json_line(answer: Answer) -> str:
    """The file, and the server's answer for it or an error's code and detail."""
    if isinstance(answer.outcome, HieraError):
        error = {"code": answer.outcome.code, "detail": str(answer.outcome)}
        said = json.dumps({"error": error}, separators=(",", ":"))
    else:
        said = result_of(answer, "").model_dump_json(exclude_none=True, exclude=_LEFT_OUT)
    # A path need not be UTF-8; json.dumps escapes what is not, and json.loads reads it as it was.
    return f"{_BEGINNING}{json.dumps(str(answer.file))},{said[1:]}\n"


def text_line(answer: Answer) -> str:
    """The file and its classes, or what is wrong with it."""
    if isinstance(answer.outcome, HieraError):
        said = str(answer.outcome)
    else:
        said = ", ".join(f"{each.label} {each.probability:.1%}" for each in answer.outcome.predictions)
    return f"{shown(answer.file)}: {said}\n"


@contextlib.contextmanager
def results_file(path: Path) -> Iterator[tuple[TextIO, frozenset[str]]]:
    """A file of JSON lines to write on, and the files that have a line there. One that was cut short is taken away.

    Raises:
        InvalidParameter: it cannot be read and written, or holds something else.
    """
    try:
        lines = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise InvalidParameter(
            f"{shown(path)}: {error.strerror or 'it is no file that can be read and written'}"
        ) from error
    with lines:
        try:
            done = _files_of(lines)
        except (ValueError, KeyError, TypeError):
            raise InvalidParameter(f"{shown(path)} holds something else than lines of hiera-serve classify") from None
        yield lines, done


def _files_of(lines: TextIO) -> frozenset[str]:
    lines.seek(0)
    done, end = set(), 0
    for line in iter(lines.readline, ""):
        if not line.endswith("\n"):
            if not (line.startswith(_BEGINNING) or _BEGINNING.startswith(line)):
                raise ValueError
            lines.truncate(end)
            break
        done.add(json.loads(line)["file"])
        end = lines.tell()
    return frozenset(done)


class Progress:
    """Counts answers, and says on standard error how far it is, again and again if that is a terminal."""

    def __init__(self) -> None:
        self._began = self._said = time.monotonic()
        self._files = 0
        self.failed = 0
        self._shows = sys.stderr.isatty()

    def count(self, answer: Answer) -> None:
        self._files += 1
        self.failed += isinstance(answer.outcome, HieraError)
        if self._shows and time.monotonic() - self._said >= _PROGRESS_S:
            self._said = time.monotonic()
            print(f"{_LINE_START}{self}", end="", file=sys.stderr, flush=True)

    def end(self, before: int) -> None:
        """Say the last of it; `before` files had a line already."""
        passed = f"; {before:,} had an answer already" if before else ""
        print(f"{_LINE_START if self._shows else ''}{self}{passed}", file=sys.stderr)

    def __str__(self) -> str:
        seconds = time.monotonic() - self._began
        failed = f", {self.failed:,} failed" if self.failed else ""
        return f"{self._files:,} files{failed}, {seconds:.1f} s, {self._files / max(seconds, 1e-3):.1f} a second"


async def write_answers(
    many: ManyFiles, files: Iterator[Path], lines: TextIO, line: Callable[[Answer], str], before: int = 0
) -> int:
    """Classify `files` and write a line for each; `before` had one already. Returns 1 when one failed, else 0."""
    progress = Progress()
    async with contextlib.aclosing(many.answers(files)) as answers:
        async for answer in answers:
            lines.write(line(answer))
            lines.flush()
            progress.count(answer)
    progress.end(before)
    return 1 if progress.failed else 0
