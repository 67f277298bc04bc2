"""How often the answers for labelled files name the right class."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from app.errors import InvalidParameter

TOP = 5
_Z95 = 1.959964  # standard normal quantile of 0.975


@dataclass
class Score:
    """Of the files of a class, or of all: how many were answered, and how many of those rightly.

    Attributes:
        top1: the right class was the likeliest.
        top5: it was among the five likeliest.
        taken_for: label to the files that were wrongly given it.
    """

    files: int = 0
    top1: int = 0
    top5: int = 0
    taken_for: Counter[str] = field(default_factory=Counter)

    def count(self, predictions: list[dict[str, Any]], right: frozenset[int]) -> None:
        """One more file. `predictions` are those of its answer, the likeliest first."""
        place = next((place for place, each in enumerate(predictions[:TOP]) if each["class_id"] in right), TOP)
        self.files += 1
        self.top1 += place == 0
        self.top5 += place < TOP
        if place:
            self.taken_for[predictions[0]["label"]] += 1


@dataclass
class Scores:
    """Of all files, and of each class folder. `models` are those that answered, as the answers have them; files that
    `failed` count nowhere else."""

    of_all: Score
    by_folder: dict[str, Score]
    models: list[dict[str, Any]]
    failed: int = 0


def score(lines: Iterable[str], folder_of: Mapping[str, str], ids: Mapping[str, frozenset[int]]) -> Scores:
    """Count the answers for files that `folder_of` knows.

    Args:
        lines: as `hiera-serve classify` writes them in JSON.
        folder_of: file to class folder.
        ids: class folder to class ids.

    Raises:
        InvalidParameter: an answer names fewer classes than five, where there are as many.
    """
    scores = Scores(Score(), {folder: Score() for folder in ids}, [])
    classes = set().union(*ids.values())
    for line in lines:
        answer = json.loads(line)
        folder = folder_of.get(answer["file"])
        if folder is None:
            continue
        if "error" in answer:
            scores.failed += 1
            continue
        predictions = answer["predictions"]
        if len(predictions) < min(TOP, len(classes)):
            raise InvalidParameter(f"an answer names {len(predictions)} classes, where {TOP} are needed")
        if answer["model"] not in scores.models:
            scores.models.append(answer["model"])
        for each in (scores.of_all, scores.by_folder[folder]):
            each.count(predictions, ids[folder])
    return scores


def interval(right: int, files: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share (Wilson 1927): what the files let be said of others like them."""
    share, spread = right / files, _Z95**2 / files
    centre = (share + spread / 2) / (1 + spread)
    half = _Z95 / (1 + spread) * math.sqrt(share * (1 - share) / files + spread / (4 * files))
    return max(0.0, centre - half), min(1.0, centre + half)
