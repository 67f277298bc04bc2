"""Every refusal of the contract's table, reached over HTTP on a real server, as problem+json that says what to do."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from colours import RED, image_of, video_of, write_colour_package
from raw_http import connect, post_head
from running_server import RunningServer

MULTIPART = {"content-type": "multipart/form-data; boundary=x"}


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem, checked for the fields that every one has."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert set(body) == {"type", "title", "status", "detail", "code", "request_id"}
    assert (body["status"], body["code"], body["type"]) == (status, code, f"/docs#{code}")
    assert body["request_id"] == response.headers["x-request-id"]
    assert body["detail"].endswith((".", "?"))
    return body


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory, colour_repository: Path) -> Iterator[httpx.Client]:
    """A client of a server with tight limits."""
    running = RunningServer(
        tmp_path_factory.mktemp("server"),
        colour_repository,
        {
            "max_image_bytes": 20_000,
            "max_request_bytes": 40_000,
            "max_video_bytes": 30_000,
            "max_files_per_request": 3,
            "max_image_pixels": 10_000,
            "max_video_seconds": 2,
            "max_video_frames": 100,
            "max_queue_rows": 4,
            "max_clips": 2,
        },
    ).wait_until_ready()
    with httpx.Client(base_url=running.url, timeout=60) as client:
        yield client
    assert running.stop() == 0, running.log


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nothing like multipart",
        b"--x\r\nContent-Disposition: form-data; name=file\r\n\r\nhalf a part",
        b"--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nabc\r\n--x--\r\n',
        b"--x\r\nContent-Type: image/jpeg\r\n\r\nabc\r\n--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n\r\n--x--\r\n',
        b"--x\r\nContent-Disposition: form-data; name=file\r\nContent-Transfer-Encoding: base64\r\n\r\nAA\r\n--x--\r\n",
        b"--x\r\n" + b"A: b\r\n" * 50 + b"\r\nabc\r\n--x--\r\n",
    ],
    ids=["empty", "garbage", "cut off", "no parts", "wrong name", "no name", "empty file", "encoded", "many headers"],
)
def test_a_multipart_body_without_a_readable_file_is_malformed(client: httpx.Client, body: bytes) -> None:
    problem(client.post("/classify/image", content=body, headers=MULTIPART), 400, "malformed_request")


def test_multipart_without_a_boundary_is_malformed(client: httpx.Client) -> None:
    for kind in ("multipart/form-data", f"multipart/form-data; boundary={'x' * 400}"):
        response = client.post("/classify/image", content=b"--x--", headers={"content-type": kind})
        problem(response, 400, "malformed_request")


def test_an_empty_raw_body_is_malformed(client: httpx.Client) -> None:
    for path, kind in (("/classify/image", "image/png"), ("/classify/video", "video/mp4")):
        problem(client.post(path, content=b"", headers={"content-type": kind}), 400, "malformed_request")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"images": []}',
        '{"images": [{"b64": ""}]}',
        '{"images": [{"b64": "AAA"}]}',
        '{"images": [{"b64": "_-_-"}]}',
        '{"images": [{"b64": "data:image/png;base64,AAAA"}]}',
        '{"images": [{"b64": "AA\\nAA"}]}',
        '{"images": [{"b64": 5}]}',
        '{"images": [{"url": "http://example.org/x.png"}]}',
        '{"images": ["AAAA"]}',
        '{"images": [{"b64": "AAAA"}], "model": "colours"}',
        '{"images": [{"b64": "é"}]}',
        "[" * 100_000,
    ],
)
def test_json_that_is_not_the_documented_form_is_malformed(client: httpx.Client, text: str) -> None:
    response = client.post("/classify/image", content=text, headers={"content-type": "application/json"})
    problem(response, 400, "malformed_request")


def test_an_unknown_model_is_not_found_and_so_is_one_of_the_other_task(client: httpx.Client) -> None:
    for name in ("nothing", "colours_video"):
        response = client.post("/classify/image", params={"model": name}, files={"file": image_of()})
        assert name in problem(response, 404, "unknown_model")["detail"]
    problem(client.get("/models/nothing"), 404, "unknown_model")


def test_an_address_that_does_not_exist_is_not_found(client: httpx.Client) -> None:
    for path in ("/nothing", "/models/", "/classify/image/", "/docs/secrets"):
        problem(client.get(path), 404, "not_found")


def test_another_method_is_refused_with_those_that_are_allowed(client: httpx.Client) -> None:
    for method, path, allowed in (("GET", "/classify/image", {"POST"}), ("POST", "/models", {"GET", "HEAD"})):
        response = client.request(method, path)
        problem(response, 405, "method_not_allowed")
        assert set(response.headers["allow"].split(", ")) == allowed


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/classify/image", "text/plain"),
        ("/classify/image", "application/x-www-form-urlencoded"),
        ("/classify/image", "video/mp4"),
        ("/classify/video", "image/jpeg"),
        ("/classify/video", "application/json"),
    ],
)
def test_a_content_type_that_the_route_does_not_take_is_unsupported(
    client: httpx.Client, path: str, content_type: str
) -> None:
    response = client.post(path, content=b"abc", headers={"content-type": content_type})
    problem(response, 415, "unsupported_media")


def test_a_compressed_body_is_unsupported(client: httpx.Client) -> None:
    headers = {"content-type": "image/png", "content-encoding": "gzip"}
    problem(client.post("/classify/image", content=b"abc", headers=headers), 415, "unsupported_media")


def test_bytes_that_are_no_picture_are_unsupported_and_a_damaged_picture_is_broken(client: httpx.Client) -> None:
    problem(client.post("/classify/image", files={"file": b"hello " * 100}), 415, "unsupported_media")
    problem(client.post("/classify/image", files={"file": image_of()[:300]}), 422, "broken_media")
    problem(client.post("/classify/video", files={"file": b"hello " * 100}), 415, "unsupported_media")


@pytest.mark.parametrize(
    ("query", "mentions"),
    [
        ("topk=1", "top_k"),
        ("top_k=0", "from 1 to"),
        ("top_k=1001", "from 1 to"),
        ("top_k=one", "whole number"),
        ("top_k=", "whole number"),
        ("top_k=%D9%A3", "whole number"),  # an Arabic three is a digit to Python
        ("top_k=1&top_k=2", "twice"),
        ("timeout_ms=-5", "from 1 to"),
        ("timeout_ms=99999999999", "from 1 to"),
        ("model=../etc", "model's name"),
        ("model=%FF", "UTF-8"),
        ("clips=2", "for videos"),
    ],
)
def test_a_parameter_that_is_unknown_or_out_of_range_is_named(client: httpx.Client, query: str, mentions: str) -> None:
    response = client.post(f"/classify/image?{query}", files={"file": image_of()})
    assert mentions in problem(response, 422, "invalid_parameter")["detail"]


@pytest.mark.parametrize("query", ["clips=0", "clips=17", "crops=2", "crops=x"])
def test_views_of_a_video_are_bounded(client: httpx.Client, query: str) -> None:
    problem(client.post(f"/classify/video?{query}", files={"file": b"x"}), 422, "invalid_parameter")


def test_too_many_bytes_are_refused_with_and_without_a_length(strict: httpx.Client) -> None:
    picture = {"content-type": "image/jpeg"}
    large = b"x" * 20_001
    bodies: list[tuple[Any, dict[str, str]]] = [
        (large, picture),
        (iter([large[:10_000], large[10_000:]]), picture),
        (_multipart(large), MULTIPART),
        (iter([_multipart(large)]), MULTIPART),
        (_multipart(*[b"x" * 19_000] * 3, b"y" * 60_000), MULTIPART),
        (json.dumps({"images": [{"b64": base64.b64encode(large).decode()}]}), {"content-type": "application/json"}),
    ]
    for body, headers in bodies:
        problem(strict.post("/classify/image", content=body, headers=headers), 413, "limit_exceeded")
    problem(strict.post("/classify/video", files={"file": b"x" * 30_001}), 413, "limit_exceeded")


def test_too_many_files_pixels_seconds_and_frames_are_refused(strict: httpx.Client) -> None:
    four = [("file", image_of())] * 4
    assert "3 files" in problem(strict.post("/classify/image", files=four), 413, "limit_exceeded")["detail"]
    two_videos = [("file", video_of(RED, seconds_each=0.2))] * 2
    assert "1 file " in problem(strict.post("/classify/video", files=two_videos), 413, "limit_exceeded")["detail"]
    wide = image_of(RED, (200, 100), "PNG")
    assert "pixels" in problem(strict.post("/classify/image", files={"file": wide}), 413, "limit_exceeded")["detail"]
    long = video_of(RED, seconds_each=3.0)
    assert " s;" in problem(strict.post("/classify/video", files={"file": long}), 413, "limit_exceeded")["detail"]
    dense = video_of(RED, seconds_each=1.9, rate=60)
    detail = problem(strict.post("/classify/video", files={"file": dense}), 413, "limit_exceeded")["detail"]
    assert "frames" in detail


def test_a_full_queue_is_refused_with_the_seconds_to_wait(strict: httpx.Client) -> None:
    port = strict.base_url.port
    assert port is not None
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            connection = stack.enter_context(connect(port))
            connection.sendall(post_head("/classify/image", "image/jpeg", "Content-Length: 10000") + b"x")
        time.sleep(0.5)
        response = strict.post("/classify/image", files={"file": image_of()})
    problem(response, 429, "overloaded")
    assert int(response.headers["retry-after"]) >= 1


def test_a_deadline_that_passes_ends_the_request(client: httpx.Client) -> None:
    large = image_of(RED, (5000, 5000))
    response = client.post("/classify/image", params={"timeout_ms": 1}, files={"file": large})
    problem(response, 504, "deadline_exceeded")


def test_a_key_that_fits_is_not_refused_for_what_stands_beside_it(start_server: Any) -> None:
    running = start_server(api_keys="alice:secret").wait_until_ready()
    headers = [("Authorization", "Bearer for-the-proxy"), ("X-API-Key", "secret")]
    for sent in (headers, headers[::-1]):
        assert httpx.get(f"{running.url}/models", headers=sent).status_code == 200
    problem(httpx.get(f"{running.url}/models", headers=headers[:1]), 401, "unauthorized")


def test_a_server_without_a_usable_package_is_not_ready_and_says_why(start_server: Any, tmp_path: Path) -> None:
    folder = write_colour_package(tmp_path, "spoilt")
    (folder / "model.onnx").write_bytes(b"other bytes")
    running = start_server(tmp_path)
    running.wait_for("spoilt version 1 is not served")
    running.wait_for("listening")
    response = httpx.get(f"{running.url}/health/ready")
    while "being" in response.json()["detail"]:
        response = httpx.get(f"{running.url}/health/ready")
    assert problem(response, 503, "not_ready")["detail"] == "no model could be loaded."
    assert int(response.headers["retry-after"]) >= 1
    entry = httpx.get(f"{running.url}/models").json()["models"][0]
    assert (entry["state"], "changed after the build" in entry["reason"]) == ("failed", True)
    posted = httpx.post(f"{running.url}/classify/image", params={"model": "spoilt"}, files={"file": image_of()})
    problem(posted, 503, "unavailable")
    assert httpx.get(f"{running.url}/health/live").status_code == 200


def test_requests_that_come_while_models_are_loading_are_unavailable(start_server: Any, tmp_path: Path) -> None:
    running = start_server(tmp_path)  # an empty repository: there is nothing to wait for
    response = httpx.post(f"{running.url}/classify/image", files={"file": image_of()})
    assert response.status_code in (404, 503)
    missing = start_server(tmp_path / "nowhere")
    missing.wait_for("model repository cannot be read")
    missing.wait_for("media workers are confined")
    response = httpx.get(f"{missing.url}/health/ready")
    assert problem(response, 503, "not_ready")["detail"] == "the model repository cannot be read."


def _multipart(*files: bytes) -> bytes:
    parts = (b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + data + b"\r\n" for data in files)
    return b"".join(parts) + b"--x--\r\n"
