"""The way of rows through a device, over a device whose memory is the host's."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import pytest
from host_device import GuardedDevice, HostDevice, LateDevice

from app.engines.base import Rows, batch_ladder
from app.engines.pipeline import FurtherOutput, Pipeline
from app.errors import EngineError, EngineOutOfMemory

ROW = (2, 2, 3)
CLASSES = 4


class Sums:
    """Computes, of the rows at the pipeline's input, four figures that tell rows apart; `sizes` is what was run."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self.sizes: list[int] = []

    def __call__(self, size: int) -> None:
        self.sizes.append(size)
        rows = _at(self._pipeline.input, size * 12).reshape(size, 12).astype(np.float32)
        answers = np.ascontiguousarray(np.stack([rows[:, 0], rows[:, 5], rows[:, 11], rows.sum(axis=1)], axis=1))
        ctypes.memmove(self._pipeline.output, answers.ctypes.data, answers.nbytes)


class SumsAndEnds(Sums):
    """Leaves a further output, the first and the last value of each row, beside the figures."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__(pipeline)
        self.output: FurtherOutput = pipeline.add_output(2)

    def __call__(self, size: int) -> None:
        super().__call__(size)
        both = ends(_at(self._pipeline.input, size * 12).reshape(size, *ROW))
        ctypes.memmove(self.output.address, both.ctypes.data, both.nbytes)


def _at(address: int, nbytes: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))


def expected(rows: Rows) -> np.ndarray:
    flat = rows.reshape(len(rows), 12).astype(np.float32)
    return np.stack([flat[:, 0], flat[:, 5], flat[:, 11], flat.sum(axis=1)], axis=1)


def ends(rows: Rows) -> np.ndarray:
    flat = rows.reshape(len(rows), 12).astype(np.float32)
    return np.ascontiguousarray(flat[:, [0, 11]])


def draw(n: int, seed: int = 0) -> Rows:
    return np.random.default_rng(seed).integers(0, 256, (n, *ROW), dtype=np.uint8)


@pytest.fixture
def device() -> HostDevice:
    return HostDevice()


@pytest.fixture
def pipeline(device: HostDevice) -> Pipeline:
    return Pipeline(device, ROW, CLASSES, batch_ladder(8))


def test_the_sizes_are_powers_of_two_and_the_largest_batch() -> None:
    assert batch_ladder(1) == (1,)
    assert batch_ladder(8) == (1, 2, 4, 8)
    assert batch_ladder(12) == (1, 2, 4, 8, 12)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_each_row_gets_its_own_answer_at_every_number_of_rows(pipeline: Pipeline, n: int) -> None:
    sums = Sums(pipeline)
    rows = draw(n)
    np.testing.assert_array_equal(pipeline.run(rows, sums, record=False), expected(rows))
    assert sums.sizes == [min(size for size in (1, 2, 4, 8) if size >= n)]


def test_a_size_is_recorded_at_its_first_run_and_every_answer_is_of_a_replay(
    pipeline: Pipeline, device: HostDevice
) -> None:
    sums = Sums(pipeline)
    for seed in range(3):
        rows = draw(4, seed)
        np.testing.assert_array_equal(pipeline.run(rows, sums, record=True), expected(rows))
    assert [call for call in device.log if call in ("record", "replay")] == ["record", "replay", "replay", "replay"]


def test_work_that_cannot_be_recorded_is_queued_each_time(caplog: pytest.LogCaptureFixture) -> None:
    device = HostDevice(records=False)
    pipeline = Pipeline(device, ROW, CLASSES, batch_ladder(4))
    sums = Sums(pipeline)
    for seed in range(2):
        rows = draw(3, seed)
        np.testing.assert_array_equal(pipeline.run(rows, sums, record=True), expected(rows))
    assert sums.sizes == [4, 4, 4]  # it was tried twice
    assert caplog.text.count("CUDA graph") == 1


def test_a_recording_that_fails_once_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    class Reluctant(HostDevice):
        def record(self, work: Callable[[], None], stream: int) -> int:
            self.records, records = True, self.records
            if not records:
                raise EngineError("something was still to be allocated")
            return super().record(work, stream)

    device = Reluctant(records=False)
    pipeline = Pipeline(device, ROW, CLASSES, batch_ladder(4))
    for seed in range(2):
        rows = draw(4, seed)
        np.testing.assert_array_equal(pipeline.run(rows, Sums(pipeline), record=True), expected(rows))
    assert [call for call in device.log if call in ("record", "replay")] == ["record", "replay", "replay"]
    assert not caplog.records


def test_nobody_else_starts_while_a_size_is_run_for_the_first_time_and_recorded() -> None:
    device = GuardedDevice()
    pipeline = Pipeline(device, ROW, CLASSES, batch_ladder(4))
    sums, depths = Sums(pipeline), []
    device.unguarded.clear()

    def enqueue(size: int) -> None:
        depths.append(device.depth)
        sums(size)

    for _ in range(2):
        pipeline.run(draw(4), enqueue, record=True)
    assert depths[0] == 1
    assert depths[1:] == [0, 0]  # replays
    assert device.unguarded == []
    pipeline.run(draw(2), enqueue, record=False)
    assert depths[-1] == 0


def test_staged_rows_are_copied_once_and_before_their_run(pipeline: Pipeline, device: HostDevice) -> None:
    rows = pipeline.empty_rows(4)
    rows[...] = draw(4)
    pipeline.stage(rows)
    assert device.log == ["upload"]
    np.testing.assert_array_equal(pipeline.run(rows, Sums(pipeline), record=False), expected(rows))
    assert device.log == ["upload", "download"]


def test_rows_staged_behind_a_running_batch_do_not_touch_it(pipeline: Pipeline, device: HostDevice) -> None:
    first, second = draw(4, 1), draw(4, 2)
    sums = Sums(pipeline)

    def run_and_stage_meanwhile(size: int) -> None:
        pipeline.stage(second)
        sums(size)

    pipeline.stage(first)
    np.testing.assert_array_equal(pipeline.run(first, run_and_stage_meanwhile, record=False), expected(first))
    np.testing.assert_array_equal(pipeline.run(second, sums, record=False), expected(second))
    assert device.log.count("upload") == 2


def test_every_copy_is_waited_for_on_a_device_that_is_never_early() -> None:
    device = LateDevice()
    pipeline = Pipeline(device, ROW, CLASSES, batch_ladder(4))
    sums = Sums(pipeline)
    first, second, unannounced = draw(2, 1), draw(2, 2), draw(3, 3)
    pipeline.stage(first)
    pipeline.stage(second)
    for rows in (first, second, unannounced):
        answers = pipeline.run(rows, lambda size: device.later(pipeline.stream, lambda: sums(size)), record=False)
        np.testing.assert_array_equal(answers, expected(rows))
    pipeline.close()


def test_a_buffer_that_is_filled_and_staged_again_counts_with_its_new_rows(pipeline: Pipeline) -> None:
    rows = draw(2, 1)
    pipeline.stage(rows)  # and never run
    rows[...] = draw(2, 2)
    pipeline.stage(rows)
    np.testing.assert_array_equal(pipeline.run(rows, Sums(pipeline), record=False), expected(rows))


def test_half_of_a_staged_batch_can_be_run(pipeline: Pipeline) -> None:
    rows = draw(4)
    pipeline.stage(rows)
    np.testing.assert_array_equal(pipeline.run(rows[:2], Sums(pipeline), record=False), expected(rows[:2]))
    np.testing.assert_array_equal(pipeline.run(rows[2:], Sums(pipeline), record=False), expected(rows[2:]))


def test_more_rows_than_were_staged_of_a_buffer_are_copied_anew(pipeline: Pipeline) -> None:
    rows = draw(4)
    pipeline.stage(rows[:2])
    np.testing.assert_array_equal(pipeline.run(rows, Sums(pipeline), record=False), expected(rows))


def test_batches_that_were_staged_and_never_run_take_no_place_for_good(pipeline: Pipeline, device: HostDevice) -> None:
    rows = draw(2)
    for _ in range(5):
        pipeline.stage(rows)
    assert device.log.count("upload") == 5
    other = draw(2, 1)
    pipeline.stage(other)
    pipeline.run(other, Sums(pipeline), record=False)
    assert device.log.count("upload") == 6  # it was staged, and not copied again


def test_rows_staged_again_where_there_is_no_room_are_not_mistaken_for_those_before(pipeline: Pipeline) -> None:
    rows, others = draw(4, 1), draw(4, 2)
    pipeline.stage(rows)
    pipeline.stage(others)
    rows[:] = draw(4, 3)
    pipeline.stage(rows)
    np.testing.assert_array_equal(pipeline.run(rows, Sums(pipeline), record=False), expected(rows))


def test_however_much_is_staged_a_batch_still_finds_a_place(pipeline: Pipeline) -> None:
    staged = [draw(2, seed) for seed in range(5)]
    for rows in staged:
        pipeline.stage(rows)
    sums = Sums(pipeline)
    for rows in [draw(3, 9), *staged, draw(3, 10)]:
        np.testing.assert_array_equal(pipeline.run(rows, sums, record=False), expected(rows))


def test_a_batch_that_fails_leaves_the_way_open_for_the_next(pipeline: Pipeline) -> None:
    def fail(size: int) -> None:
        raise EngineError("a kernel failed")

    for _ in range(5):
        with pytest.raises(EngineError, match="a kernel failed"):
            pipeline.run(draw(2), fail, record=False)
    rows = draw(2)
    np.testing.assert_array_equal(pipeline.run(rows, Sums(pipeline), record=False), expected(rows))


def test_the_answers_of_a_batch_survive_the_next(pipeline: Pipeline) -> None:
    sums = Sums(pipeline)
    first = pipeline.run(draw(2, 1), sums, record=False)
    kept = first.copy()
    pipeline.run(draw(2, 2), sums, record=False)
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("record", [False, True])
def test_a_further_output_is_fetched_for_the_rows_of_the_last_batch(
    pipeline: Pipeline, device: HostDevice, record: bool
) -> None:
    both = SumsAndEnds(pipeline)
    for n in (8, 1, 3, 5, 8):
        rows = draw(n, n)
        np.testing.assert_array_equal(pipeline.run(rows, both, record=record), expected(rows))
        np.testing.assert_array_equal(pipeline.fetch(both.output), ends(rows))
    pipeline.close()
    assert not device.held


def test_a_further_output_stays_on_the_device_unless_it_is_fetched(pipeline: Pipeline, device: HostDevice) -> None:
    both = SumsAndEnds(pipeline)
    for _ in range(2):
        pipeline.run(draw(4), both, record=False)
    assert device.log.count("download") == 2
    pipeline.fetch(both.output)
    assert device.log.count("download") == 3


def test_what_was_fetched_survives_the_next_batch(pipeline: Pipeline) -> None:
    both = SumsAndEnds(pipeline)
    pipeline.run(draw(2, 1), both, record=False)
    first = pipeline.fetch(both.output)
    pipeline.run(draw(2, 2), both, record=False)
    pipeline.fetch(both.output)
    np.testing.assert_array_equal(first, ends(draw(2, 1)))


def test_a_further_output_is_waited_for_on_a_device_that_is_never_early() -> None:
    device = LateDevice()
    pipeline = Pipeline(device, ROW, CLASSES, batch_ladder(4))
    both = SumsAndEnds(pipeline)
    first, ahead = draw(3, 1), draw(3, 2)
    for rows, following in ((first, ahead), (ahead, first)):
        pipeline.run(rows, lambda size: device.later(pipeline.stream, lambda: both(size)), record=False)
        pipeline.stage(following)  # its rows are on their way and are not what is fetched
        np.testing.assert_array_equal(pipeline.fetch(both.output), ends(rows))
    pipeline.close()
    assert not device.held


def test_a_further_output_that_does_not_fit_is_named_as_that_and_the_rest_is_given_back() -> None:
    device = HostDevice(room=100)
    pipeline = Pipeline(device, ROW, CLASSES, (1, 4))
    with pytest.raises(EngineOutOfMemory):
        pipeline.add_output(7)
    pipeline.close()
    assert not device.held


def test_everything_is_given_back(pipeline: Pipeline, device: HostDevice) -> None:
    pipeline.run(draw(2), Sums(pipeline), record=True)
    assert device.held
    pipeline.close()
    assert not device.held


def test_a_pipeline_that_does_not_fit_leaves_nothing_behind() -> None:
    device = HostDevice(room=50)
    with pytest.raises(EngineOutOfMemory):
        Pipeline(device, ROW, CLASSES, (1, 4))
    assert not device.held
