"""What may come back: the oracle. The documented statuses and codes are read from docs/api.md itself."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from app.api.schemas import ImageResult, VideoResult

_DOCUMENT = Path(__file__).parents[3] / "docs" / "api.md"
_ROW = re.compile(r"^\| ([45]\d\d(?:, [45]\d\d)*) \| (`.+?`) \|", re.MULTILINE)
_PROBLEM_KEYS = {"type", "title", "status", "detail", "code", "request_id"}
_SOUND_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_INSIDE = re.compile(
    r'Traceback|File "|site-packages|\.py\b|/(usr|home|opt|work|tmp|proc)/|\b0x[0-9a-f]{6,}|object at 0x|memfd|'
    r"\b(PIL|[Pp]illow|libav|ffmpeg|numpy|pydantic|starlette|uvicorn|python|Errno|[A-Z]\w+Error)\b"
)
_WELL = (200, 307)


def documented_codes() -> dict[str, int]:
    """Status by code, from the table of problems in docs/api.md."""
    codes: dict[str, int] = {}
    for statuses, names in _ROW.findall(_DOCUMENT.read_text()):
        codes |= dict.fromkeys(re.findall(r"`(\w+)`", names), int(statuses[:3]))
    return codes


_CODES = documented_codes()


@dataclass(frozen=True)
class Answer:
    """One answer; `body` is None when it was not to come (HEAD)."""

    status: int
    headers: Mapping[str, str]
    body: bytes | None


class NotHttp(Exception):
    """What the server said is not a whole answer."""


def read_answers(received: bytes, request: bytes) -> list[Answer]:
    """Every answer in `received`, interim ones left out.

    Raises:
        NotHttp: something else, or an answer without its end.
    """
    answers: list[Answer] = []
    while received:
        head, blank, received = received.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        if not blank or not re.fullmatch(r"HTTP/1\.1 [1-5]\d\d .*", status_line):
            raise NotHttp(head[:200])
        status = int(status_line[9:12])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if status < 200:
            continue
        size = int(headers.get("content-length", "-1"))
        bodiless = not received and b"HEAD " in request
        if size < 0 or (size > len(received) and not bodiless):
            raise NotHttp(f"{status} with {len(received)} of {size} bytes".encode())
        answers.append(Answer(status, headers, None if bodiless else received[:size]))
        received = received[size:]
    return answers


def complaints(answer: Answer) -> list[str]:
    """What is wrong with `answer`; nothing, if all is as documented."""
    wrong: list[str] = []
    if not _SOUND_ID.fullmatch(answer.headers.get("x-request-id", "")):
        wrong.append("no sound X-Request-ID")
    if answer.headers.get("x-content-type-options") != "nosniff":
        wrong.append("no nosniff")
    if "server" in answer.headers or "x-powered-by" in answer.headers:
        wrong.append("the server names itself")
    if answer.body is None:
        return wrong
    kind = answer.headers.get("content-type", "")
    if answer.status not in _WELL:
        if kind != "application/problem+json":
            wrong.append(f"{answer.status} as {kind!r}")
        wrong += _problem_complaints(answer.body, answer.status, answer.headers.get("x-request-id"))
    elif kind == "application/json" and answer.body.startswith((b'{"request_id"',)):
        wrong += _result_complaints(answer.body)
    return wrong


def _problem_complaints(body: bytes, status: int, request_id: str | None) -> list[str]:
    try:
        problem = json.loads(body)
    except ValueError:
        return [f"{status} with a body that is not JSON: {body[:200]!r}"]
    # Where the Open Inference Protocol is spoken, its clients look for the detail elsewhere.
    if not isinstance(problem, dict) or set(problem) - {"error"} != _PROBLEM_KEYS:
        return [f"{status} with a body that is no problem: {body[:200]!r}"]
    wrong = []
    if problem.get("error", problem["detail"]) != problem["detail"]:
        wrong.append(f"an error that is not the detail: {body[:200]!r}")
    code = problem["code"]
    if status == 500 or _CODES.get(code) != status or problem["status"] != status:
        wrong.append(f"{status} {code!r} is not documented: {problem['detail']!r}")
    if problem["type"] != f"/docs#{code}" or not problem["title"] or not problem["detail"]:
        wrong.append(f"a problem that says nothing: {body[:200]!r}")
    if request_id is not None and problem["request_id"] != request_id:
        wrong.append("the problem's request_id is not the header's")
    inside = _INSIDE.search(str(problem["detail"]))
    if inside is not None:
        wrong.append(f"the detail shows the inside ({inside[0]!r}): {problem['detail']!r}")
    return wrong


def _result_complaints(body: bytes) -> list[str]:
    document = json.loads(body)
    if "results" not in document:
        return _one_result(body, "clips" in document)
    wrong = []
    for result in document["results"]:
        if "predictions" in result:
            wrong += _one_result(json.dumps(result).encode(), False)
        else:
            wrong += _problem_complaints(json.dumps(result).encode(), result.get("status", 0), document["request_id"])
    return wrong


def _one_result(body: bytes, video: bool) -> list[str]:
    try:
        result = (VideoResult if video else ImageResult).model_validate_json(body)
    except ValidationError as error:
        return [f"a result that is not of its schema: {error}"]
    probabilities = [prediction.probability for prediction in result.predictions]
    sound = all(0 <= each <= 1 for each in probabilities) and probabilities == sorted(probabilities, reverse=True)
    return [] if sound and probabilities else [f"probabilities that are none: {probabilities}"]
