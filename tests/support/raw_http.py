"""HTTP by hand over a socket, for what well-behaved clients never do."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class RawResponse:
    """An answer; `closed` tells whether the server hung up after it."""

    status: int
    headers: dict[str, str]
    body: bytes
    closed: bool


@contextlib.contextmanager
def connect(port: int, timeout_s: float = 30.0) -> Iterator[socket.socket]:
    """A connection to a server of this machine."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        yield connection


def post_head(path: str, content_type: str, *headers: str) -> bytes:
    """The head of a POST request."""
    lines = [f"POST {path} HTTP/1.1", "Host: test", f"Content-Type: {content_type}", *headers, "", ""]
    return "\r\n".join(lines).encode()


def read_response(connection: socket.socket) -> RawResponse:
    """Read one whole answer, whose length its headers tell, and nothing of what may follow it."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += _receive(connection, 1)
    status_line, *lines = head.decode().removesuffix("\r\n\r\n").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = b""
    while missing := int(headers.get("content-length", 0)) - len(body):
        body += _receive(connection, missing)
    return RawResponse(int(status_line.split()[1]), headers, body, headers.get("connection") == "close")


def _receive(connection: socket.socket, most: int) -> bytes:
    received = connection.recv(most)
    if not received:
        raise ConnectionError("the server hung up in the middle of an answer, or before one")
    return received


def is_closed(connection: socket.socket) -> bool:
    """Wait for the server to hang up; False if it is still there after the connection's timeout."""
    try:
        while connection.recv(65536):
            continue
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True
    return True
