"""The Docker engine and the compose project that `run.sh` prepared, as the tests speak to them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from typing import Any

PROJECT = os.environ.get("COMPOSE_PROJECT_NAME", "hiera-test")


def docker(*arguments: str, check: bool = True) -> str:
    """What `docker ARGUMENTS` prints, without the last newline.

    Raises:
        AssertionError: it failed, with what it said.
    """
    return _run([os.environ["DOCKER"], *arguments], check)


def compose(*arguments: str) -> str:
    """The same for `docker compose`, or for the older `docker-compose` where the engine has no such plugin."""
    plugin = subprocess.run([os.environ["DOCKER"], "compose", "version"], capture_output=True, check=False)
    command = [os.environ["DOCKER"], "compose"] if plugin.returncode == 0 else ["docker-compose"]
    return _run([*command, *arguments], check=True)


def _run(command: list[str], check: bool) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, f"{' '.join(command)}: {done.stderr}"
    return done.stdout.strip()


def inspect(name: str) -> dict[str, Any]:
    """Everything that the engine knows of a container or an image."""
    described: list[dict[str, Any]] = json.loads(docker("inspect", name))
    return described[0]


def container(service: str) -> str:
    """The id of a service's container, stopped ones included."""
    identity = docker("ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}",
                      "--filter", f"label=com.docker.compose.service={service}")  # fmt: skip
    assert identity, f"{service} has no container"
    return identity.splitlines()[0]


def log_of(service: str) -> str:
    """Everything that a service's container wrote, to either stream."""
    return log_of_container(container(service))


def log_of_container(identity: str) -> str:
    command = [os.environ["DOCKER"], "logs", identity]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True).stdout


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
