"""Rows that a quick engine can hardly decide, and the exact one that decides them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from app.engines.base import Engine, EngineInfo, Features, Probabilities, Rows, feature_dim, features_of
from app.engines.close_calls import CloseCalls, close_rows, first_look
from app.errors import EngineError

MARGIN = 0.2


class Spoken:
    """Gives each row the probabilities that are kept under the row's first value, and notes the batches."""

    def __init__(self, precision: str, answers: dict[int, list[float]]) -> None:
        self.info = EngineInfo("spoken", precision, "cpu", f"in {precision}")
        self.row_shape: tuple[int, ...] = (1, 1, 3)
        self.classes = 3
        self.max_batch = 8
        self.answers = answers
        self.batches: list[list[int]] = []
        self.twins: list[Spoken] = []
        self.closed = 0

    def empty_rows(self, n: int) -> Rows:
        return np.full((n, *self.row_shape), 77, np.uint8)

    def run(self, rows: Rows) -> Probabilities:
        marks = [int(row.flat[0]) for row in rows]
        self.batches.append(marks)
        return np.array([self.answers[mark] for mark in marks], np.float32)

    def twin(self) -> Spoken:
        self.twins.append(Spoken(self.info.precision, self.answers))
        return self.twins[-1]

    def close(self) -> None:
        self.closed += 1


class Read(Spoken):
    """Has features, too, float32 [n, 2]: each row's mark, and the sign of the engine that read it."""

    def __init__(self, precision: str, answers: dict[int, list[float]], sign: float) -> None:
        super().__init__(precision, answers)
        self.sign = sign
        self.feature_dim = 2

    def features(self) -> Features:
        return np.array([[mark, self.sign] for mark in self.batches[-1]], np.float32)

    def twin(self) -> Read:
        return Read(self.info.precision, self.answers, self.sign)


def rows_of(*marks: int) -> Rows:
    return np.array([[[[mark] * 3]] for mark in marks], np.uint8)


QUICK = {1: [0.5, 0.45, 0.05], 2: [0.7, 0.2, 0.1], 3: [0.1, 0.44, 0.46], 4: [0.5, 0.4, 0.1]}
EXACT = {1: [0.46, 0.48, 0.06], 2: [0.1, 0.2, 0.7], 3: [0.1, 0.43, 0.47], 4: [0.4, 0.5, 0.1]}


@pytest.fixture
def quick() -> Spoken:
    return Spoken("bf16", QUICK)


@pytest.fixture
def exact() -> Spoken:
    return Spoken("fp32", EXACT)


def test_close_calls_alone_are_answered_by_the_exact_engine_and_one_by_one(quick: Spoken, exact: Spoken) -> None:
    engine = CloseCalls(quick, exact, MARGIN)
    answers = engine.run(rows_of(2, 1, 3, 4, 1))
    expected = [QUICK[2], EXACT[1], EXACT[3], QUICK[4], EXACT[1]]  # 0.5 to 0.4 is 0.223 apart
    np.testing.assert_array_equal(answers, np.array(expected, np.float32))
    assert (quick.batches, exact.batches) == ([[2, 1, 3, 4, 1]], [[1], [3], [1]])
    assert engine.again == 3


def test_the_count_is_that_of_the_last_batch(quick: Spoken, exact: Spoken) -> None:
    engine = CloseCalls(quick, exact, MARGIN)
    engine.run(rows_of(1))
    engine.run(rows_of(2))
    assert engine.again == 0
    quick.answers = {}
    engine.again = 5
    with pytest.raises(KeyError):
        engine.run(rows_of(2))
    assert engine.again == 0


def test_it_is_the_quick_engine_in_all_else_and_says_what_happens_to_close_calls(quick: Spoken, exact: Spoken) -> None:
    quick.max_batch, exact.max_batch = 4, 1
    engine = CloseCalls(quick, exact, MARGIN)
    assert (engine.row_shape, engine.classes, engine.max_batch) == ((1, 1, 3), 3, 4)
    assert (engine.info.name, engine.info.precision, engine.info.device) == ("spoken", "bf16", "cpu")
    assert engine.info.detail == "in bf16; close calls again in fp32"
    assert engine.empty_rows(2).shape == (2, 1, 1, 3)
    assert int(engine.empty_rows(1).flat[0]) == 77
    assert first_look(engine) is quick
    assert first_look(quick) is quick


def test_a_failure_of_the_exact_engine_is_the_batch_s(quick: Spoken, exact: Spoken) -> None:
    def fail(rows: Rows) -> Probabilities:
        raise EngineError("no luck")

    exact.run = fail  # type: ignore[method-assign]
    engine = CloseCalls(quick, exact, MARGIN)
    assert engine.run(rows_of(2)).shape == (1, 3)
    with pytest.raises(EngineError, match="no luck"):
        engine.run(rows_of(2, 1))


