"""What tests of several rooms share: a small real model repository, and real server processes over it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import pytest
from colours import write_colour_package
from otlp_collector import Collector
from running_server import RunningServer

# What is ignored here, servers would inherit as ignored. Tests may run under nohup.
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda number, frame: None)


@pytest.fixture(scope="session")
def colour_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository of `colours` (images) and `colours_video` (videos)."""
    root = tmp_path_factory.mktemp("model_repo")
    write_colour_package(root, "colours")
    write_colour_package(root, "colours_video", task="video")
    return root


@pytest.fixture(scope="session")
def feature_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository of `colours` and `colours_video`, which give features, too, and `plain`, which gives none."""
    root = tmp_path_factory.mktemp("model_repo")
    write_colour_package(root, "colours", features=True)
    write_colour_package(root, "colours_video", task="video", features=True)
    write_colour_package(root, "plain")
    return root


StartServer = Callable[..., RunningServer]


@pytest.fixture
def start_server(tmp_path_factory: pytest.TempPathFactory, colour_repository: Path) -> Iterator[StartServer]:
    """`start_server(setting=value, …)` starts a server; all are ended after the test."""
    servers: list[RunningServer] = []

    def start(repository: Path = colour_repository, *, under: Sequence[str] = (), **settings: object) -> RunningServer:
        servers.append(RunningServer(tmp_path_factory.mktemp("server"), repository, settings, under))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.kill()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, colour_repository: Path) -> Iterator[RunningServer]:
    """One ready server with usual settings, for all tests that only send requests."""
    running = RunningServer(tmp_path_factory.mktemp("server"), colour_repository)
    yield running.wait_until_ready()
    assert running.stop() == 0, running.log


@pytest.fixture
def client(server: RunningServer) -> Iterator[httpx.Client]:
    """An HTTP client of `server`."""
    with httpx.Client(base_url=server.url, timeout=60) as http:
        yield http


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Where traces can be sent to, and looked at."""
    stand_in = Collector()
    yield stand_in
    stand_in.close()
