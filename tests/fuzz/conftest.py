"""The server that is fuzzed, and what must be true of it when all is over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from campaign import Tally, surprises
from observation import observe, settle
from running_server import RunningServer
from target import PACKAGES, SETTINGS, Target, good_answers, write_report


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """One server for the session. At its end it lives, holds no more than before, answers as before, and logged no
    error but the ends of workers."""
    running = RunningServer(tmp_path_factory.mktemp("fuzzed"), PACKAGES, SETTINGS)
    try:
        running.wait_until_ready()
        good_answers(running)  # every worker has had something to do
        answers = good_answers(running)
        goal = Target(running, observe(running), answers, Tally())
        yield goal
        assert running.process.poll() is None, running.log[-5000:]
        after, left = settle(running, goal.before)
        assert not left
        assert good_answers(running) == answers
        assert running.stop() == 0
        assert not surprises(running.log)
        write_report(goal, after)
    finally:
        if running.process.poll() is None:
            running.kill()
