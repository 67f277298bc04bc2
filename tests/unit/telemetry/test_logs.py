"""Logs for people and for programs."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from app.telemetry import logs


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def written(log_format: logs.LogFormat, level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    logs.configure(log_format, level, stream)
    return stream


def test_json_lines_carry_fields_request_id_and_stack_trace() -> None:
    stream = written("json")
    token = logs.request_id.set("r-1")
    try:
        raise ValueError("inside\nof it")
    except ValueError:
        logging.getLogger("hiera.test").exception("it %s", "failed", extra={"fields": {"rows": 3}})
    finally:
        logs.request_id.reset(token)
    (line,) = stream.getvalue().splitlines()
    record = json.loads(line)
    assert (record["level"], record["logger"], record["message"]) == ("error", "hiera.test", "it failed")
    assert (record["request_id"], record["rows"]) == ("r-1", 3)
    assert "ValueError: inside\nof it" in record["exception"]
    assert record["time"].endswith("Z")


def test_a_line_outside_of_a_request_has_no_id() -> None:
    stream = written("json")
    logging.getLogger("x").info("hello")
    assert "request_id" not in json.loads(stream.getvalue())


def test_plain_lines_are_readable() -> None:
    stream = written("plain")
    logging.getLogger("x").info("request", extra={"fields": {"path": "/models", "note": "two words"}})
    assert stream.getvalue().endswith('INFO    request path=/models note="two words"\n')


@pytest.mark.parametrize("forged", ["a\n2026-01-01 INFO all is well", "a\r\nb", "a\x1b[31mred", 'a" status=200', "é"])
def test_what_a_caller_sent_cannot_pass_for_a_line_or_a_field(forged: str) -> None:
    stream = written("plain")
    logging.getLogger("x").info("request", extra={"fields": {"path": forged}})
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert "\r" not in text
    assert "\x1b" not in text
    assert json.loads(text.partition("path=")[2]) == forged


@pytest.mark.parametrize(
    "end", ["\n", "\r\n", "\x0b", "\x0c", "\x1c", "\x1e", "\x85", "\u2028", "\u2029", "\x1b[2K", "\x00"]
)
def test_a_message_that_quotes_a_caller_stays_on_its_line(end: str) -> None:
    stream = written("plain")
    logging.getLogger("x").warning("no change: there is no model named é%s2026-01-01 INFO all is well", end)
    text = stream.getvalue()
    assert text.splitlines() == [text.rstrip("\n")]
    assert text.rstrip("\n").isprintable()
    assert "named é\\" in text


def test_a_stack_trace_is_on_lines_of_its_own() -> None:
    stream = written("plain")
    try:
        raise ValueError("inside")
    except ValueError:
        logging.getLogger("x").exception("it\nfailed")
    first, second, *_, last = stream.getvalue().splitlines()
    assert first.endswith("ERROR   it\\nfailed")
    assert (second, last) == ("Traceback (most recent call last):", "ValueError: inside")


@pytest.mark.parametrize(
    "forged", ["a\n{}", "a\x85{}", "a\u2028{}", "a\u2029{}", "a\x0b{}", 'a", "level": "error', "\u202e"]
)
def test_a_json_line_is_one_line_for_whoever_reads_it(forged: str) -> None:
    """Found by fuzzing: a path with %C2%85 made two lines of one for readers that go by Unicode's line breaks."""
    stream = written("json")
    logging.getLogger("x").info("request", extra={"fields": {"path": forged}})
    (line,) = stream.getvalue().splitlines()
    assert line.isascii()
    assert json.loads(line)["path"] == forged


def test_lines_below_the_level_are_not_written() -> None:
    stream = written("plain", "warning")
    logging.getLogger("x").info("chatter")
    logging.getLogger("x").warning("news")
    assert "chatter" not in stream.getvalue()
    assert "news" in stream.getvalue()


def test_warnings_of_the_multipart_parser_which_quote_callers_are_not_written() -> None:
    stream = written("plain")
    logging.getLogger("python_multipart.multipart").warning("Found invalid character %r", b"secret")
    assert stream.getvalue() == ""
