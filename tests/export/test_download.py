"""Fetching weights from a real HTTP server on this machine."""

from __future__ import annotations

import gc
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

CONTENT = b"PK\x03\x04" + bytes(range(256)) * 10_000
PAGE = b"<!DOCTYPE html><html>log in</html>"
LICENCE = Licence("test", True, "for tests")


# What the mirror answers: status, headers, body. A body without a length ends where the connection does.
ANSWERS: dict[str, tuple[int, dict[str, str], bytes]] = {
    "whole.pth": (200, {"Content-Length": str(len(CONTENT))}, CONTENT),
    "short.pth": (200, {"Content-Length": str(len(CONTENT))}, CONTENT[:1000]),
    "unmeasured.pth": (200, {}, CONTENT),
    "bare_pickle.pth": (200, {"Content-Encoding": "identity"}, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j"),
    "tensors.safetensors": (200, {}, b"\x02\0\0\0\0\0\0\0{}"),
    "portal.pth": (200, {}, PAGE),
    "portal.safetensors": (200, {}, PAGE),
    "empty.pth": (200, {"Content-Length": "0"}, b""),
    "nothing.pth": (204, {}, b""),
    "part.pth": (206, {"Content-Range": f"bytes 0-99/{len(CONTENT)}"}, CONTENT[:100]),
    "packed.pth": (200, {"Content-Encoding": "gzip"}, CONTENT[:100]),
    "astray.pth": (302, {"Location": "http://[::1"}, b""),
}


class Mirror(BaseHTTPRequestHandler):
    """Answers under `/folder/`; what it does not know is missing."""

    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.path.removeprefix("/folder/") not in ANSWERS:
            self.send_error(404, "No Such Weights")
            return
        status, headers, body = ANSWERS[self.path.removeprefix("/folder/")]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

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


def download(name: str = "whole.pth", sha256: str | None = None) -> Download:
    return Download(f"https://official.invalid/{name}", name, LICENCE, sha256)


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
    assert f"1000 of {len(CONTENT)} bytes" in failure(WeightsSource(tmp_path, mirror[0]), download("short.pth"))


def test_a_file_with_another_digest_is_not_kept(mirror: tuple[str, list[str]], tmp_path: Path) -> None:
    assert "not 0000" in failure(WeightsSource(tmp_path, mirror[0]), download(sha256="0" * 64))


def test_a_missing_file_is_told_with_the_status_of_the_server(mirror: tuple[str, list[str]], tmp_path: Path) -> None:
    assert "HTTP 404 No Such Weights" in failure(WeightsSource(tmp_path, mirror[0]), download("absent.pth"))


@pytest.mark.parametrize("name", ["unmeasured.pth", "bare_pickle.pth", "tensors.safetensors"])
def test_an_answer_that_starts_as_weights_do_is_kept(mirror: tuple[str, list[str]], tmp_path: Path, name: str) -> None:
    assert fetch(download(name), WeightsSource(tmp_path, mirror[0])).read_bytes() == ANSWERS[name][2]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("portal.pth", "no weights file, it starts with b'<!DOCTYPE ht'; a log-in page"),
        ("portal.safetensors", "no weights file, it starts with b'<!DOCTYPE ht'; a log-in page"),
        ("empty.pth", "the file is empty"),
        ("nothing.pth", "HTTP 204, not 200"),
        ("part.pth", "HTTP 206, not 200"),
        ("packed.pth", "encoded (gzip)"),
    ],
)
def test_an_answer_that_is_not_the_file_is_not_kept(
    mirror: tuple[str, list[str]], tmp_path: Path, name: str, why: str
) -> None:
    said = failure(WeightsSource(tmp_path, mirror[0]), download(name))
    assert why in said
    assert f"put the file at {tmp_path / name}" in said


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # urllib leaves such an answer open
def test_a_redirect_to_what_is_no_address_is_told(mirror: tuple[str, list[str]], tmp_path: Path) -> None:
    assert "Invalid IPv6 URL" in failure(WeightsSource(tmp_path, mirror[0]), download("astray.pth"))
    gc.collect()


@pytest.mark.parametrize(
    ("url", "why"), [("http://[::1", "Invalid IPv6 URL"), ("http://..x/", "no host can have that name")]
)
def test_a_mirror_that_has_no_address_is_told(tmp_path: Path, url: str, why: str) -> None:
    said = failure(WeightsSource(tmp_path / "cache", url), download())
    assert why in said
    assert "HIERA_WEIGHTS_URL" in said


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


def test_a_cache_folder_that_is_none_is_told(mirror: tuple[str, list[str]], tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(DownloadFailed, match="another folder in HIERA_WEIGHTS_DIR"):
        fetch(download(), WeightsSource(tmp_path / "cache", mirror[0]))


def test_a_cache_that_may_not_be_entered_is_told(
    mirror: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_file", refused)
    with pytest.raises(DownloadFailed, match=r"Permission denied: .*whole\.pth.*\n.*\n.*HIERA_WEIGHTS_DIR"):
        fetch(download(), WeightsSource(tmp_path / "cache", mirror[0]))


def test_what_a_killed_process_has_fetched_is_removed(mirror: tuple[str, list[str]], tmp_path: Path) -> None:
    (tmp_path / ".whole.pth.99.part").write_bytes(CONTENT[:1000])
    (tmp_path / ".other.pth.99.part").touch()
    fetch(download(), WeightsSource(tmp_path, mirror[0]))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.pth.99.part", "whole.pth"]
