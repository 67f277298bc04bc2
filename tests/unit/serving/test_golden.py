"""The gate before service, with real ONNX Runtime and OpenVINO engines and with wrong ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from serving_fakes import FakeEngine, probabilities_of, rows_of

from app.engines.base import Engine, EngineInfo, Graph, Probabilities, Rows
from app.engines.factory import EngineOptions, create_engine
from app.errors import EngineError, PackageError
from app.repository.store import Golden
from app.serving.golden import TOLERANCES, GoldenSample, check_golden, compare, run_checked

MakeGraph = Callable[..., Path]


def golden_of(marks: list[int]) -> Golden:
    return Golden(rows_of(*marks), probabilities_of(marks))


def test_an_engine_that_agrees_passes_and_the_distances_are_reported() -> None:
    engine = FakeEngine(max_batch=2)
    report = check_golden(engine, golden_of([0, 1, 2, 3, 4]), "fp32")
    assert (report.max_abs_probability, report.max_log_ratio, report.top1_agreement) == (0.0, 0.0, 1.0)
    assert engine.batches == [[0], [0, 1], [2, 3], [4]]


def test_an_engine_for_single_rows_is_given_single_rows() -> None:
    engine = FakeEngine(max_batch=1)
    check_golden(engine, golden_of([0, 1, 2]), "fp32")
    assert engine.batches == [[0], [1], [2]]


def test_a_graph_with_other_weights_is_refused_with_the_figures(make_graph: MakeGraph) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    reference = create_engine("onnxruntime", Graph(make_graph(seed=0), (8, 8, 3), 5, "fp32"), EngineOptions(threads=1))
    golden = Golden(rows, reference.run(rows))
    check_golden(reference, golden, "fp32")
    for name in ("onnxruntime", "openvino"):
        other = create_engine(name, Graph(make_graph(seed=1), (8, 8, 3), 5, "fp32"), EngineOptions(threads=1))
        with pytest.raises(PackageError, match="disagrees with the reference"):
            check_golden(other, golden, "fp32")
        other.close()
    reference.close()


class SwappedChannels:
    """The engine that reads BGR: the classic mistake."""

    def __init__(self, inner: Engine) -> None:
        self.info, self.row_shape, self.classes, self.max_batch = (
            inner.info,
            inner.row_shape,
            inner.classes,
            inner.max_batch,
        )
        self.inner = inner

    def empty_rows(self, n: int) -> Rows:
        return self.inner.empty_rows(n)

    def run(self, rows: Rows) -> Probabilities:
        return self.inner.run(np.ascontiguousarray(rows[..., ::-1]))

    def close(self) -> None:
        self.inner.close()


def test_swapped_colour_channels_are_noticed(make_graph: MakeGraph) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    engine = create_engine("onnxruntime", Graph(make_graph(), (8, 8, 3), 5, "fp32"), EngineOptions(threads=1))
    golden = Golden(rows, engine.run(rows))
    with pytest.raises(PackageError):
        check_golden(SwappedChannels(engine), golden, "fp32")
    engine.close()


def test_an_engine_that_gives_nan_is_refused() -> None:
    class Nan(FakeEngine):
        def run(self, rows: Rows) -> Probabilities:
            return np.full((len(rows), self.classes), np.nan, np.float32)

    with pytest.raises(EngineError, match="no probability distribution"):
        check_golden(Nan(), golden_of([1]), "fp32")


def softmax(logits: np.ndarray) -> Probabilities:
    exps = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: Probabilities = (exps / exps.sum(axis=1, keepdims=True)).astype(np.float32)
    return probabilities


def nearly_uniform(seed: int) -> Probabilities:
    """What an untrained model says: every class within a thousandth of the others."""
    return softmax(np.random.default_rng(seed).normal(size=(3, 1000)) * 1e-3)


def test_an_untrained_model_with_other_weights_is_noticed_though_all_its_probabilities_are_close() -> None:
    report = compare(nearly_uniform(0), nearly_uniform(1), TOLERANCES["bf16"])
    assert report.max_abs_probability < TOLERANCES["fp32"].probability
    assert report.max_log_ratio > TOLERANCES["bf16"].log_ratio


class Fixed(FakeEngine):
    """Gives what it was told to."""

    def __init__(self, probabilities: Probabilities, precision: str = "fp32") -> None:
        super().__init__(max_batch=len(probabilities))
        self.info = EngineInfo("fake", precision, "cpu")
        self.probabilities = probabilities
        self.classes = probabilities.shape[1]

    def run(self, rows: Rows) -> Probabilities:
        return self.probabilities[: len(rows)].copy()


def test_the_gate_refuses_an_untrained_model_with_other_weights() -> None:
    golden = Golden(rows_of(0, 1, 2), nearly_uniform(0))
    check_golden(Fixed(nearly_uniform(0)), golden, "fp32")
    wrong = nearly_uniform(1)
    wrong[np.arange(3), golden.probabilities.argmax(axis=1)] += np.float32(0.0005)  # even with the same top classes
    with pytest.raises(PackageError, match="top-1 agreement 100%"):
        check_golden(Fixed(wrong), golden, "fp32")


def test_a_negative_probability_is_refused_even_where_the_rest_makes_up_for_it() -> None:
    with pytest.raises(EngineError, match="no probability distribution"):
        check_golden(Fixed(np.array([[0.7, 0.4, -0.1]], np.float32)), golden_of([0]), "fp32")


def test_rounding_to_bf16_is_within_its_tolerance_and_not_within_that_of_fp32() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(8, 1000)) * 3
    rounded = logits * (1 + rng.normal(size=logits.shape) * 0.02)
    report = compare(softmax(rounded), softmax(logits), TOLERANCES["bf16"])
    assert report.max_log_ratio < TOLERANCES["bf16"].log_ratio
    assert report.max_log_ratio > TOLERANCES["fp32"].log_ratio


def test_the_looser_tolerance_of_engine_and_graph_applies() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1, 1000)) * 3
    golden = Golden(rows_of(0), softmax(logits))
    rounded = softmax(logits * (1 + rng.normal(size=logits.shape) * 0.02))
    check_golden(Fixed(rounded, "bf16"), golden, "fp32")
    check_golden(Fixed(rounded, "fp32"), golden, "bf16")
    with pytest.raises(PackageError):
        check_golden(Fixed(rounded, "fp32"), golden, "fp32")


def test_no_tolerance_is_as_wide_as_the_classic_mistake() -> None:
    """Swapped colour channels have moved the log-probabilities of a real model by as little as this."""
    assert max(tolerance.log_ratio for tolerance in TOLERANCES.values()) < 0.24


def test_a_confident_model_that_is_off_is_refused_though_its_logarithms_are_close() -> None:
    def confident(*best: float) -> Probabilities:
        """All but a millionth on two of a thousand classes."""
        row = np.full((1, 1000), 1e-6, np.float32)
        row[0, :2] = best
        return row

    right, wrong = confident(0.5, 0.498), confident(0.62, 0.378)
    report = compare(wrong, right, TOLERANCES["bf16"])
    assert report.max_log_ratio < TOLERANCES["bf16"].log_ratio
    assert report.top1_agreement == 1.0
    with pytest.raises(PackageError, match=r"probabilities by up to 0\.12"):
        check_golden(Fixed(wrong, "bf16"), Golden(rows_of(0), right), "bf16")


def test_another_top_class_alone_is_refused() -> None:
    logits = np.random.default_rng(0).normal(size=(1, 1000)) * 0.5
    other = logits.copy()
    logits[0, :2], other[0, :2] = (3.3, 2.5), (2.8, 2.9)
    right, wrong = softmax(logits), softmax(other)
    report = compare(wrong, right, TOLERANCES["bf16"])
    assert report.max_abs_probability < TOLERANCES["bf16"].probability
    assert report.max_log_ratio < TOLERANCES["bf16"].log_ratio
    with pytest.raises(PackageError, match="top-1 agreement 0%"):
        check_golden(Fixed(wrong, "bf16"), Golden(rows_of(0), right), "bf16")


def test_one_row_that_is_off_among_many_is_refused() -> None:
    right = softmax(np.random.default_rng(0).normal(size=(50, 1000)))
    wrong = right.copy()
    wrong[49:] = softmax(np.log(right[49:]) * 1.006)
    golden = Golden(rows_of(*[0] * 50), right)
    check_golden(Fixed(right), golden, "fp32")
    with pytest.raises(PackageError, match=r"log-probabilities by 0\.006"):
        check_golden(Fixed(wrong), golden, "fp32")


def test_another_top_class_is_allowed_only_where_the_reference_hardly_prefers_its_own() -> None:
    expected = np.array([[0.5, 0.3, 0.2]], np.float32)
    swapped = np.array([[0.3, 0.5, 0.2]], np.float32)
    assert compare(swapped, expected, TOLERANCES["fp32"]).top1_agreement == 0.0
    tie = np.array([[0.40001, 0.4, 0.2]], np.float32)
    swapped_tie = np.array([[0.4, 0.40001, 0.2]], np.float32)
    assert compare(swapped_tie, tie, TOLERANCES["fp32"]).top1_agreement == 1.0


@pytest.mark.parametrize(("lead", "agreement"), [(3.5, 1.0), (4.5, 0.0)])
def test_rounding_may_turn_around_a_lead_of_four_times_the_tolerance(lead: float, agreement: float) -> None:
    tolerance = TOLERANCES["fp32"]
    logits = np.array([[3.0, 3.0, 0.0]])
    spread = float(np.std(logits))
    logits[0, 0] += lead * tolerance.log_ratio * spread
    assert compare(softmax(logits[:, [1, 0, 2]]), softmax(logits), tolerance).top1_agreement == agreement


def test_fewer_bits_may_be_further_off() -> None:
    for more, fewer in (("fp32", "fp16"), ("fp16", "bf16")):
        assert TOLERANCES[more].probability < TOLERANCES[fewer].probability
        assert TOLERANCES[more].log_ratio < TOLERANCES[fewer].log_ratio


def test_the_agreement_is_the_share_of_rows_that_agree() -> None:
    expected = np.array([[0.5, 0.3, 0.2]] * 4, np.float32)
    actual = expected.copy()
    actual[2] = [0.3, 0.5, 0.2]
    assert compare(actual, expected, TOLERANCES["fp32"]).top1_agreement == 0.75


def test_a_reference_that_prefers_nothing_is_held_against_too() -> None:
    even, uneven = np.full((1, 4), 0.25, np.float32), np.array([[0.251, 0.249, 0.25, 0.25]], np.float32)
    assert compare(even, even, TOLERANCES["bf16"]).max_log_ratio == 0
    assert compare(uneven, even, TOLERANCES["bf16"]).max_log_ratio > 100


def test_what_is_less_than_a_millionth_carries_no_information() -> None:
    expected = np.array([[0.6, 0.4, 1e-7, 1e-12]], np.float32)
    actual = np.array([[0.6, 0.4, 1e-11, 0.0]], np.float32)
    assert compare(actual, expected, TOLERANCES["fp32"]).max_log_ratio == 0


@pytest.mark.parametrize(
    ("factor", "fine"), [(1.0, True), (1.015, True), (0.985, True), (1.03, False), (0.97, False), (math.nan, False)]
)
def test_probabilities_may_sum_to_one_but_for_rounding(factor: float, fine: bool) -> None:
    class Scaled(FakeEngine):
        def run(self, rows: Rows) -> Probabilities:
            return super().run(rows) * np.float32(factor)

    if fine:
        run_checked(Scaled(), rows_of(1, 2))
    else:
        with pytest.raises(EngineError, match="no probability distribution"):
            run_checked(Scaled(), rows_of(1, 2))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda answers: answers[:-1],
        lambda answers: np.vstack([answers, answers[:1]]),
        lambda answers: answers.ravel(),
        lambda answers: np.hstack([answers, np.zeros_like(answers[:, :1])]),
    ],
    ids=["a row too few", "a row too many", "flat", "a class too many"],
)
def test_answers_of_another_shape_are_an_engine_error(spoil: Callable[[Probabilities], Probabilities]) -> None:
    class Misshapen(FakeEngine):
        def run(self, rows: Rows) -> Probabilities:
            return spoil(super().run(rows))

    with pytest.raises(EngineError, match="the engine gave"):
        run_checked(Misshapen(), rows_of(1, 2, 3))


def test_the_golden_rows_come_over_and_over_in_batches_of_any_size() -> None:
    sample = GoldenSample(golden_of([3, 1, 4]), "fp32")
    for size in (1, 3, 8):
        engine = FakeEngine(max_batch=8)
        batch = engine.empty_rows(size)
        sample.fill(batch)
        sample.check(engine, engine.run(batch))
        assert engine.batches == [[3, 1, 4, 3, 1, 4, 3, 1][:size]]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda answers: answers[::-1].copy(),
        lambda answers: np.vstack([answers[:4], answers[3:4]]),  # the last row is another one's
        lambda answers: np.full_like(answers, np.nan),
        lambda answers: answers[:, :-1],
    ],
    ids=["rows in another order", "one row wrong", "not numbers", "a class too few"],
)
def test_an_engine_that_is_wrong_about_a_batch_is_refused_with_its_size(
    spoil: Callable[[Probabilities], Probabilities],
) -> None:
    sample, engine = GoldenSample(golden_of([3, 1, 4]), "fp32"), FakeEngine(max_batch=8)
    batch = engine.empty_rows(5)
    sample.fill(batch)
    with pytest.raises(PackageError, match="in a batch of 5, "):
        sample.check(engine, spoil(engine.run(batch)))


def test_the_deviation_is_that_of_the_worst_row() -> None:
    expected = np.array([[0.5, 0.3, 0.2]] * 3, np.float32)
    actual = expected.copy()
    actual[1] = np.array([0.5 * math.e**0.3, 0.3, 0.2]) / (0.5 * math.e**0.3 + 0.5)
    report = compare(actual, expected, TOLERANCES["bf16"])
    assert report.max_log_deviation == pytest.approx(0.3 * math.sqrt(1 / 3 * 2 / 3), abs=1e-4)
    assert report.margin == pytest.approx(6 * report.max_log_deviation)
    assert compare(expected, expected, TOLERANCES["bf16"]).margin == 0.3
