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
import pytest
from answers import read_answers
from campaign import Tally
from cases import Case, Manner
from hypothesis import HealthCheck
from hypothesis import strategies as st
from inference_http import HEADER
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


# The last is one that Python does not write any more, once it is multiplied.
_counts = st.integers(1, 4) | st.sampled_from((0, 2**31, 2**63, 10**400, 10**4298)) | st.integers()
_data = st.recursive(_counts | st.booleans() | st.floats(), lambda inner: st.lists(inner, max_size=4))
_sizes = st.fixed_dictionaries({"binary_data_size": _counts | st.sampled_from((3072, 6144))})
_tensor = st.builds(
    lambda kind, count, odd_shape, tensor: {
        "name": kind[0],
        "datatype": kind[1],
        "shape": odd_shape or ([count, 32, 32, 3] if kind[0] == "rows" else [count]),
        **tensor,
    },
    st.sampled_from((("rows", "UINT8"), ("files", "BYTES"))),
    _counts,
    st.none() | st.none() | st.lists(_counts, max_size=5),
    st.fixed_dictionaries({"parameters": _sizes}) | st.fixed_dictionaries({"data": st.just([7] * 3072) | _data}),
)
_outputs = st.fixed_dictionaries(
    {"name": st.sampled_from(("probabilities", "features", "probabilities", "features", "logits"))},
    optional={"parameters": st.dictionaries(st.sampled_from(("binary_data", "classification")), _counts)},
)
_parameters = st.fixed_dictionaries({}, optional={"timeout": _counts, "binary_data_output": st.booleans()})
_call = st.fixed_dictionaries(
    {"inputs": st.lists(_tensor, min_size=1, max_size=1)},
    optional={"id": st.text(max_size=20), "parameters": _parameters, "outputs": st.lists(_outputs, max_size=2)},
) | st.dictionaries(st.sampled_from(("id", "inputs", "outputs", "parameters", "more")), _anything)


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


@pytest.mark.filterwarnings("ignore:Generating overly large repr")  # of enormous numbers, when it fails
@_checked
@hypothesis.given(
    call=_call,
    behind=st.sampled_from((b"", bytes(3072), len(_JPEG).to_bytes(4, "little") + _JPEG)) | st.binary(max_size=100),
    length=st.none() | st.integers(-5, 5),
    chunked=st.booleans(),
)
def test_tensors_of_any_form(target: Target, call: Any, behind: bytes, length: int | None, chunked: bool) -> None:
    text = json.dumps(call).encode()
    headers = [] if length is None else [f"{HEADER}: {len(text) + min(0, length)}"]
    body = text + behind
    if chunked:
        headers.append("Transfer-Encoding: chunked")
        body = b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(text), text, len(behind), behind) if behind else b"0\r\n\r\n"
    _statuses(target, "tensors", envelopes.post("/v2/models/hiera_demo_objects/infer", None, body, *headers))


@_checked
@hypothesis.given(
    count=st.integers(1, 8),
    outputs=st.lists(st.sampled_from(("probabilities", "features")), unique=True),
    as_bytes=st.booleans(),
    name=st.text(max_size=40),
)
def test_sound_tensors_are_answered(target: Target, count: int, outputs: list[str], as_bytes: bool, name: str) -> None:
    size = 3072 * count
    tensor = {
        "name": "rows",
        "shape": [count, 32, 32, 3],
        "datatype": "UINT8",
        "parameters": {"binary_data_size": size},
    }
    call = {"id": name, "inputs": [tensor], "outputs": [{"name": each} for each in outputs]}
    text = json.dumps(call | {"parameters": {"binary_data_output": as_bytes}}).encode()
    path = "/v2/models/hiera_demo_objects/infer"
    request = envelopes.post(path, None, text + bytes(range(256)) * (size // 256), f"{HEADER}: {len(text)}")
    assert _statuses(target, "sound tensors", request) == [200]


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
