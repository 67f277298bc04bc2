"""SIGTERM on a real process: not ready, a grace, accepted requests finished, exit 0; and a second signal hurries."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable

import httpx
import pytest
from colours import RED, image_of
from raw_http import post_head, read_response
from running_server import RunningServer

StartServer = Callable[..., RunningServer]
PAGE = "https://app.example"


def begin_upload(running: RunningServer, data: bytes) -> socket.socket:
    """A request whose last byte is still missing."""
    connection = socket.create_connection(("127.0.0.1", running.port), timeout=60)
    head = post_head("/classify/image", "image/jpeg", f"Content-Length: {len(data)}", f"Origin: {PAGE}")
    connection.sendall(head + data[:-1])
    time.sleep(0.3)
    return connection


def test_a_request_that_was_accepted_is_finished_and_the_exit_status_is_0(start_server: StartServer) -> None:
    running = start_server().wait_until_ready()
    data = image_of(RED)
    with begin_upload(running, data) as connection:
        running.process.send_signal(signal.SIGTERM)
        running.wait_for("draining")
        time.sleep(0.5)
        assert running.process.poll() is None
        connection.sendall(data[-1:])
        response = read_response(connection)
        assert response.status == 200
        assert json.loads(response.body)["predictions"][0]["label"] == "red"
    assert running.process.wait(30) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{running.url}/health/live")


def test_a_terminal_that_goes_drains_too(start_server: StartServer) -> None:
    terminal, screen = os.openpty()
    running = start_server(under=("sh", "-c", f'exec "$@" > {os.ttyname(screen)}', "sh")).wait_until_ready()
    os.close(screen)
    data = image_of(RED)
    with begin_upload(running, data) as connection:
        os.close(terminal)
        for _ in range(3):  # the kernel sends it, and so does the shell
            running.process.send_signal(signal.SIGHUP)
            time.sleep(0.2)
        running.wait_for("SIGHUP: draining")
        connection.sendall(data[-1:])
        assert read_response(connection).status == 200
    assert running.process.wait(30) == 0


@pytest.mark.parametrize("http_workers", [1, 2])
def test_a_hang_up_stays_ignored_where_it_is(start_server: StartServer, http_workers: int) -> None:
    running = start_server(under=("nohup",), http_workers=http_workers).wait_until_ready()
    running.process.send_signal(signal.SIGHUP)
    running.wait_until_ready()
    assert running.stop() == 0
    assert "SIGHUP" not in running.log


def test_during_the_grace_requests_are_taken_while_readiness_says_no(start_server: StartServer) -> None:
    running = start_server(shutdown_grace_seconds=30).wait_until_ready()
    running.process.send_signal(signal.SIGTERM)
    running.wait_for("draining")
    ready = httpx.get(f"{running.url}/health/ready")
    assert (ready.status_code, ready.json()["detail"]) == (503, "the server is shutting down.")
    assert httpx.get(f"{running.url}/health/live").status_code == 200
    answered = httpx.post(f"{running.url}/classify/image", files={"file": image_of(RED)}, timeout=60)
    assert answered.status_code == 200
    running.process.send_signal(signal.SIGTERM)  # hurries: nobody waits for the rest of the grace
    assert running.process.wait(20) == 0


@pytest.mark.parametrize("http_workers", [1, 2])
def test_a_further_signal_drops_what_is_not_finished(start_server: StartServer, http_workers: int) -> None:
    running = start_server(upload_idle_timeout_seconds=60, http_workers=http_workers).wait_until_ready()
    with begin_upload(running, image_of(RED)) as connection:
        running.process.send_signal(signal.SIGINT)
        running.wait_for("draining")
        time.sleep(0.5)
        running.process.send_signal(signal.SIGINT)
        running.wait_for("dropped")
        assert read_response(connection).status == 503
    assert running.process.wait(20) == 0
    assert "Traceback" not in running.log


@pytest.mark.parametrize("http_workers", [1, 2])
def test_a_drain_ends_within_its_bound(start_server: StartServer, http_workers: int) -> None:
    limits = {"http_workers": http_workers, "upload_idle_timeout_seconds": 60, "shutdown_timeout_seconds": 1}
    running = start_server(cors_origins=PAGE, **limits).wait_until_ready()
    with begin_upload(running, image_of(RED)) as connection:
        running.process.send_signal(signal.SIGTERM)
        response = read_response(connection)
        assert (response.status, response.headers["access-control-allow-origin"]) == (503, PAGE)
    assert running.process.wait(30) == 0
    assert "did not finish within 1 s" in running.log


def test_a_server_that_is_still_starting_ends_too(start_server: StartServer) -> None:
    running = start_server()
    assert running.stop() == 0, running.log


def test_an_address_in_use_is_said_in_one_line(start_server: StartServer) -> None:
    running = start_server()
    with pytest.raises(AssertionError, match="ended with 1"):
        start_server(port=running.port)
    assert running.stop() == 0
