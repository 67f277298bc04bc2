"""From probabilities to named classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app.media.spec import DecodeInfo
from app.serving.results import ClassifyOptions, ClipResult, Prediction


def top_k(probabilities: NDArray[np.float32], k: int) -> list[tuple[int, float]]:
    """The k most probable classes, most probable first; equals by class id, also where they straddle the k-th place.

    Args:
        probabilities: float32 [classes].
        k: at least 1; more than there are classes means all.

    Returns:
        (class id, probability) pairs.
    """
    classes = len(probabilities)
    k = min(k, classes)
    if k < classes:
        kth = np.partition(probabilities, classes - k)[classes - k]
        above = np.flatnonzero(probabilities > kth)
        level = np.flatnonzero(probabilities == kth)[: k - len(above)]
        candidates = np.concatenate([above, level])
    else:
        candidates = np.arange(classes)
    order = np.lexsort((candidates, -probabilities[candidates]))
    return [(int(index), float(probabilities[index])) for index in candidates[order]]


def average_views(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Average views as probabilities and not as logits, as SlowFast does: float32 [views, classes] -> [classes]. Also
    features, [views, D] -> [D]."""
    mean: NDArray[np.float32] = values.mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean


def average_crops(probabilities: NDArray[np.float32], clips: int) -> NDArray[np.float32]:
    """Average the crops of each clip: float32 [clips * crops, classes], clip-major -> [clips, classes]."""
    views, classes = probabilities.shape
    by_clip = probabilities.reshape(clips, views // clips, classes)  # [clips, crops, classes]
    mean: NDArray[np.float32] = by_clip.mean(axis=1, dtype=np.float64).astype(np.float32)
    return mean


def name_classes(
    probabilities: NDArray[np.float32], labels: Sequence[str], options: ClassifyOptions, info: DecodeInfo
) -> tuple[tuple[Prediction, ...], tuple[ClipResult, ...]]:
    """Top classes of a file, and for a video the top class of each clip: of float32 [views, classes]."""
    averaged = probabilities[0] if len(probabilities) == 1 else average_views(probabilities)
    predictions = tuple(Prediction(index, labels[index], value) for index, value in top_k(averaged, options.top_k))
    if not info.views:
        return predictions, ()
    clips, crops = options.clips, options.crops
    by_clip = average_crops(probabilities, clips)
    results = []
    for clip in range(clips):
        view = info.views[clip * crops]
        index, value = top_k(by_clip[clip], 1)[0]
        results.append(ClipResult(view.start_s, view.end_s, index, labels[index], value))
    return predictions, tuple(results)
