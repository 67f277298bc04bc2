"""What the server keeps to itself: versions in answers; payloads, file names, queries and keys in logs."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from importlib.metadata import version

import httpx
import pytest
from colours import image_of
from raw_http import connect, post_head, read_response
from running_server import RunningServer

StartServer = Callable[..., RunningServer]

_LIBRARIES = ("fastapi", "starlette", "uvicorn", "pydantic", "pillow", "av", "onnxruntime", "numpy", "python-multipart")
_PATHS = ("/", "/docs", "/openapi.json", "/models", "/models/colours", "/health/live", "/health/ready", "/nothing")


def test_no_answer_names_the_software_or_a_version(client: httpx.Client) -> None:
    versions = [version(library) for library in _LIBRARIES]
    answers = [client.get(path) for path in _PATHS]
    answers += [client.post("/classify/image", files={"file": data}) for data in (image_of(), b"", b"GIF89a", b"text")]
    for answer in answers:
        assert not {"server", "x-powered-by", "via"} & set(answer.headers)
        for number in versions:
            assert not re.search(rf"(?<![\d.]){re.escape(number)}(?![\d.])", answer.text), (answer.url.path, number)


def test_a_refusal_before_it_is_a_request_names_nothing_either(server: RunningServer) -> None:
    with connect(server.port) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        refusal = read_response(connection)
    assert "server" not in refusal.headers
    assert refusal.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("log_format", ["json", "plain"])
def test_the_log_holds_nothing_of_what_was_sent(start_server: StartServer, log_format: str) -> None:
    marks = {name: f"Mark{number}ed" for number, name in enumerate(("key", "bearer", "query", "name", "body", "type"))}
    running = start_server(log_format=log_format, api_keys="alice:the-key", log_level="debug").wait_until_ready()
    wrong = ({"X-API-Key": marks["key"]}, {"Authorization": f"Bearer {marks['bearer']}"})
    for headers in (*wrong, {"X-API-Key": "the-key"}):
        for data in (image_of(), marks["body"].encode(), image_of()[:200] + marks["body"].encode()):
            url = f"{running.url}/classify/image"
            named = {"file": (marks["name"], data, marks["type"])}
            document = {"images": [{"b64": base64.b64encode(data).decode()}], marks["query"]: 1}
            with httpx.Client(headers=headers, timeout=60) as caller:
                caller.post(url, params={"top_k": marks["query"]}, files={"file": data})
                caller.post(url, files=named)
                caller.post(url, json=document)
    with connect(running.port) as connection:
        connection.sendall(post_head("/classify/image", "image/png", f"X: {marks['body']}\0", "Content-Length: x"))
        read_response(connection)
    assert running.stop() == 0
    assert len(re.findall("classify/image", running.log)) >= 27
    for what, mark in marks.items():
        assert mark not in running.log, f"the {what} is in the log"
    assert "the-key" not in running.log
    assert base64.b64encode(marks["body"].encode())[:8].decode() not in running.log


def test_a_request_id_that_could_forge_a_line_is_not_taken_over(server: RunningServer) -> None:
    for sent in ('x"}, {"level": "error', "a" * 129, "a\tb"):
        answer = httpx.get(f"{server.url}/models", headers={"X-Request-ID": sent})
        given = answer.headers["x-request-id"]
        assert re.fullmatch(r"[0-9a-f]{32}", given)
        line = json.loads(server.wait_for(rf'(\{{.*"request_id": "{given}".*\}})'))
        assert line["path"] == "/models"
    assert "forge" not in server.log
