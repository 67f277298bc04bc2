"""`--http-workers 2`: two HTTP processes over one set of engines are one server to whoever calls it."""

from __future__ import annotations

import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from colours import BLUE, GREEN, RED, image_of, video_of
from prometheus_client.parser import text_string_to_metric_families
from raw_http import connect, is_closed, post_head, read_response
from running_server import RunningServer

from app.load.processes import process_tree

StartServer = Callable[..., RunningServer]
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, colour_repository: Path) -> Iterator[RunningServer]:
    """A ready server of two HTTP workers, for the tests that leave it whole."""
    running = RunningServer(tmp_path_factory.mktemp("server"), colour_repository, {"http_workers": 2})
    yield running.wait_until_ready()
    assert running.stop() == 0, running.log


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition: Callable[[], bool], running: RunningServer) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, running.log
        time.sleep(0.05)


def idle_workers(running: RunningServer) -> float:
    return samples_of(httpx.get(f"{running.url}/metrics").text)[IDLE_WORKERS]


def serving_pid(running: RunningServer, connection: socket.socket) -> int:
    """The worker at the other end of `connection`, by the kernel's table of sockets."""
    ends = [f"0100007F:{running.port:04X}", f"0100007F:{connection.getsockname()[1]:04X}"]
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines())
    inode = next(row[9] for row in rows if row[1:3] == ends)
    for pid in children_of(running.process.pid):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            if descriptor.is_symlink() and os.readlink(descriptor) == f"socket:[{inode}]":
                return pid
    raise AssertionError("no worker has that connection")


def ask(connection: socket.socket, path: str = "/health/live") -> bytes:
    """An answer over a connection that stays open."""
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
    response = read_response(connection)
    assert response.status == 200, response
    return response.body


def samples_of(text: str) -> dict[str, float]:
    families = text_string_to_metric_families(text)
    return {f"{s.name}{sorted(s.labels.items())}": s.value for family in families for s in family.samples}


OK_REQUESTS = f"hiera_requests_total{[('code', '200'), ('model', 'colours'), ('task', 'image')]}"
ROWS = f"hiera_rows_total{[('model', 'colours')]}"
IDLE_WORKERS = f"hiera_media_workers{[('state', 'idle')]}"


def test_connections_are_spread_evenly_over_the_workers(pair: RunningServer) -> None:
    connections = [socket.create_connection(("127.0.0.1", pair.port)) for _ in range(8)]
    owners = []
    for connection in connections:
        ask(connection)
        owners.append(serving_pid(pair, connection))
        connection.close()
    assert sorted(owners.count(pid) for pid in set(owners)) == [4, 4]


def test_models_and_readiness_are_the_same_from_each_worker(pair: RunningServer) -> None:
    with connect(pair.port) as first, connect(pair.port) as second:
        for path in ("/models", "/models/colours", "/health/ready"):
            assert ask(first, path) == ask(second, path)
        assert serving_pid(pair, first) != serving_pid(pair, second)


def test_answers_are_those_of_one_process(pair: RunningServer, client: httpx.Client) -> None:
    for _ in range(2):  # each call of `httpx.post` is a connection of its own: one for each worker
        for path, data in (
            *((f"/classify/image?top_k={k}", image_of(colour)) for k, colour in enumerate((RED, GREEN, BLUE), start=1)),
            ("/classify/video?clips=2&crops=3", video_of(RED, BLUE)),
        ):
            together = httpx.post(f"{pair.url}{path}", content=data, timeout=60)
            alone = client.post(path, content=data)
            assert (together.status_code, alone.status_code) == (200, 200), together.text
            for field in ("model", "predictions", "clips"):
                assert together.json().get(field) == alone.json().get(field)


def test_errors_are_those_of_one_process(pair: RunningServer, client: httpx.Client) -> None:
    for path, data in (
        ("/classify/image?model=none", image_of()),
        ("/classify/image?model=colours_video", image_of()),
        ("/classify/image", b"no image"),
    ):
        together = httpx.post(f"{pair.url}{path}", content=data, timeout=60).json()
        alone = client.post(path, content=data).json()
        assert {**together, "request_id": ""} == {**alone, "request_id": ""}
    late = httpx.post(f"{pair.url}/classify/image?timeout_ms=1", content=image_of(size=(4000, 4000)), timeout=60)
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")


def test_a_batch_holds_rows_of_both_workers(start_server: StartServer) -> None:
    running = start_server(http_workers=2, engine="noop", max_queue_delay_ms=5000).wait_until_ready()
    with connect(running.port) as first, connect(running.port) as second:
        ask(first)
        ask(second)
        assert serving_pid(running, first) != serving_pid(running, second)
        data = image_of()
        for connection in (first, second):
            connection.sendall(post_head("/classify/image", "image/jpeg", f"Content-Length: {len(data)}") + data)
        for connection in (first, second):
            assert b'"batch_rows":2' in read_response(connection).body
    assert running.stop() == 0, running.log


def test_the_metrics_of_any_worker_are_those_of_all(pair: RunningServer) -> None:
    before = samples_of(httpx.get(f"{pair.url}/metrics").text)
    for _ in range(6):
        assert httpx.post(f"{pair.url}/classify/image", content=image_of()).status_code == 200
    for _ in range(2):  # of each worker
        after = samples_of(httpx.get(f"{pair.url}/metrics").text)
        assert after[OK_REQUESTS] - before[OK_REQUESTS] == 6
        assert after[ROWS] - before[ROWS] == 6
        assert before.keys() <= after.keys()
    # One for images and one for videos in each; a pool reports its workers up to 0.1 s after a change.
    until(lambda: [idle_workers(pair), idle_workers(pair)] == [4, 4], pair)