def test_one_beside_it_shares_the_exact_model_and_each_closes_its_own(quick: Spoken, exact: Spoken) -> None:
    engine = CloseCalls(quick, exact, MARGIN)
    other = Spoken("bf16", QUICK)
    beside = engine.beside(other)
    beside.run(rows_of(3))
    (twin,) = exact.twins
    assert (other.batches, twin.batches, quick.batches, exact.batches) == ([[3]], [[3]], [], [])
    assert beside.margin == MARGIN
    engine.close()
    assert (quick.closed, exact.closed, other.closed, twin.closed) == (1, 1, 0, 0)
    beside.close()
    assert (quick.closed, exact.closed, other.closed, twin.closed) == (1, 1, 1, 1)


def test_the_features_of_close_calls_alone_are_the_exact_engine_s() -> None:
    engine = CloseCalls(Read("bf16", QUICK, 0.25), Read("fp32", EXACT, 0.5), MARGIN)
    assert feature_dim(engine) == 2
    engine.run(rows_of(2, 1, 3, 4, 1))
    expected = [[2, 0.25], [1, 0.5], [3, 0.5], [4, 0.25], [1, 0.5]]
    np.testing.assert_array_equal(features_of(engine), np.array(expected, np.float32))
    np.testing.assert_array_equal(features_of(engine), np.array(expected, np.float32))  # asked a second time


def test_the_exact_features_of_an_earlier_batch_are_forgotten() -> None:
    quick, exact = Read("bf16", QUICK, 0.25), Read("fp32", EXACT, 0.5)
    for engine in (CloseCalls(quick, exact, MARGIN), CloseCalls(quick, exact, MARGIN).beside(quick)):
        engine.run(rows_of(1, 2, 3))
        engine.run(rows_of(4, 2))
        np.testing.assert_array_equal(features_of(engine), np.array([[4, 0.25], [2, 0.25]], np.float32))


def test_all_rows_can_be_answered_by_the_exact_engine() -> None:
    quick, exact = Read("bf16", QUICK, 0.25), Read("fp32", EXACT, 0.5)
    engine = CloseCalls(quick, exact, MARGIN)
    engine.run(rows_of(1))
    answers = engine.run_exact(rows_of(2, 3))
    np.testing.assert_array_equal(answers, np.array([EXACT[2], EXACT[3]], np.float32))
    np.testing.assert_array_equal(features_of(engine), np.array([[2, 0.5], [3, 0.5]], np.float32))
    assert (quick.batches, exact.batches) == ([[1]], [[1], [2], [3]])
    assert engine.again == 2
    engine.run(rows_of(4))
    assert engine.again == 0
    np.testing.assert_array_equal(features_of(engine), np.array([[4, 0.25]], np.float32))


@pytest.mark.parametrize("knows", ["quick", "exact"])
def test_features_that_one_of_the_two_does_not_have_are_none(knows: str, quick: Spoken, exact: Spoken) -> None:
    if knows == "quick":
        quick = Read("bf16", QUICK, 0.25)
    else:
        exact = Read("fp32", EXACT, 0.5)
    engine: Engine = CloseCalls(quick, exact, MARGIN)
    assert feature_dim(engine) == 0
    np.testing.assert_array_equal(engine.run(rows_of(2, 1)), np.array([QUICK[2], EXACT[1]], np.float32))
    with pytest.raises(EngineError, match="gives no features"):
        features_of(engine)


@pytest.mark.parametrize(
    ("probabilities", "close"),
    [
        ([0.5, 0.411, 0.089], True),  # 0.196 apart
        ([0.5, 0.408, 0.092], False),  # 0.203
        ([0.089, 0.5, 0.411], True),
        ([0.4, 0.4, 0.2], True),
        ([1.0, 0.0, 0.0], False),
        ([0.0, 0.0, 0.0], False),
        ([1.0], False),
    ],
)
def test_a_call_is_close_where_the_two_likeliest_classes_are_within_the_margin(
    probabilities: list[float], close: bool
) -> None:
    rows = np.array([[1.0, *[0.0] * (len(probabilities) - 1)], probabilities], np.float32)
    assert close_rows(rows, MARGIN) == ([1] if close else [])


def test_what_is_no_number_is_left_for_others_to_notice(quick: Spoken, exact: Spoken) -> None:
    quick.answers = {1: [math.nan] * 3, 2: [0.0, 0.0, 0.0]}
    with np.errstate(all="raise"):
        answers = CloseCalls(quick, exact, MARGIN).run(rows_of(1, 2))
    assert np.isnan(answers[0]).all()
    assert not answers[1].any()
    assert exact.batches == []
