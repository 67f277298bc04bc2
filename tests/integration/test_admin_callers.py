"""Admin calls whose callers do not wait for the answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from colours import RED, image_of, write_colour_package
from raw_http import connect, post_head, read_response
from running_server import RunningServer

ADMIN = {"X-API-Key": "admin-secret"}


@pytest.mark.parametrize("http_workers", [1, 2])
def test_a_change_is_made_though_its_caller_has_left_before_its_turn(
    start_server: Callable[..., RunningServer], tmp_path: Path, http_workers: int
) -> None:
    for name in ("busy", "other"):
        write_colour_package(tmp_path, name)
    running = start_server(tmp_path, http_workers=http_workers, admin_keys="op:admin-secret").wait_until_ready()

    def served() -> set[str]:
        models = httpx.get(f"{running.url}/admin/models", headers=ADMIN).json()["models"]
        return {each["name"] for each in models if each["state"] == "ready"}

    def wait_until_served(names: set[str]) -> None:
        end = time.monotonic() + 20
        while served() != names:
            assert time.monotonic() < end, running.log
            time.sleep(0.02)

    def unload(name: str) -> bytes:
        return f"DELETE /admin/models/{name} HTTP/1.1\r\nHost: test\r\nX-API-Key: admin-secret\r\n\r\n".encode()

    data = image_of(RED)
    with connect(running.port) as upload, connect(running.port) as first:
        upload.sendall(post_head("/classify/image?model=busy", "image/jpeg", f"Content-Length: {len(data)}") + data[:9])
        running.wait_until_ready()  # on a connection that came later, and so the upload has been admitted
        first.sendall(unload("busy"))
        wait_until_served({"other"})
        with connect(running.port) as second:
            second.sendall(unload("other"))
        assert served() == {"other"}  # it has not had its turn
        upload.sendall(data[9:])
        assert read_response(upload).status == 200
        assert read_response(first).status == 200
        wait_until_served(set())