def test_every_series_is_there_from_the_start(pair: RunningServer, client: httpx.Client) -> None:
    def series(text: str) -> set[str]:
        # How many batch sizes were measured depends on how quick the machine was; one row always is.
        return {name for name in samples_of(text) if "batch_cost" not in name or "('rows', '1')" in name}

    together, alone = series(httpx.get(f"{pair.url}/metrics").text), series(client.get("/metrics").text)
    assert together == alone
    assert len([name for name in together if "batch_cost" in name]) == 2


def test_a_scrape_with_an_odd_header_is_answered(pair: RunningServer) -> None:
    answer = httpx.get(f"{pair.url}/metrics", headers={"accept": "text/plain; version=x"}, timeout=PATIENCE_S)
    assert answer.status_code == 200
    assert OK_REQUESTS in samples_of(answer.text)


def test_a_killed_worker_costs_its_own_connections_and_is_replaced(start_server: StartServer) -> None:
    running = start_server(http_workers=2).wait_until_ready()
    workers = set(children_of(running.process.pid))
    with connect(running.port) as first, connect(running.port) as second:
        for connection in (first, second):
            ask(connection)
        assert httpx.post(f"{running.url}/classify/image", content=image_of()).status_code == 200
        counted = samples_of(httpx.get(f"{running.url}/metrics").text)[OK_REQUESTS]
        victim = serving_pid(running, first)
        os.kill(victim, signal.SIGKILL)
        assert is_closed(first)
        ask(second)
        running.wait_for("HTTP worker . ended")
        with connect(running.port) as third:  # goes to who is left
            ask(third)
        until(lambda: len(set(children_of(running.process.pid)) - workers) == 1, running)
        running.wait_until_ready()
        with connect(running.port) as fourth, connect(running.port) as fifth:
            for connection in (fourth, fifth):
                ask(connection)
            assert serving_pid(running, fourth) != serving_pid(running, fifth)
        ask(second)
        assert httpx.post(f"{running.url}/classify/image", content=image_of()).status_code == 200
        after = samples_of(httpx.get(f"{running.url}/metrics").text)
        assert after[OK_REQUESTS] == counted + 1  # nothing that was counted is forgotten
        until(lambda: idle_workers(running) == 4, running)
    assert running.stop() == 0, running.log


def test_a_worker_that_cannot_be_started_is_tried_again(start_server: StartServer) -> None:
    running = start_server(http_workers=2).wait_until_ready()
    host = running.process.pid
    workers = set(children_of(host))
    soft, hard = resource.prlimit(host, resource.RLIMIT_NOFILE)
    resource.prlimit(host, resource.RLIMIT_NOFILE, (3, hard))  # what is open stays open
    os.kill(min(workers), signal.SIGKILL)
    running.wait_for("HTTP worker . cannot be started: Too many open files")
    resource.prlimit(host, resource.RLIMIT_NOFILE, (soft, hard))
    until(lambda: len(set(children_of(host)) - workers) == 1, running)
    running.wait_until_ready()
    assert httpx.post(f"{running.url}/classify/image", content=image_of()).status_code == 200
    assert running.stop() == 0, running.log


def test_a_drain_under_load_loses_no_accepted_request(start_server: StartServer) -> None:
    running = start_server(http_workers=2, shutdown_grace_seconds=60).wait_until_ready()
    data = image_of()
    head = post_head("/classify/image", "image/jpeg", f"Content-Length: {len(data)}")
    uploads = [socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE_S) for _ in range(4)]
    for upload in uploads:
        upload.sendall(head + data[:-1])

    def send(number: int) -> int:
        return httpx.post(f"{running.url}/classify/image", content=data, timeout=60).status_code

    with ThreadPoolExecutor(4) as callers:
        for pid in 2 * [running.process.pid, *children_of(running.process.pid)]:  # as the end of a session may
            os.kill(pid, signal.SIGHUP)
            time.sleep(0.1)
        running.wait_for("draining")
        assert list(callers.map(send, range(8))) == [200] * 8  # within the grace
        ready = httpx.get(f"{running.url}/health/ready")
        assert ready.status_code == 503
        assert "shutting down" in ready.json()["detail"]
        assert len({serving_pid(running, upload) for upload in uploads}) == 2
        running.process.send_signal(signal.SIGTERM)  # ends the grace
        running.wait_for("no further requests")
        time.sleep(0.5)
        assert running.process.poll() is None
        for upload in uploads:
            upload.sendall(data[-1:])
            assert read_response(upload).status == 200
            upload.close()
    assert running.process.wait(PATIENCE_S) == 0, running.log
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{running.url}/health/live")


def test_workers_end_when_the_engine_host_is_killed(start_server: StartServer) -> None:
    running = start_server(http_workers=2).wait_until_ready()
    workers = children_of(running.process.pid)
    everyone = set(process_tree(running.process.pid)[1:])
    assert len(everyone) == 2 + 4 + 4  # two media workers each, and what forks them
    assert everyone.issuperset(workers)
    running.kill()
    until(lambda: not any(map(is_running, everyone)), running)


def test_a_wrong_setting_that_only_a_worker_sees_ends_the_server(start_server: StartServer) -> None:
    with pytest.raises(AssertionError, match=r"(?s)ended with 2.*HIERA_API_KEYS"):
        start_server(http_workers=2, api_keys="name:")


def test_one_worker_is_one_process(start_server: StartServer) -> None:
    running = start_server().wait_until_ready()
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children_of(running.process.pid)]
    assert len(commands) == 2
    assert all(b"app.media.forkserver" in command for command in commands)
    assert running.stop() == 0, running.log
