"""Commands whose standard input, output or error is closed, as daemons and careless scripts leave them."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from colours import GREEN, image_of
from hiera_command import command_environment

from app.load.server import free_port


def run_with(redirection: str, *words: object, **settings: object) -> subprocess.CompletedProcess[str]:
    command = shlex.join([sys.executable, "-m", "app.cli", *map(str, words)])
    return subprocess.run(
        ["/bin/sh", "-c", f"exec {command} {redirection}"],
        capture_output=True,
        text=True,
        env=command_environment(**settings),
        timeout=120,
    )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_bytes(image_of(GREEN))
    return folder


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_files_are_classified_all_the_same(colour_repository: Path, photos: Path, redirection: str) -> None:
    done = run_with(redirection, "classify", photos, model_repository=colour_repository)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.count("green") == (0 if ">&-" in redirection.replace("2>&-", "") else 2)


def test_what_is_said_is_not_written_into_another_file(colour_repository: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "results.jsonl"
    words = ("classify", photos, "--output", output)
    assert run_with("<&- >&- 2>&-", *words, model_repository=colour_repository).returncode == 0
    assert [Path(json.loads(line)["file"]).name for line in output.read_text().splitlines()] == ["a.jpg", "b.jpg"]


def test_a_server_serves_without_any(colour_repository: Path) -> None:
    port = free_port()
    command = shlex.join([sys.executable, "-m", "app.cli", "run"])
    environment = command_environment(
        model_repository=colour_repository, port=port, host="127.0.0.1", grpc_port=0, shutdown_grace_seconds=0
    )
    server = subprocess.Popen(["/bin/sh", "-c", f"exec {command} <&- >&- 2>&-"], env=environment)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            ends = time.monotonic() + 60
            while True:
                try:
                    if client.get("/health/ready").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                assert server.poll() is None
                assert time.monotonic() < ends
                time.sleep(0.05)
            answer = client.post("/classify/image", content=image_of(GREEN), headers={"Content-Type": "image/jpeg"})
        assert answer.json()["predictions"][0]["label"] == "green"
        opened = [os.readlink(f"/proc/{server.pid}/fd/{number}") for number in range(3)]
        assert opened == [os.devnull] * 3
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
    finally:
        server.kill()
        server.wait()


@pytest.mark.parametrize("words", [("models",), ("classify", "photos"), ("evaluate", "photos")])
def test_a_mistyped_variable_is_said(colour_repository: Path, photos: Path, words: tuple[str, ...]) -> None:
    done = run_with("", *words, model_repository=colour_repository, modle_repository="elsewhere")
    assert "HIERA_MODLE_REPOSITORY is no setting and has no effect; did you mean HIERA_MODEL_REPOSITORY?" in done.stderr
