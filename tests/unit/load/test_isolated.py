"""Work in a process of its own: what comes back, and what is said on the way."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.interpreter import import_path
from app.load.generator import Progress
from app.load.isolated import GeneratorDied, in_a_process


def in_two_steps(order: int, progress: Progress) -> list[int]:
    progress(0.5, order)
    progress(1.0, 2 * order)
    return [order, os.getpid()]


def end_early(order: int, progress: Progress) -> None:
    progress(0.5, 0)
    os._exit(order)


def test_progress_is_told_as_it_comes_and_the_result_is_what_the_work_returns() -> None:
    told: list[tuple[float, int]] = []
    order, process = in_a_process(in_two_steps, 3, lambda fraction, answers: told.append((fraction, answers)))
    assert told == [(0.5, 3), (1.0, 6)]
    assert order == 3
    assert process != os.getpid()


def test_progress_that_nobody_wants_is_no_result() -> None:
    assert in_a_process(in_two_steps, 4)[0] == 4


def test_a_process_that_ends_without_a_result_is_an_error() -> None:
    with pytest.raises(GeneratorDied, match="exit code 7 and no result"):
        in_a_process(end_early, 7)


ENDED_IN_MID_START = """
import os, signal, sys
from multiprocessing import popen_spawn_posix as popen, util
from app.load.isolated import in_a_process

def left(number, frame):
    sys.exit(7)

def spawn(*arguments):
    pid = start(*arguments)
    if "spawn_main" in str(arguments):  # and not multiprocessing's resource tracker
        os.kill(os.getpid(), int(sys.argv[1]))  # it has not been told what to do yet
    return pid

start, util.spawnv_passfds = util.spawnv_passfds, spawn
signal.signal(int(sys.argv[1]), left)
if __name__ == "__main__":
    from test_isolated import in_two_steps
    in_a_process(in_two_steps, 1)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_who_is_ended_while_the_generator_starts_says_nothing_of_it(number: int, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(ENDED_IN_MID_START)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), import_path()])}
    command = [sys.executable, str(script), str(number)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (7, "")
