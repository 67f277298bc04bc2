from array import array

import numpy as np
import pytest

from app.load.connection import TIMED_OUT
from app.load.generator import Samples, Workload
from app.load.plot import Line, svg, terminal
from app.load.report import HEADER, latency_over_load, row
from app.load.summary import Summary, percentiles, stages, summarise
from app.load.target import Target

TARGET = Target("127.0.0.1", 8000, "127.0.0.1")


def summary(rate_per_s: float | None = None, scale: float = 1.0) -> Summary:
    """Of 100 answers of 1 to 100 ms, times `scale`, a 503 and a time-out. The limit of requests ended it after half of
    its time, and one answer came after that."""
    workload = Workload(TARGET, (b"x",), connections=4, seconds=20.0, warmup_s=2.0, rate_per_s=rate_per_s)
    latencies = [scale * n / 1000 for n in range(1, 101)]
    samples = Samples(
        status=array("h", [200] * 100 + [503, TIMED_OUT]),
        latency_s=array("d", [*latencies, 5.0, 30.0]),
        finished_s=array("d", [0.05 * n for n in range(99)] + [10.5, 1.0, 2.0]),
        timing=[b"decode;dur=0.25, queue;dur=0.1, inference;dur=0.5"] * 100 + [b"", b""],
        seconds=10.0,
        generator_cpu_s=3.0,
    )
    return summarise(workload, samples)


def test_percentiles_are_of_the_successes_and_in_milliseconds() -> None:
    latency = summary().latency_ms
    assert latency is not None
    assert (latency.p50, latency.p90, latency.maximum) == pytest.approx((50.5, 90.1, 100.0))


def test_one_slow_answer_moves_the_mean_and_the_99th_percentile_and_no_other() -> None:
    found = percentiles(np.array([*range(1, 100), 1000.0]))
    assert found is not None
    assert (found.p50, found.p90) == pytest.approx((50.5, 90.1))
    assert (found.p99, found.mean, found.maximum) == pytest.approx((99 + 0.01 * 901, 59.5, 1000.0))


def test_the_rate_counts_what_was_answered_in_time_by_the_time_that_was_measured() -> None:
    assert summary().throughput_per_s == pytest.approx(9.9)
    assert summary().seconds == 10.0


def test_answers_are_successes_and_failures() -> None:
    assert (summary().answers, summary().succeeded) == (102, 100)


def test_the_generators_share_is_of_all_the_time_that_it_ran_its_warm_up_too() -> None:
    assert summary().generator_share == pytest.approx(0.25)


def test_errors_are_counted_by_kind() -> None:
    assert summary().errors == {"no answer in time": 1, "503": 1}


def test_overhead_is_what_is_left_of_each_request_without_decode_and_inference() -> None:
    overhead = summary().overhead_ms
    assert overhead is not None
    assert overhead.p50 == pytest.approx(50.5 - 0.75)
    assert summary().stages_ms == {"decode": 0.25, "queue": 0.1, "inference": 0.5}


def test_a_server_without_timings_has_no_overhead() -> None:
    assert stages(b"") == {}
    samples = Samples(array("h", [200]), array("d", [0.1]), array("d", [0.1]), [b""], seconds=1.0)
    assert summarise(Workload(TARGET, (b"x",), connections=1, seconds=1.0), samples).overhead_ms is None


def test_a_timing_that_is_no_number_is_left_out() -> None:
    assert stages(b"decode;dur=1.2.3, queue;dur=., upload;dur=, inference;dur=2") == {"inference": 2.0}


def test_a_run_without_any_answer_can_be_summed_up() -> None:
    nothing = summarise(Workload(TARGET, (b"x",), connections=1, seconds=1.0), Samples(seconds=1.0))
    assert (nothing.answers, nothing.throughput_per_s, nothing.latency_ms) == (0, 0.0, None)
    assert len(row(nothing, None)) == len(HEADER)


def test_a_line_of_the_table_holds_the_efficiency_and_the_errors() -> None:
    cells = row(summary(), engine_rows_per_s=19.8)
    assert len(cells) == len(HEADER)
    assert "50%" in cells
    assert "1 x 503" in cells[-1]


def test_the_picture_prefers_the_open_loop_and_orders_by_rate() -> None:
    lines = latency_over_load([summary(), summary(60.0, 2.0), summary(30.0)])
    assert [line.label for line in lines] == ["p50", "p90", "p99"]
    assert [x for x, _ in lines[0].points] == [30.0, 60.0]
    assert lines[0].points[1][1] == pytest.approx(101.0)


def test_an_svg_is_well_formed_and_draws_every_line() -> None:
    from xml.etree import ElementTree

    picture = svg(
        [Line("a & b", ((1, 2.0), (10, 300.0))), Line("c", ((5, 7.0),)), Line("empty", ())],
        title="<latency>", x_label="load", y_label="ms",
    )  # fmt: skip
    root = ElementTree.fromstring(picture)
    space = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{space}polyline")) == 2
    assert "a & b" in [text.text for text in root.findall(f"{space}text")]
    x = [float(point.split(",")[0]) for point in root.findall(f"{space}polyline")[0].attrib["points"].split()]
    y = [float(point.split(",")[1]) for point in root.findall(f"{space}polyline")[0].attrib["points"].split()]
    assert x[0] < x[1]
    assert y[0] > y[1]  # more milliseconds stand higher


def test_a_terminal_picture_puts_more_higher() -> None:
    picture = terminal([Line("p50", ((1, 1.0), (9, 100.0)))], x_label="load", y_label="ms")
    rows = [line for line in picture.splitlines() if "│" in line and "o" in line.partition("│")[2]]
    first, last = (line.partition("│")[2].index("o") for line in (rows[-1], rows[0]))
    assert first < last


@pytest.mark.parametrize("lines", [[], [Line("empty", ())], [Line("zero", ((1, 0.0),))]])
def test_nothing_to_draw_is_said(lines: list[Line]) -> None:
    assert "no data" in terminal(lines, x_label="x", y_label="y")
    assert "no data" in svg(lines, title="t", x_label="x", y_label="y")


def test_one_point_alone_can_be_drawn() -> None:
    assert "o" in terminal([Line("p50", ((0.0, 5.0),))], x_label="x", y_label="y")
