"""Logs for people (`plain`) and for programs (`json`): one line an event, with the request id that it belongs to.

Events carry their data as `extra={"fields": {...}}`. Neither payloads nor keys are ever logged.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal, TextIO

# uvicorn's news are told by our own lines; python-multipart quotes callers' bytes in its warnings.
_LEAST_LEVEL = {"uvicorn.error": logging.ERROR, "python_multipart": logging.ERROR}

# Printable ASCII but for space, quote, equals sign and backslash.
_PLAIN_WORD = re.compile(r"[!#-<>-\[\]-~]+")

# Control characters, and what else ends a line for some who read logs.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

LogFormat = Literal["plain", "json"]
ACCESS_LOGGER = "hiera.access"

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request that the current task works for; every line logged meanwhile carries it."""


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC, RFC 3339), level, logger, message, request_id, the fields, exception."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        identifier = request_id.get()
        if identifier is not None:
            line["request_id"] = identifier
        line.update(_fields(record))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # ASCII alone: U+0085 and U+2028, which a path may hold, end a line for some who read logs.
        return json.dumps(line, default=str)


class PlainLines(logging.Formatter):
    """`time level message key=value …`; an exception's stack trace follows on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        fields = dict(_fields(record))
        identifier = request_id.get()
        if identifier is not None:
            fields.setdefault("request_id", identifier)
        pairs = "".join(f" {key}={_quoted(value)}" for key, value in fields.items())
        line = f"{_timestamp(record)} {record.levelname:<7} {_on_one_line(record.getMessage())}{pairs}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def configure(log_format: LogFormat, level: str, stream: TextIO | None = None, *, access_log: bool = True) -> None:
    """Send every logger of the process to `stream` (stderr by default) in one format, replacing earlier handlers; that
    of requests only with `access_log`."""
    # What no line shows need not be found out for each (docs.python.org/3/howto/logging.html#optimization).
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonLines() if log_format == "json" else PlainLines())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name, least in _LEAST_LEVEL.items():
        logging.getLogger(name).setLevel(max(least, root.level))
    logging.getLogger(ACCESS_LOGGER).disabled = not access_log
    logging.captureWarnings(True)


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, Mapping) else {}


def _timestamp(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _on_one_line(message: str) -> str:
    """A message may quote a caller (the name of a model): it then forges no line and colours no terminal."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), message)


def _quoted(value: object) -> str:
    """As is when it is one plain word, else as a JSON string: a caller's text can then not forge a second line."""
    text = str(value)
    return text if _PLAIN_WORD.fullmatch(text) else json.dumps(text)
