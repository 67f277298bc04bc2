"""Fetching weights from a real HTTP server on this machine."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from export.catalog import Download, Licence
from export.download import WeightsSource, fetch, source_from_environment
from export.errors import DownloadFailed

CONTENT = bytes(range(256)) * 10_000
LICENCE = Licence("test", True, "for tests")


class Mirror(BaseHTTPRequestHandler):
    """`/folder/whole.pth` is served, `/folder/short.pth` ends early, all else is missing."""

    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.path not in ("/folder/whole.pth", "/folder/short.pth"):
            self.send_error(404, "No Such Weights")
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT if "whole" in self.path else CONTENT[:1000])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def mirror() -> Iterator[tuple[str, list[str]]]:
    requests: list[str] = []
    handler = type("Handler", (Mirror,), {"requests": requests})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/folder/", requests
        server.shutdown()
        thread.join()


def download(name: str = "whole", sha256: str | None = None) -> Download:
    return Download(f"https://official.invalid/{name}.pth", f"{name}.pth", LICENCE, sha256)


def test_weights_come_from_the_mirror_once_and_then_from_the_cache(
    mirror: tuple[str, list[str]], tmp_path: Path
) -> None:
    url, requests = mirror
    source = WeightsSource(tmp_path / "cache", url)
    digest = hashlib.sha256(CONTENT).hexdigest()
    path = fetch(download(sha256=digest), source)
    assert path == tmp_path / "cache" / "whole.pth"
    assert path.read_bytes() == CONTENT
    assert fetch(download(sha256=digest), source) == path
    assert requests == ["/folder/whole.pth"]


def failure(source: WeightsSource, wanted: Download) -> str:
    with pytest.raises(DownloadFailed) as failed:
        fetch(wanted, source)
    assert not source.cache.exists() or list(source.cache.iterdir()) == []
    return str(failed.value)


def test_a_file_that_is_cut_short_is_not_kept(mirror: tuple[str, list[str]], tmp_path: Path) -> None:
    assert "1000 of 2560000 bytes" in failure(WeightsSource(tmp_path, mirror[0]), download("short"))


def test_a_file_with_another_digest_is_not_kept(mirror: tuple[str, list[str]], tmp_path: Path) -> None:
    assert "not 0000" in failure(WeightsSource(tmp_path, mirror[0]), download(sha256="0" * 64))


def test_a_missing_file_is_told_with_the_status_of_the_server(mirror: tuple[str, list[str]], tmp_path: Path) -> None:
    assert "HTTP 404 No Such Weights" in failure(WeightsSource(tmp_path, mirror[0]), download("absent"))


def test_without_a_connection_the_error_says_where_to_put_the_file_by_hand(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        source = WeightsSource(tmp_path / "cache", f"http://127.0.0.1:{taken.getsockname()[1]}")
        said = failure(source, download())
    assert str(tmp_path / "cache" / "whole.pth") in said
    assert "--weights FILE" in said
    assert "HIERA_WEIGHTS_URL" in said


def test_an_address_that_is_not_of_the_web_is_refused(tmp_path: Path) -> None:
    (tmp_path / "whole.pth").write_bytes(b"a local file")
    assert "no http or https address" in failure(WeightsSource(tmp_path / "cache", f"file://{tmp_path}"), download())


def test_settings_come_from_the_environment(tmp_path: Path) -> None:
    source = source_from_environment({"HIERA_WEIGHTS_DIR": str(tmp_path), "HIERA_WEIGHTS_URL": "http://mirror/hiera"})
    assert source.cache == tmp_path
    assert source.url(download()) == "http://mirror/hiera/whole.pth"
    plain = source_from_environment({"XDG_CACHE_HOME": str(tmp_path)})
    assert plain.cache == tmp_path / "hiera-serve"
    assert plain.url(download()) == "https://official.invalid/whole.pth"
