"""What a comparison says of rounds in which a server answered nothing, or did not run."""

import pytest

from app.load.summary import Percentiles, Summary
from benchmarks.rounds import Load, Measured, print_comparison, ratios


def run(per_s: float) -> Summary:
    """Of ten seconds; at 0/s all of ten requests failed."""
    latency = Percentiles(p50=100 / per_s, p90=2.0, p99=3.0, mean=1.0, maximum=4.0) if per_s else None
    answers = round(10 * per_s)
    return Summary(16, None, 10.0, answers or 10, answers, per_s, latency, None, {}, {} if per_s else {"503": 10}, 0.01)


def cells(capsys: pytest.CaptureFixture[str], peers: list[Summary | None], us: list[Summary | None]) -> list[str]:
    """The peer's line, by columns."""
    measured = {"ours": Measured("ours", [1.0], {16: us}), "peer": Measured("peer", [1.0], {16: peers})}
    print_comparison(measured, "ours", [Load(16, 10.0, 1.0)])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("peer"))
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_rounds_in_which_a_server_only_failed_count_in_its_throughput_and_its_errors(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = cells(capsys, [run(100.0), run(0.0), run(0.0)], [run(200.0)] * 3)
    assert shown == [
        "peer", "0.0", "1.00", "3.00", "2.00 (2.00 to 2.00), 1 of 3 rounds", "0.50 (0.50 to 0.50), 1 of 3 rounds",
        "1.0", "20",
    ]  # fmt: skip


def test_a_round_that_did_not_run_is_no_round_of_0_per_s(capsys: pytest.CaptureFixture[str]) -> None:
    shown = cells(capsys, [run(100.0), None, run(100.0)], [run(200.0)] * 3)
    assert shown[1] == "100.0"
    assert shown[4] == "2.00 (2.00 to 2.00), 2 of 3 rounds"


def test_a_peer_that_failed_is_no_win_and_our_own_failure_is_a_defeat() -> None:
    assert ratios([200.0, 200.0, 0.0, None], [100.0, 0.0, 100.0, 100.0]) == [2.0, 0.0]
