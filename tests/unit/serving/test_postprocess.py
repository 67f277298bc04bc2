"""Top classes and averages."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from app.serving.postprocess import average_crops, average_views, top_k


def test_the_most_probable_classes_come_first() -> None:
    probabilities = np.array([0.1, 0.4, 0.2, 0.3], np.float32)
    assert [index for index, _ in top_k(probabilities, 3)] == [1, 3, 2]
    assert top_k(probabilities, 1) == [(1, float(np.float32(0.4)))]


def test_equals_are_ordered_by_class_id_also_where_they_straddle_the_last_place() -> None:
    probabilities = np.array([0.1, 0.2, 0.2, 0.1, 0.2, 0.1, 0.1], np.float32)
    assert [index for index, _ in top_k(probabilities, 2)] == [1, 2]
    assert [index for index, _ in top_k(probabilities, 4)] == [1, 2, 4, 0]


def test_more_than_there_are_classes_means_all() -> None:
    assert [index for index, _ in top_k(np.array([0.5, 0.2, 0.3], np.float32), 9)] == [0, 2, 1]


@given(
    arrays(np.float32, st.integers(1, 40), elements=st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0])),
    st.integers(1, 45),
)
def test_it_is_a_stable_sort_cut_short(probabilities: np.ndarray, k: int) -> None:
    expected = sorted(enumerate(probabilities.tolist()), key=lambda pair: (-pair[1], pair[0]))[:k]
    assert top_k(probabilities, k) == expected


def test_views_are_averaged_as_probabilities() -> None:
    views = np.array([[0.9, 0.1], [0.5, 0.5]], np.float32)
    averaged = average_views(views)
    assert averaged.dtype == np.float32
    np.testing.assert_allclose(averaged, [0.7, 0.3], rtol=1e-6)


def test_the_crops_of_a_clip_are_averaged_and_clips_stay_apart() -> None:
    views = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.25, 0.75], [0.25, 0.75], [0.25, 0.75]], np.float32)
    np.testing.assert_allclose(average_crops(views, 2), [[0.5, 0.5], [0.25, 0.75]])


def test_averages_are_as_exact_as_their_values() -> None:
    views = np.random.default_rng(0).random((3 * 999, 50), np.float32)
    for averaged, exact in (
        (average_views(views), views.astype(np.float64).mean(axis=0)),
        (average_crops(views, 3), views.astype(np.float64).reshape(3, 999, 50).mean(axis=1)),
    ):
        np.testing.assert_array_equal(averaged, exact.astype(np.float32))
