"""The GPU server's image, where there is no GPU: it falls back to the CPU, or says plainly why it cannot serve."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from docker_engine import docker, inspect, log_of_container

IMAGE = os.environ["SERVER_GPU_IMAGE"]
READY = "/usr/local/bin/healthcheck.py"
ASK = (
    "import urllib.request as u, urllib.error as e\ntry: print(u.urlopen('http://127.0.0.1:8000{}').read().decode())\n"
)
ASK += "except e.HTTPError as error: print(error.read().decode())"


@contextmanager
def server(*settings: str) -> Iterator[str]:
    """A server of the image that has finished looking at its models; its container's id."""
    options = [word for setting in settings for word in ("--env", setting)]
    identity = docker("run", "--detach", "--read-only", "--tmpfs", "/tmp", "--network", "none", *options, IMAGE)
    try:
        yield identity
    finally:
        docker("rm", "--force", identity)


def ask(identity: str, path: str) -> str:
    return docker("exec", identity, "python3", "-c", ASK.format(path), check=False)


def settled(identity: str, timeout_s: float = 120) -> str:
    """What /health/ready says once no model is loading any more."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        said = ask(identity, "/health/ready")
        if said and "being" not in said:  # loaded, started
            return said
        time.sleep(0.5)
    raise AssertionError(f"no answer within {timeout_s:g} s: {log_of_container(identity)}")


def test_it_says_how_large_it_is() -> None:
    whole, base = (inspect(image)["Size"] / 1e6 for image in (IMAGE, os.environ["BASE_IMAGE"]))
    print(f"\n   {IMAGE}: {whole:.0f} MB, of which {whole - base:.0f} MB are its own layers")
    assert inspect(IMAGE)["Config"]["User"] == "10001:10001"


def test_its_libraries_are_there() -> None:
    script = (
        "import onnxruntime as o; o.preload_dlls(); print(o.__version__, o.get_available_providers(), o.get_device())"
    )
    said = docker("run", "--rm", "--network", "none", "--entrypoint", "python3", IMAGE, "-c", script)
    print(f"\n   {said}")
    assert "CUDAExecutionProvider" in said
    assert "Failed to load" not in said


def test_without_a_gpu_it_serves_on_the_cpu() -> None:
    with server() as identity:
        assert "ready" in settled(identity)
        assert '"device":"cpu"' in ask(identity, "/models").replace(" ", "").lower()


def test_pinned_to_a_gpu_that_is_not_there_it_says_so() -> None:
    with server("HIERA_ENGINE_DEVICE=cuda") as identity:
        assert "not_ready" in settled(identity)
        reasons = {each["reason"] for each in json.loads(ask(identity, "/models"))["models"]}
        log = log_of_container(identity)
    print(f"\n   {reasons}")
    assert all("HIERA_ENGINE_DEVICE=cuda" in reason for reason in reasons)
    assert "GPU" in log, "only who asks is told"
