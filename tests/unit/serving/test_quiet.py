"""Nothing is built while something is measured, and nobody waits for ever."""

from __future__ import annotations

import threading

from serving_fakes import PATIENCE_S

from app.serving.quiet import Quiet


def test_a_measurement_waits_for_the_builds_and_the_builds_for_it() -> None:
    quiet = Quiet(PATIENCE_S)
    order: list[str] = []
    built, measured = threading.Event(), threading.Event()

    def measure() -> None:
        with quiet.measuring():
            order.append("measured")
            measured.set()

    def build() -> None:
        with quiet.busy():
            built.wait(PATIENCE_S)
            order.append("built")

    with quiet.busy():
        builders = [threading.Thread(target=build) for _ in range(2)]
        for builder in builders:
            builder.start()
        measurer = threading.Thread(target=measure)
        measurer.start()
        built.set()
        for builder in builders:
            builder.join(PATIENCE_S)
        assert not measured.is_set()
    measurer.join(PATIENCE_S)
    assert order == ["built", "built", "measured"]
    with quiet.measuring():
        late = threading.Thread(target=build)
        late.start()
        order.append("measured again")
    late.join(PATIENCE_S)
    assert order[-2:] == ["measured again", "built"]


def test_a_build_that_hangs_stops_no_measurement() -> None:
    quiet = Quiet(patience_s=0.01)
    with quiet.busy(), quiet.measuring():
        pass
    with quiet.measuring(), quiet.busy():
        pass
