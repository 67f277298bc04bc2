"""The documentation page and the OpenAPI document of a real server."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
import schemathesis

from app.api import problems
from app.errors import HieraError, RequestError

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_whole_without_any_other_host(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"(src|href)=\"(https?:)?//", page.text)
    assert "<script>" not in page.text
    assert " on" not in re.sub(r">[^<]*<", "><", page.text)  # no inline handlers, which the policy would forbid
    for asset in re.findall(r"(?:src|href)=\"(docs/[^\"]+)\"", page.text):
        answer = client.get(f"/{asset}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(("text/css", "text/javascript"))


def test_the_page_is_kept_out_of_frames_and_tells_nobody_where_it_was_read(client: httpx.Client) -> None:
    for path in ("/docs", "/docs/docs.js", "/docs/docs.css"):
        headers = client.get(path).headers
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]


def test_the_page_explains_every_code_that_a_problem_can_carry(client: httpx.Client) -> None:
    raised = {kind.code for kind, _ in problems._STATUS if kind is not RequestError} | {HieraError.code}
    elsewhere = {
        "admin_off",
        "cors_refused",
        "not_found",
        "method_not_allowed",
        "not_ready",
        "not_live",
        "draining",
        "headers_too_large",
    }
    anchors = set(re.findall(r'<tr id="(\w+)">', client.get("/docs").text))
    assert raised | elsewhere <= anchors


@pytest.fixture(scope="module")
def document(server) -> dict:  # type: ignore[no-untyped-def,type-arg]
    return dict(httpx.get(f"{server.url}/openapi.json").json())


def test_the_openapi_document_has_every_route_of_the_contract(document: dict) -> None:  # type: ignore[type-arg]
    assert set(document["paths"]) == {
        "/",
        "/classify/image",
        "/classify/video",
        "/models",
        "/models/{name}",
        "/health/live",
        "/health/ready",
        "/metrics",
        "/admin/models",
        "/admin/models/{name}",
        "/admin/reload",
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/{name}",
        "/v2/models/{name}/ready",
        "/v2/models/{name}/infer",
    }


def test_every_route_of_the_document_is_described(document: dict) -> None:  # type: ignore[type-arg]
    text = "".join((DOCS / name).read_text(encoding="utf-8") for name in ("api.md", "open-inference.md"))
    assert [path for path in document["paths"] if f"{path}`" not in text] == []


def test_every_reference_of_the_document_leads_somewhere(document: dict) -> None:  # type: ignore[type-arg]
    references: set[str] = set()

    def walk(node: object) -> None:
        if isinstance(node, dict):
            references.update(value for name, value in node.items() if name == "$ref")
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(document)
    assert references
    for reference in references:
        assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"]


def test_the_document_tells_parameters_bodies_and_problems(document: dict) -> None:  # type: ignore[type-arg]
    image, video = (document["paths"][f"/classify/{task}"]["post"] for task in ("image", "video"))
    common = ["model", "top_k", "timeout_ms", "features"]
    assert [each["name"] for each in image["parameters"]] == common
    assert [each["name"] for each in video["parameters"]] == [*common, "clips", "crops"]
    bodies = ["multipart/form-data", "application/octet-stream", "image/*", "application/json"]
    assert list(image["requestBody"]["content"]) == bodies
    assert {"400", "401", "403", "404", "408", "413", "415", "422", "429", "500", "503", "504"} < set(
        image["responses"]
    )
    assert "application/problem+json" in image["responses"]["429"]["content"]
    assert "Retry-After" in image["responses"]["429"]["headers"]


def test_the_document_tells_how_tensors_are_sent_and_answered(document: dict) -> None:  # type: ignore[type-arg]
    infer = document["paths"]["/v2/models/{name}/infer"]["post"]
    length = "Inference-Header-Content-Length"
    assert [(each["name"], each["in"]) for each in infer["parameters"]] == [("name", "path"), (length, "header")]
    assert not infer["parameters"][1].get("required")
    binary = {"type": "string", "format": "binary"}
    call, answer = ({"$ref": f"#/components/schemas/Inference{what}"} for what in ("Call", "Answer"))
    for content, schema in ((infer["requestBody"], call), (infer["responses"]["200"], answer)):
        assert content["content"] == {
            "application/json": {"schema": schema},
            "application/octet-stream": {"schema": binary},
        }
    assert length in infer["responses"]["200"]["headers"]


def test_problems_are_documented_as_each_protocol_writes_them(document: dict) -> None:  # type: ignore[type-arg]
    for path, operations in document["paths"].items():
        model = "InferenceProblem" if path.startswith("/v2") else "Problem"
        expected = {"application/problem+json": {"schema": {"$ref": f"#/components/schemas/{model}"}}}
        for operation in operations.values():
            told = [answer["content"] for status, answer in operation["responses"].items() if int(status) >= 400]
            assert told == [expected] * len(told), path


def test_the_document_is_valid_openapi(document: dict) -> None:  # type: ignore[type-arg]
    schema = schemathesis.openapi.from_dict(document)
    operations = list(schema.get_all_operations())
    assert [type(operation).__name__ for operation in operations] == ["Ok"] * 18
