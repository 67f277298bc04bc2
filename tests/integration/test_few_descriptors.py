"""A server that may open few files: however many connections come, those that it serves can send files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from colours import RED, image_of
from raw_http import connect, is_closed, post_head, read_response
from running_server import RunningServer

FEW = ("sh", "-c", 'ulimit -n 128; exec "$@"', "sh")
ASK = b"GET /models HTTP/1.1\r\nHost: test\r\n\r\n"


@pytest.mark.parametrize("http_workers", [1, 2])
@pytest.mark.parametrize("sent", [ASK, b""], ids=["kept", "silent"])
def test_idle_connections_leave_room_for_files(
    start_server: Callable[..., RunningServer], http_workers: int, sent: bytes
) -> None:
    patience = {"header_timeout_seconds": 60, "keep_alive_seconds": 60}
    running = start_server(under=FEW, http_workers=http_workers, **patience).wait_until_ready()
    running.wait_for("may open no more than 128 files")
    data = image_of(RED, (300, 300), "BMP")  # large enough to take descriptors
    request = post_head("/classify/image", "image/bmp", f"Content-Length: {len(data)}") + data
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connect(running.port)) for _ in range(150 * http_workers)]
        for connection in connections:
            with contextlib.suppress(ConnectionError):
                connection.sendall(sent)
        first = connections[:http_workers]
        for connection in first:
            if sent:
                assert read_response(connection).status == 200
            connection.sendall(request)
            assert read_response(connection).status == 200
        assert is_closed(connections[-1])
    assert running.wait_until_ready().stop() == 0, running.log
