"""Counting right answers, and what that says of other files."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.commands.accuracy import interval, score
from app.errors import InvalidParameter

IDS = {"seven": frozenset([7]), "twins": frozenset([1, 2]), **{str(n): frozenset([n]) for n in (3, 4, 5)}}


def line(file: str, *class_ids: int, **more: Any) -> str:
    predictions = [{"class_id": each, "label": f"label {each}", "probability": 0.1} for each in class_ids]
    return json.dumps({"file": file, "model": {"name": "m"}, "predictions": predictions, **more}) + "\n"


def test_the_likeliest_class_and_the_five_likeliest_are_counted_apart() -> None:
    lines = [line("a", 7, 1, 2, 3, 4), line("b", 1, 2, 3, 4, 7), line("c", 1, 2, 3, 4, 5, 7), line("d", 3, 2, 1, 4, 5)]
    folders = {"a": "seven", "b": "seven", "c": "seven", "d": "twins"}
    scores = score(lines, folders, IDS)
    assert (scores.of_all.files, scores.of_all.top1, scores.of_all.top5) == (4, 1, 3)
    seven, twins = scores.by_folder["seven"], scores.by_folder["twins"]
    assert (seven.files, seven.top1, seven.top5) == (3, 1, 2)
    assert (twins.files, twins.top1, twins.top5) == (1, 0, 1)
    assert seven.taken_for == {"label 1": 2}
    assert scores.models == [{"name": "m"}]


def test_classes_of_one_label_are_both_right() -> None:
    scores = score([line("a", 2, 7, 1, 3, 4), line("b", 1, 7, 2, 3, 4)], {"a": "twins", "b": "twins"}, IDS)
    assert scores.of_all.top1 == 2
    assert not scores.of_all.taken_for


def test_failed_files_and_those_of_others_count_apart() -> None:
    failed = json.dumps({"file": "a", "error": {"code": "broken_media", "detail": "cut short"}})
    scores = score([failed, line("elsewhere", 7, 1, 2, 3, 4)], {"a": "seven"}, IDS)
    assert (scores.failed, scores.of_all.files, scores.models) == (1, 0, [])


def test_two_models_are_told_apart() -> None:
    lines = [line("a", 7, 1, 2, 3, 4), line("b", 7, 1, 2, 3, 4, model={"name": "n"})]
    assert score(lines, {"a": "seven", "b": "seven"}, IDS).models == [{"name": "m"}, {"name": "n"}]


def test_answers_with_fewer_classes_say_nothing_of_five() -> None:
    with pytest.raises(InvalidParameter, match="names 1 classes, where 5"):
        score([line("a", 7)], {"a": "seven"}, IDS)
    assert score([line("a", 7)], {"a": "seven"}, {"seven": frozenset([7])}).of_all.top1 == 1


# Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17 (1998), table I.
@pytest.mark.parametrize(
    ("right", "files", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_intervals_are_wilsons(right: int, files: int, low: float, high: float) -> None:
    assert interval(right, files) == pytest.approx((low, high), abs=5e-5)
    assert interval(files - right, files) == pytest.approx((1 - high, 1 - low), abs=5e-5)
