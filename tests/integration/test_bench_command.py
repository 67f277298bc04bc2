"""`hiera-serve bench` with a server of its own, as a person types it and ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hiera_command import command_environment

from app.load.processes import process_tree, read_proc, session_members

BENCH = (sys.executable, "-P", "-m", "app.cli", "bench", "--rates", "none")


def test_the_folder_that_it_is_called_in_lends_no_code(colour_repository: Path, tmp_path: Path) -> None:
    """An app/ is what most projects over FastAPI have, and a queue.py of anybody's would hide Python's."""
    (tmp_path / "app").mkdir()
    for stranger in ("app/__init__.py", "app/main.py", "queue.py"):
        (tmp_path / stranger).write_text("raise SystemExit('a stranger was run')\n")
    root = str(Path(__file__).parents[2])
    environment = command_environment(model_repository=colour_repository) | {"PYTHONPATH": root}
    words = [*BENCH, "--connections", "1", "--seconds", "0.3", "--warmup", "0.1"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("colours on onnxruntime fp32, sample.jpg\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_whoever_ends_it_ends_its_server(colour_repository: Path, number: signal.Signals) -> None:
    environment = command_environment(model_repository=colour_repository)
    words = [*BENCH, "--connections", "1", "--seconds", "60"]
    with subprocess.Popen(
        words, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=listen_to_signals, start_new_session=True
    ) as running:
        until = time.monotonic() + 60
        while len(session_members(running.pid)) < 3:  # with the load generator, and what multiprocessing has beside it
            assert time.monotonic() < until
            time.sleep(0.05)
        others = set(process_tree(running.pid)) - {running.pid}
        assert len(others) > 3  # the server and its media workers
        if number == signal.SIGINT:
            os.killpg(running.pid, number)  # as a terminal does
        else:
            running.send_signal(number)
        _, said = running.communicate(timeout=60)
    assert running.returncode == (130 if number == signal.SIGINT else 128 + number)
    assert "Traceback" not in said
    until = time.monotonic() + 20
    while [pid for pid in others if read_proc(pid, "cmdline")]:  # what nobody has reaped has none
        assert time.monotonic() < until
        time.sleep(0.05)


def listen_to_signals() -> None:
    """Where these tests run in the background, a shell has told them to ignore interrupts; under nohup, hang-ups."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
