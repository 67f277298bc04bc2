"""Requests drawn from the OpenAPI document: what it promises is what the server does."""

from __future__ import annotations

import json
from typing import Any

import hypothesis
import pytest
import schemathesis
from answers import Answer, complaints
from hypothesis import HealthCheck
from hypothesis import strategies as st
from samples import images, videos
from schemathesis import GenerationMode
from schemathesis.checks import CheckFunction
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from target import CASES, SEED, Target

_EXAMPLES = max(15, CASES // 60)
_CHECKS: list[CheckFunction] = [
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]


@schemathesis.serializer("image/*", "video/*", "application/octet-stream")
def as_it_is(context: Any, value: Any) -> bytes:
    """A binary body; of generated values that are none, their text."""
    return value if isinstance(value, bytes) else str(value).encode()


@pytest.fixture(scope="session")
def described(target: Target) -> Any:
    """The schema that the server itself publishes."""
    return schemathesis.openapi.from_url(f"{target.server.url}/openapi.json")


_POSTS = [("POST", f"/classify/{task}") for task in ("image", "video")]
_GETS = [("GET", path) for path in ("/", "/models", "/models/{name}", "/health/live", "/health/ready", "/metrics")]
_INFERENCE = ("POST", "/v2/models/{name}/infer")
_PROTOCOL = ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/{name}", "/v2/models/{name}/ready")
_ADMIN = [("GET", "/admin/models"), ("POST", "/admin/reload")]
_ADMIN += [(method, "/admin/models/{name}") for method in ("PUT", "DELETE")]
_POSTS.append(_INFERENCE)
_GETS += [("GET", path) for path in _PROTOCOL]
_OPERATIONS = [(*operation, GenerationMode.POSITIVE) for operation in _POSTS + _GETS + _ADMIN] + [
    (*operation, GenerationMode.NEGATIVE) for operation in _POSTS
]


def with_rows(case: Any, *, in_json: bool) -> None:
    """Have a case of the Open Inference Protocol bring a row of `hiera_demo_objects`, and leave the rest as drawn."""
    case.path_parameters["name"] = "hiera_demo_objects"
    tensor: dict[str, Any] = {"name": "rows", "shape": [1, 32, 32, 3], "datatype": "UINT8"}
    if in_json:
        case.body = {**(case.body if isinstance(case.body, dict) else {}), "inputs": [tensor | {"data": [7] * 3072}]}
        case.body.pop("outputs", None)
        return
    parameters = {"binary_data_size": 3072}
    text = json.dumps({"inputs": [tensor | {"parameters": parameters}], "parameters": {"binary_data_output": True}})
    case.body = text.encode() + bytes(3072)
    case.headers = {**(case.headers or {}), "Inference-Header-Content-Length": str(len(text))}


def test_every_operation_of_the_document_is_drawn_from(described: Any) -> None:
    documented = {(found.ok().method.upper(), found.ok().path) for found in described.get_all_operations()}
    assert documented == {*_POSTS, *_GETS, *_ADMIN}


@pytest.mark.parametrize(("method", "path", "mode"), _OPERATIONS)
def test_every_operation_keeps_to_the_document(
    described: Any, target: Target, method: str, path: str, mode: GenerationMode
) -> None:
    operation = described[path][method]
    sound = st.sampled_from(sorted((images() if path.endswith("image") else videos()).values()))
    named = st.sampled_from(["hiera_demo_objects", "hiera_demo_camera_motion"])

    @hypothesis.seed(SEED)
    @hypothesis.settings(max_examples=_EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @hypothesis.given(
        case=operation.as_strategy(generation_mode=mode), sound_file=st.none() | sound, name=st.none() | named
    )
    def keeps_to_it(case: Any, sound_file: bytes | None, name: str | None) -> None:
        if name is not None and path.startswith("/v2/models/"):
            case.path_parameters["name"] = name
        if sound_file is not None and (method, path) == _INFERENCE:
            with_rows(case, in_json=case.media_type == "application/json")
        elif sound_file is not None and case.media_type in ("application/octet-stream", "multipart/form-data"):
            case.body = sound_file if case.media_type == "application/octet-stream" else {"file": sound_file}
        response = case.call(timeout=40)
        case.validate_response(response, checks=_CHECKS)
        headers = {name.lower(): values[0] for name, values in response.headers.items()}
        answer = Answer(response.status_code, headers, response.content)
        target.tally.count(f"document: {method} {path}", answer)
        assert not complaints(answer)
        if answer.status >= 400:
            assert ("error" in json.loads(response.content)) == path.startswith("/v2")

    keeps_to_it()
