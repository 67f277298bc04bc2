"""`hiera-serve models` of servers that are none, or none of ours: one line, never a stack trace."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest

from app.cli import main


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with JSON of its own, and keeps the key that was sent."""

    body = b'{"models": [{"id": "another-server"}]}'
    keys: list[str | None]

    def do_GET(self) -> None:
        self.keys.append(self.headers["X-API-Key"])
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def stranger() -> Iterator[tuple[str, type[Handler]]]:
    """The address of another server, and what answers there."""
    handler = type("Chosen", (Handler,), {"keys": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", handler
        server.shutdown()
        thread.join()


def line(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that the command ends with."""
    assert main(["models", *words]) == 1
    said = capsys.readouterr().err
    assert said.startswith("hiera-serve: ")
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999", "http://127.0.0.1:x", "http://[::1"])
def test_what_is_no_address_is_called_so(capsys: pytest.CaptureFixture[str], url: str) -> None:
    assert f"{url}: not an address (" in line(capsys, "--url", url)


@pytest.mark.parametrize("url", ["http://a b", "http://.a"])
def test_a_name_that_no_host_has_does_not_answer(capsys: pytest.CaptureFixture[str], url: str) -> None:
    assert f"{url} does not answer: " in line(capsys, "--url", url)


def test_another_server_is_called_one(capsys: pytest.CaptureFixture[str], stranger: tuple[str, type[Handler]]) -> None:
    url, handler = stranger
    for body in (handler.body, b"[]", b"<html>", b"\xff"):
        handler.body = body
        assert f"{url} answers, but not as hiera-serve does" in line(capsys, "--url", url)
    assert main(["models", "--url", url, "--json"]) == 0  # as it came
    assert capsys.readouterr().out == "\N{REPLACEMENT CHARACTER}\n"


@pytest.mark.parametrize("command", ["models", "bench"])
@pytest.mark.parametrize("key", ["hunter\n2", "hunter\udcff"])
def test_a_key_that_fits_no_header_is_refused_without_showing_it(
    capsys: pytest.CaptureFixture[str], command: str, key: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--url", "http://127.0.0.1:9", "--api-key", key])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "argument --api-key: a key has printable characters only" in said
    assert "hunter" not in said


def test_a_key_goes_out_as_servers_read_it(
    capsys: pytest.CaptureFixture[str], stranger: tuple[str, type[Handler]]
) -> None:
    url, handler = stranger
    main(["models", "--url", url, "--json", "--api-key", "ключ"])
    (sent,) = handler.keys
    assert sent is not None
    assert sent.encode("latin-1") == "ключ".encode()
