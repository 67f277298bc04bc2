"""Which classes the names of folders mean."""

from __future__ import annotations

import pytest

from app.commands.class_names import match_classes, match_numbers
from app.errors import InvalidParameter

THOUSAND = [f"label {place}" for place in range(1000)]


def test_names_are_labels() -> None:
    told = match_classes(["b", "c"], ["a", "b", "c"])
    assert told.ids == {"b": {1}, "c": {2}}
    assert told.how == "by name"


def test_underscores_and_case_do_not_count_where_a_name_is_no_label_as_it_is() -> None:
    labels = ["Air drumming", "air_drumming", "shooting goal (soccer)"]
    told = match_classes(["air_drumming", "AIR_DRUMMING", "Shooting_goal_(soccer)"], labels)
    assert told.ids == {"air_drumming": {1}, "AIR_DRUMMING": {0, 1}, "Shooting_goal_(soccer)": {2}}


def test_classes_of_one_label_are_told_together() -> None:
    assert match_classes(["crane"], ["crane", "bird", "crane"]).ids == {"crane": {0, 2}}


def test_synsets_are_imagenets() -> None:
    told = match_classes(["n01440764", "n02099601", "n15075141"], THOUSAND)
    assert told.ids == {"n01440764": {0}, "n02099601": {207}, "n15075141": {999}}
    assert "synset" in told.how
    with pytest.raises(InvalidParameter, match="n99999999: ImageNet-1k has no such synset"):
        match_classes(["n01440764", "n99999999"], THOUSAND)


def test_other_models_know_no_synsets() -> None:
    with pytest.raises(InvalidParameter, match=r"as many as classes \(3\), and not 2"):
        match_classes(["n01440764", "n02099601"], ["a", "b", "c"])


def test_as_many_folders_as_classes_are_told_by_their_order() -> None:
    told = match_classes(["0", "1"], ["cat", "dog"])
    assert told.ids == {"0": {0}, "1": {1}}
    assert "order" in told.how


def test_a_name_among_others_that_is_no_label_is_a_mistake() -> None:
    with pytest.raises(InvalidParameter, match=r"^dgo: no such class$"):
        match_classes(["cat", "dgo"], ["cat", "dog"])
    with pytest.raises(InvalidParameter, match=r"^0, 1, 2, 3, 4 and 5 more: no such class$"):
        match_classes([*map(str, range(10)), "cat"], ["cat", "dog"])


def test_a_lists_numbers_are_places_in_the_head() -> None:
    told = match_numbers(["0", "2", "02"], ["cat", "dog", "crane"])
    assert told.ids == {"0": {0}, "2": {2}, "02": {2}}
    assert told.titles["2"] == "2 crane"
    assert told.how == "by number"
    with pytest.raises(InvalidParameter, match=r"^3: no such class; the model has 3, numbered from 0$"):
        match_numbers(["0", "3"], ["cat", "dog", "crane"])


def test_numbers_that_are_labels_are_names_and_so_is_what_stands_among_names() -> None:
    assert match_numbers(["1", "3"], ["3", "2", "1"]).ids == {"1": {2}, "3": {0}}
    assert match_numbers(["cat", "dog"], ["dog", "cat"]).ids == {"cat": {1}, "dog": {0}}
    assert match_numbers(["n01440764"], THOUSAND).ids == {"n01440764": {0}}
    with pytest.raises(InvalidParameter, match=r"^-1, 1: no such class$"):
        match_numbers(["-1", "1", "cat"], ["cat", "dog"])
    with pytest.raises(InvalidParameter, match="no such class"):
        match_numbers(["٣"], ["a", "b", "c", "d"])
    with pytest.raises(InvalidParameter, match="no such class"):
        match_numbers([5000 * "1"], ["a", "b"])


def test_a_lists_names_are_not_told_by_their_order() -> None:
    with pytest.raises(InvalidParameter, match=r"^chat, chien: no such class$"):
        match_numbers(["chat", "chien"], ["cat", "dog"])
