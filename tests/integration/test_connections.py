"""What only a socket can show: lying lengths, slow senders, callers that leave, connections that are kept or closed."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from colours import GREEN, RED, image_of, write_colour_package
from raw_http import connect, is_closed, post_head, read_response
from running_server import RunningServer

StartServer = Callable[..., RunningServer]


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory, colour_repository: Path) -> Iterator[RunningServer]:
    """A server that waits for nobody, and takes few connections."""
    running = RunningServer(
        tmp_path_factory.mktemp("server"),
        colour_repository,
        {
            "upload_idle_timeout_seconds": 0.5,
            "upload_grace_seconds": 1.0,
            "upload_min_bytes_per_second": 100_000,
            "header_timeout_seconds": 0.5,
            "max_header_bytes": 2048,
            "max_connections": 6,
            "cors_origins": "https://app.example",
            "keep_alive_seconds": 1,
            "max_image_bytes": 3_000_000,
        },
    ).wait_until_ready()
    yield running
    assert running.stop() == 0, running.log


def counter(url: str, series: str) -> float:
    text = httpx.get(f"{url}/metrics").text
    return next(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(series + " "))


def wait_for_counter(url: str, series: str, above: float) -> None:
    end = time.monotonic() + 20
    while counter(url, series) <= above:
        assert time.monotonic() < end, f"{series} stays at {above}"
        time.sleep(0.05)


def test_requests_follow_each_other_on_one_connection(server: RunningServer) -> None:
    data = image_of(GREEN)
    request = post_head("/classify/image", "image/jpeg", f"Content-Length: {len(data)}") + data
    with connect(server.port) as connection:
        for _ in range(3):
            connection.sendall(request)
            response = read_response(connection)
            assert (response.status, response.closed) == (200, False)


def test_a_body_that_is_announced_too_large_is_refused_before_it_is_sent(server: RunningServer) -> None:
    with connect(server.port) as connection:
        connection.sendall(
            post_head("/classify/image", "image/jpeg", "Content-Length: 999999999", "Expect: 100-continue")
        )
        response = read_response(connection)
        assert (response.status, response.closed) == (413, True)  # and not 100
        assert is_closed(connection)


def test_a_sender_that_does_not_wait_still_gets_to_read_why_it_was_refused(server: RunningServer) -> None:
    size = 40_000_000
    with connect(server.port) as connection:
        connection.sendall(post_head("/classify/image", "image/jpeg", f"Content-Length: {size}") + b"x" * size)
        response = read_response(connection)
        assert (response.status, response.closed) == (413, True)


@pytest.mark.parametrize("kept", [("HTTP/1.1", "Connection: close"), ("HTTP/1.0", "Connection: keep-alive")])
def test_a_request_that_ends_its_connection_is_refused_where_its_sender_can_read_it(
    server: RunningServer, kept: tuple[str, str]
) -> None:
    version, header = kept
    head = post_head("/classify/image?top_k=x", "image/jpeg", "Content-Length: 1000000", header)
    with connect(server.port) as connection:
        connection.sendall(head.replace(b"HTTP/1.1", version.encode()))
        time.sleep(0.1)
        for _ in range(10):
            connection.sendall(b"x" * 100_000)
        response = read_response(connection)
        assert (response.status, response.closed) == (422, True)
        assert connection.recv(1) == b""


def test_a_sender_that_was_told_to_go_on_gets_to_read_why_it_is_refused(server: RunningServer) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\n'
    length = f"Content-Length: {8_000_000 + len(part)}"
    with connect(server.port) as connection:
        connection.sendall(
            post_head("/classify/image", "multipart/form-data; boundary=x", length, "Expect: 100-continue")
        )
        assert read_response(connection).status == 100
        connection.sendall(part + b"x" * 8_000_000)
        response = read_response(connection)
        assert (response.status, response.closed) == (400, True)


def test_a_sender_whose_head_is_refused_gets_to_read_why(server: RunningServer) -> None:
    with connect(server.port) as connection:
        connection.sendall(post_head("/classify/image", "image/jpeg", "Content-Length: 8000000", "Host: other"))
        time.sleep(0.1)
        connection.sendall(b"x" * 8_000_000)
        response = read_response(connection)
        assert (response.status, response.closed) == (400, True)
        assert connection.recv(1) == b""


def test_after_a_small_refused_body_the_connection_lives_on(server: RunningServer) -> None:
    data = image_of(RED)
    good = post_head("/classify/image", "image/jpeg", f"Content-Length: {len(data)}") + data
    with connect(server.port) as connection:
        connection.sendall(post_head("/classify/image?top_k=x", "image/jpeg", "Content-Length: 6") + b"abcdef" + good)
        refused, answered = read_response(connection), read_response(connection)
        assert (refused.status, refused.closed) == (422, False)
        assert answered.status == 200


def test_a_body_longer_than_its_length_spoils_only_what_follows(server: RunningServer) -> None:
    data = image_of(RED)
    with connect(server.port) as connection:
        head = post_head("/classify/image", "image/jpeg", f"Content-Length: {len(data)}")
        connection.sendall(head + data + b"more than announced\r\n\r\n")
        assert read_response(connection).status == 200
        assert is_closed(connection)


def test_answers_keep_the_order_of_their_requests_when_a_later_one_breaks_off(server: RunningServer) -> None:
    data = image_of(RED)
    good = post_head("/classify/image", "image/jpeg", f"Content-Length: {len(data)}") + data
    broken = post_head("/classify/image", "image/jpeg", "Transfer-Encoding: chunked") + b"zz\r\n"
    for behind in (broken, good + broken):
        with connect(server.port) as connection:
            connection.sendall(good + behind)
            for _ in range((good + behind).count(good)):
                assert read_response(connection).status == 200
            assert is_closed(connection)


UPGRADE = (
    "Connection: Upgrade, HTTP2-Settings",
    "Upgrade: h2c",
    "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("pause", ["nowhere", "after the head", "within the head", "within the body"])
def test_an_upgrade_is_ignored_and_the_body_is_the_file(server: RunningServer, pause: str, chunked: bool) -> None:
    data = image_of(GREEN)
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(data)}"
    head = post_head("/classify/image", "image/jpeg", length, *UPGRADE)
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if chunked else data
    cut = {"nowhere": 0, "after the head": len(head), "within the head": 50, "within the body": len(head) + 99}[pause]
    with connect(server.port) as connection:
        for _ in range(2):
            connection.sendall((head + body)[:cut])
            time.sleep(0.1 if cut else 0)
            connection.sendall((head + body)[cut:])
            response = read_response(connection)
            assert (response.status, response.closed) == (200, False)
            assert json.loads(response.body)["predictions"][0]["label"] == "green"


@pytest.mark.parametrize(
    ("version", "connection"), [("1.1", "close, Upgrade"), ("1.0", "Upgrade"), ("1.0", "keep-alive, Upgrade")]
)
def test_an_upgrade_of_the_last_request_is_ignored_too(server: RunningServer, version: str, connection: str) -> None:
    lines = [f"HTTP/{version}", "Host: test", f"Connection: {connection}", "Upgrade: h2c"]
    data = image_of(GREEN)
    for request, body in (("GET /health/live", b""), ("POST /classify/image", data)):
        length = [f"Content-Length: {len(body)}"] if body else []
        with connect(server.port) as socket_:
            socket_.sendall("\r\n".join([f"{request} {lines[0]}", *lines[1:], *length, "", ""]).encode() + body)
            response = read_response(socket_)
            assert response.status == 200, response.body
            assert response.closed or "keep-alive" in connection


def test_the_body_of_an_upgrade_is_no_request(server: RunningServer) -> None:
    hidden = b"GET /models HTTP/1.1\r\nHost: test\r\n\r\n"
    head = post_head("/classify/image", "image/jpeg", f"Content-Length: {len(hidden)}", *UPGRADE)
    with connect(server.port) as connection:
        connection.sendall(head)
        time.sleep(0.1)
        connection.sendall(hidden + b"GET /health/live HTTP/1.1\r\nHost: test\r\n\r\n")
        assert read_response(connection).status == 415
        assert json.loads(read_response(connection).body) == {"status": "live"}


def test_a_get_may_ask_for_an_upgrade_and_connect_is_not_allowed(server: RunningServer) -> None:
    head = "\r\n".join(["GET /health/live HTTP/1.1", "Host: test", *UPGRADE, "", ""]).encode()
    with connect(server.port) as connection:
        for _ in range(2):
            connection.sendall(head)
            assert read_response(connection).status == 200
    with connect(server.port) as connection:
        connection.sendall(b"CONNECT test:80 HTTP/1.1\r\nHost: test\r\n\r\n")
        assert 400 <= read_response(connection).status < 500


@pytest.mark.parametrize("hosts", [b"", b"Host: a\r\nHost: b\r\n"])
def test_a_request_names_one_host(server: RunningServer, hosts: bytes) -> None:
    with connect(server.port) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\n" + hosts + b"\r\n")
        assert read_response(connection).status == 400
    with connect(server.port) as connection:
        connection.sendall(b"GET /health/live HTTP/1.0\r\n\r\n")
        assert read_response(connection).status == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        post_head("/classify/image", "image/png", "Content-Length: ten"),
        post_head("/classify/image", "image/png", "Content-Length: 5", "Transfer-Encoding: chunked"),
        post_head("/classify/image", "image/png", "Transfer-Encoding: chunked") + b"zz\r\n",
        b"GET /models HTTP/1.1\r\nHost: test\r\nX: a\x00b\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused_as_a_problem(server: RunningServer, request_bytes: bytes) -> None:
    with connect(server.port) as connection:
        connection.sendall(request_bytes)
        response = read_response(connection)
        assert (response.status, response.closed) == (400, True)
        body = json.loads(response.body)
        assert (body["code"], body["request_id"]) == ("malformed_request", response.headers["x-request-id"])
    server.wait_for(f'refused before it was a request.*"request_id": "{body["request_id"]}"')


def test_a_caller_that_leaves_while_uploading_is_counted_and_its_room_given_back(server: RunningServer) -> None:
    series = 'hiera_cancelled_total{model="colours",stage="upload"}'
    before = counter(server.url, series)
    with connect(server.port) as connection:
        connection.sendall(post_head("/classify/image", "image/jpeg", "Content-Length: 100000") + b"x" * 50_000)
        time.sleep(0.2)
    wait_for_counter(server.url, series, before)
    assert '"status": 499' in server.log


def test_a_caller_that_leaves_while_its_picture_is_decoded_is_counted(server: RunningServer) -> None:
    series = 'hiera_cancelled_total{model="colours",stage="decode"}'
    before = counter(server.url, series)
    slow = image_of(RED, (9000, 9000), "PNG")
    with connect(server.port) as connection:
        connection.sendall(post_head("/classify/image", "image/png", f"Content-Length: {len(slow)}") + slow)
        time.sleep(0.1)
    wait_for_counter(server.url, series, before)


def test_a_sender_that_pauses_is_told_that_it_is_too_slow(impatient: RunningServer) -> None:
    with connect(impatient.port) as connection:
        connection.sendall(post_head("/classify/image", "image/jpeg", "Content-Length: 1000") + b"x" * 10)
        response = read_response(connection)
        assert (response.status, response.closed) == (408, True)
        assert json.loads(response.body)["code"] == "upload_too_slow"


def test_a_sender_that_drips_is_told_that_it_is_too_slow(impatient: RunningServer) -> None:
    with connect(impatient.port) as connection:
        connection.sendall(post_head("/classify/image", "image/jpeg", "Content-Length: 2000000"))
        connection.settimeout(0.05)
        status = None
        for _ in range(400):
            try:
                connection.sendall(b"x" * 10)
                status = read_response(connection).status
                break
            except TimeoutError:
                continue
        assert status == 408


def test_headers_that_do_not_come_are_not_waited_for(impatient: RunningServer) -> None:
    with connect(impatient.port) as silent:
        assert silent.recv(1) == b""
    for begun in (b"GET /models HTTP/1.1\r\nHost: te", b"\r\n"):
        with connect(impatient.port) as connection:
            connection.sendall(begun)
            assert read_response(connection).status == 408
    with connect(impatient.port) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: test\r\n\r\n")
        assert read_response(connection).status == 200
        connection.sendall(b"GET /models HTTP/1.1\r\nHost: te")  # a later head is waited for no longer than the first
        assert read_response(connection).status == 408


def test_headers_that_are_too_large_are_refused(impatient: RunningServer) -> None:
    for lines in ("X: " + "y" * 3000, "\r\n".join(f"X{i}: {'y' * 50}" for i in range(100))):
        with connect(impatient.port) as connection:
            connection.sendall(f"GET /models HTTP/1.1\r\nHost: test\r\n{lines}\r\n\r\n".encode())
            response = read_response(connection)
            assert (response.status, response.closed) == (431, True)


def test_a_large_header_behind_another_request_is_refused_too(impatient: RunningServer) -> None:
    get = b"GET /health/live HTTP/1.1\r\nHost: test\r\n"
    with connect(impatient.port) as connection:
        connection.sendall(get + b"\r\n" + get + b"X: " + b"y" * 3000 + b"\r\n\r\n")
        assert read_response(connection).status == 200
        assert connection.recv(1) == b""


def test_a_head_in_pieces_behind_a_large_body_is_no_large_header(impatient: RunningServer) -> None:
    data = image_of(RED, (100, 100), "BMP")
    head = post_head("/classify/image", "image/bmp", f"Content-Length: {len(data)}")
    with connect(impatient.port) as connection:
        for _ in range(2):
            for piece in (head[:30], head[30:], data):
                connection.sendall(piece)
                time.sleep(0.1)
            response = read_response(connection)
            assert (response.status, response.closed) == (200, False)


def test_a_large_body_beside_small_headers_is_no_large_header(impatient: RunningServer) -> None:
    data = image_of(RED, (700, 700), "BMP")
    response = httpx.post(f"{impatient.url}/classify/image", files={"file": data}, timeout=60)
    assert response.status_code == 200


def test_a_refusal_waits_for_no_body(server: RunningServer) -> None:
    with connect(server.port) as connection:
        connection.sendall(post_head("/classify/image?top_k=x", "image/jpeg", "Content-Length: 6") + b"abc")
        refused = read_response(connection)
        assert (refused.status, refused.closed) == (422, False)
        connection.sendall(b"def" + b"GET /health/live HTTP/1.1\r\nHost: test\r\n\r\n")
        assert read_response(connection).status == 200


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_body_that_stops_after_its_answer_holds_no_connection(impatient: RunningServer, method: str) -> None:
    path = "/health/live" if method == "GET" else "/classify/image?top_k=x"
    with connect(impatient.port) as connection:
        connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\n".encode())
        read_response(connection)
        connection.sendall(b"a")
        assert is_closed(connection)


def test_trailers_are_no_headers(start_server: StartServer, tmp_path: Path) -> None:
    write_colour_package(tmp_path, "colours")
    running = start_server(tmp_path, api_keys="alice:secret").wait_until_ready()
    photo = image_of(RED)
    chunked = (b"%x\r\n" % len(photo)) + photo + b"\r\n0\r\n"
    with connect(running.port) as connection:
        head = post_head("/classify/image", "image/jpeg", "Transfer-Encoding: chunked")
        connection.sendall(head + chunked + b"X-API-Key: secret\r\n\r\n")
        assert read_response(connection).status == 401
    with connect(running.port) as connection:
        head = post_head("/classify/image", "image/jpeg", "Transfer-Encoding: chunked", "X-API-Key: secret")
        trailers = b"X-Request-ID: evil\r\nContent-Encoding: gzip\r\nContent-Type: text/plain\r\n\r\n"
        connection.sendall(head + chunked + trailers)
        response = read_response(connection)
    assert response.status == 200, response.body
    assert response.headers["x-request-id"] != "evil"


def test_only_http_1_1_is_told_to_go_on(server: RunningServer) -> None:
    photo = image_of(RED)
    headers = f"Content-Type: image/jpeg\r\nContent-Length: {len(photo)}\r\nExpect: 100-continue\r\n\r\n"
    for version, first in (("1.1", 100), ("1.0", 200)):
        with connect(server.port) as connection:
            connection.sendall(f"POST /classify/image HTTP/{version}\r\nHost: test\r\n{headers}".encode())
            if first == 100:
                assert read_response(connection).status == 100
            connection.sendall(photo)
            assert read_response(connection).status == 200


def test_chunks_of_a_coded_body_are_not_taken_for_the_file(server: RunningServer) -> None:
    with connect(server.port) as connection:
        head = post_head("/classify/image", "image/jpeg", "Transfer-Encoding: gzip, chunked")
        photo = image_of(RED)
        connection.sendall(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(photo), photo))
        assert read_response(connection).status == 415


def test_json_is_read_as_it_comes_and_only_its_images_are_held(start_server: StartServer, tmp_path: Path) -> None:
    write_colour_package(tmp_path, "colours")
    running = start_server(tmp_path, max_in_flight_bytes=2_000_000).wait_until_ready()
    start, letters = b'{"images":[{"b64":"', b"QUJD" * 400_000  # 1.6 MB of text, 1.2 MB of a file
    with connect(running.port) as connection:
        whole = start + letters + b'"}]}'
        head = post_head("/classify/image", "application/json", f"Content-Length: {len(whole)}")
        connection.sendall(head + whole)
        assert read_response(connection).status == 415  # there was room for it, but it is no image
    with connect(running.port) as connection:
        connection.sendall(post_head("/classify/image", "application/json", "Transfer-Encoding: chunked"))
        for text in (start, letters, letters):
            connection.sendall(b"%x\r\n%b\r\n" % (len(text), text))
        response = read_response(connection)
    assert response.status == 429, response.body
    assert b"overloaded" in response.body
    assert b"hiera_in_flight_bytes 0.0" in httpx.get(f"{running.url}/metrics").content


def test_an_idle_connection_is_closed_after_its_time(impatient: RunningServer) -> None:
    with connect(impatient.port) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: test\r\n\r\n")
        assert read_response(connection).status == 200
        assert is_closed(connection)


def test_connections_beyond_the_bound_are_refused_but_health_is_answered(impatient: RunningServer) -> None:
    taken: list[socket.socket] = []
    try:
        for _ in range(6):
            connection = socket.create_connection(("127.0.0.1", impatient.port), timeout=30)
            connection.sendall(post_head("/classify/image", "image/jpeg", "Content-Length: 10") + b"x")
            taken.append(connection)
        with connect(impatient.port) as further:
            further.sendall(b"GET /models HTTP/1.1\r\nHost: test\r\nOrigin: https://app.example\r\n\r\n")
            response = read_response(further)
            assert response.headers["access-control-allow-origin"] == "https://app.example"
            assert (response.status, json.loads(response.body)["code"]) == (503, "too_many_connections")
            assert int(response.headers["retry-after"]) >= 1
        with connect(impatient.port) as uploader:
            uploader.sendall(post_head("/classify/image", "image/jpeg", "Content-Length: 8000000"))
            time.sleep(0.1)
            uploader.sendall(b"x" * 8_000_000)
            assert read_response(uploader).status == 503
        with connect(impatient.port) as health:
            health.sendall(b"GET /health/live HTTP/1.1\r\nHost: test\r\n\r\n")
            assert read_response(health).status == 200
    finally:
        for connection in taken:
            connection.close()
