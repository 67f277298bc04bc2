"""Requests put together by Hypothesis, piece by piece: what fails is made small, and a sound one must be answered."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import envelopes
import hypothesis
from answers import read_answers
from campaign import Tally
from cases import Case, Manner
from hypothesis import HealthCheck
from hypothesis import strategies as st
from samples import images
from sending import send
from target import CASES, SEED, Target

_EXAMPLES = max(40, CASES // 15)
_JPEG = images()["jpeg"]
_ENCODED = base64.b64encode(_JPEG).decode()

# Bytes that may stand in a header's value or in a part's (RFC 9110, 5.5), and some that may not.
_header_text = st.text(st.characters(codec="latin-1"), max_size=200)
_anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(_ENCODED),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(("images", "b64", "url", "")) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=30,
)
_part = st.tuples(
    st.sampled_from((b'form-data; name="file"', b"form-data; name=file; filename=x", b"form-data", b"attachment"))
    | st.binary(max_size=60),
    st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=60)), max_size=3),
    st.sampled_from((_JPEG, b"", b"--b", b"\r\n--b--", b"\r\n--b")) | st.binary(max_size=300),
)


def _checked(test: Callable[..., None]) -> Callable[..., None]:
    quiet = hypothesis.settings(
        max_examples=_EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    return hypothesis.seed(SEED)(quiet(test))


def _statuses(target: Target, kind: str, data: bytes) -> list[int]:
    """Send one request; the statuses that came back, all as documented."""
    case = Case(SEED, 0, f"grammar: {kind}", data, Manner.WHOLE, (0,), owed=kind != "headers")
    judged = Tally()
    exchange = asyncio.run(send(target.server.port, case))
    judged.judge(case, exchange)
    target.tally.add(judged)
    assert not judged.failures
    return [answer.status for answer in read_answers(exchange.received, data)]


@_checked
@hypothesis.given(document=_anything, text=st.none() | st.binary(max_size=200))
def test_json_of_any_form(target: Target, document: Any, text: bytes | None) -> None:
    body = json.dumps(document).encode() if text is None else text
    _statuses(target, "json", envelopes.post("/classify/image", "application/json", body))


@_checked
@hypothesis.given(
    parts=st.lists(_part, max_size=5),
    boundary=st.sampled_from((b"b", b"--", b"x" * 70))
    | st.from_regex(rb"[A-Za-z0-9'()+_,./:=?-]{1,60}", fullmatch=True),
    end=st.sampled_from((b"--\r\n", b"--", b"", b"\r\n")),
)
def test_multipart_of_any_parts(target: Target, parts: list[Any], boundary: bytes, end: bytes) -> None:
    body = b""
    for disposition, headers, content in parts:
        head = b"Content-Disposition: " + disposition + b"\r\n"
        head += b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        body += b"--" + boundary + b"\r\n" + head + b"\r\n" + content + b"\r\n"
    body += b"--" + boundary + end
    kind = f'multipart/form-data; boundary="{boundary.decode()}"'
    _statuses(target, "multipart", envelopes.post("/classify/image", kind, body))


@_checked
@hypothesis.given(
    pairs=st.lists(
        st.tuples(
            st.sampled_from(("model", "top_k", "timeout_ms", "clips", "crops")) | st.text(max_size=10),
            st.integers().map(str) | st.text(max_size=20),
        ),
        max_size=4,
    )
)
def test_queries_of_any_names_and_values(target: Target, pairs: list[tuple[str, str]]) -> None:
    query = "&".join(f"{quote(name)}={quote(value)}" for name, value in pairs)
    _statuses(target, "query", envelopes.post(f"/classify/image?{query}", "image/jpeg", _JPEG))


@_checked
@hypothesis.given(top_k=st.none() | st.integers(1, 1000), timeout_ms=st.none() | st.integers(10_000, 3_600_000))
def test_a_sound_query_is_answered(target: Target, top_k: int | None, timeout_ms: int | None) -> None:
    pairs = {"top_k": top_k, "timeout_ms": timeout_ms, "model": "hiera_demo_objects"}
    query = "&".join(f"{name}={value}" for name, value in pairs.items() if value is not None)
    assert _statuses(target, "sound", envelopes.post(f"/classify/image?{query}", "image/jpeg", _JPEG)) == [200]


@_checked
@hypothesis.given(
    request_id=_header_text,
    content_type=_header_text,
    others=st.lists(
        st.tuples(
            st.sampled_from(("Accept", "X-API-Key", "Authorization", "Content-Encoding", "Expect")), _header_text
        ),
        max_size=3,
    ),
)
def test_headers_of_any_text(target: Target, request_id: str, content_type: str, others: list[tuple[str, str]]) -> None:
    lines = [f"X-Request-ID: {request_id}", f"Content-Type: {content_type}", *(": ".join(pair) for pair in others)]
    head = ["POST /classify/image HTTP/1.1", "Host: fuzz", f"Content-Length: {len(_JPEG)}", "Connection: close", *lines]
    _statuses(target, "headers", "\r\n".join([*head, "", ""]).encode("latin-1") + _JPEG)
