"""What each signal does to a server, without a server: the steps are written down instead of taken."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import pytest

from app.drain import Drain


def steps(scene: Callable[[Drain], None], *, grace_s: float = 60.0, until: int = 0) -> list[str]:
    """What a drain does in a scene, and after it until it has taken so many steps."""
    taken: list[str] = []

    async def scenario() -> None:
        drain = Drain(
            grace_s,
            on_drain=lambda: taken.append("drain"),
            on_stop=lambda: taken.append("stop"),
            on_drop=lambda: taken.append("drop"),
        )
        scene(drain)
        async with asyncio.timeout(20):
            while len(taken) < until:
                await asyncio.sleep(0.001)

    asyncio.run(scenario())
    return taken


@pytest.mark.parametrize(
    ("numbers", "taken"),
    [
        ([signal.SIGTERM], ["drain"]),
        ([signal.SIGTERM, signal.SIGINT], ["drain", "stop"]),
        ([signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGINT], ["drain", "stop", "drop", "drop"]),
        ([signal.SIGHUP, signal.SIGHUP, signal.SIGHUP], ["drain"]),  # kernel and shell: it is not impatient
        ([signal.SIGTERM, signal.SIGTERM, signal.SIGHUP], ["drain", "stop"]),
    ],
)
def test_each_further_signal_is_less_patient(numbers: list[int], taken: list[str]) -> None:
    def send(drain: Drain) -> None:
        for number in numbers:
            drain.signalled(number)

    assert steps(send) == taken


def test_the_grace_ends_by_itself() -> None:
    assert steps(lambda drain: drain.signalled(signal.SIGTERM), grace_s=0.01, until=2) == ["drain", "stop"]


def test_whoever_stops_without_a_signal_does_so_once_and_the_next_signal_drops() -> None:
    def stop(drain: Drain) -> None:
        drain.stop()
        drain.stop()
        drain.signalled(signal.SIGTERM)

    assert steps(stop) == ["stop", "drop"]


@pytest.mark.parametrize("ignored", [False, True])
def test_a_hang_up_stays_ignored_where_it_is(ignored: bool) -> None:
    heard: list[signal.Signals] = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        assert steps(lambda drain: heard.extend(drain.listen())) == []
    finally:
        signal.signal(signal.SIGHUP, before)
    assert heard == [signal.SIGTERM, signal.SIGINT, *([] if ignored else [signal.SIGHUP])]
