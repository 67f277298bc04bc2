"""Which classes of a model the folders of a data set stand for."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.errors import InvalidParameter
from app.load.request import shown

# In the order of the 1,000 classes, which is that of the ids.
_SYNSETS = Path(__file__).parent / "imagenet_synsets.txt"
_SYNSET = re.compile(r"n\d{8}")
_NUMBER = re.compile(r"[0-9]{1,9}")
_NAMED = 5  # folders that a message names


@dataclass(frozen=True)
class ClassNames:
    """Folder name to class ids (two where two classes have one label), and how they were told. `titles` are what people
    call those folders whose names tell them nothing."""

    ids: Mapping[str, frozenset[int]]
    how: str
    titles: Mapping[str, str] = field(default_factory=dict)


def match_classes(folders: Sequence[str], labels: Sequence[str], *, by_order: bool = True) -> ClassNames:
    """Tell classes from the names of folders: by label, where `_` may stand for a blank and case does not count; by
    ImageNet's synset ids where there are 1,000 classes; else, if there are as many folders as classes and no folder is
    called like one, by their order, as torchvision's ImageFolder does.

    Args:
        folders: their names, sorted.
        labels: of the model, in the head's order.
        by_order: whether their order may tell them.

    Raises:
        InvalidParameter: a folder stands for no class. The message names folders.
    """
    exact, loose = _places(labels), _places(map(_loose, labels))
    ids = {name: exact.get(name) or loose.get(_loose(name)) for name in folders}
    unknown = [name for name, found in ids.items() if not found]
    if not unknown:
        return ClassNames({name: found for name, found in ids.items() if found}, "by name")
    if len(labels) == 1000 and all(map(_SYNSET.fullmatch, folders)):
        return _by_synset(folders)
    if len(unknown) < len(folders) or not by_order:
        raise InvalidParameter(f"{_listed(unknown)}: no such class")
    if len(folders) == len(labels):
        return ClassNames({name: frozenset([place]) for place, name in enumerate(folders)}, "by the order of names")
    raise InvalidParameter(
        f"{_listed(unknown)}: no such class; names that are no labels are told by their order, but only if there are "
        f"as many as classes ({len(labels):,}), and not {len(folders):,}"
    )


def match_numbers(words: Sequence[str], labels: Sequence[str]) -> ClassNames:
    """Tell classes from a list's words: all of them numbers, from 0 in the head's order, or names as `match_classes`
    takes them, though never by their order. Numbers that are labels are names.

    Raises:
        InvalidParameter: a word stands for no class.
    """
    if set(words) <= set(labels) or not all(map(_NUMBER.fullmatch, words)):
        return match_classes(words, labels, by_order=False)
    unknown = [word for word in words if int(word) >= len(labels)]
    if unknown:
        raise InvalidParameter(f"{_listed(unknown)}: no such class; the model has {len(labels):,}, numbered from 0")
    ids = {word: frozenset([int(word)]) for word in words}
    return ClassNames(ids, "by number", {word: f"{word} {labels[int(word)]}" for word in words})


def _by_synset(folders: Sequence[str]) -> ClassNames:
    places = _places(_SYNSETS.read_text().split())
    unknown = [name for name in folders if name not in places]
    if unknown:
        raise InvalidParameter(f"{_listed(unknown)}: ImageNet-1k has no such synset")
    return ClassNames({name: places[name] for name in folders}, "by ImageNet's synset ids")


def _places(names: Iterable[str]) -> dict[str, frozenset[int]]:
    places: defaultdict[str, set[int]] = defaultdict(set)
    for place, name in enumerate(names):
        places[name].add(place)
    return {name: frozenset(found) for name, found in places.items()}


def _loose(name: str) -> str:
    return name.replace("_", " ").casefold()


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(shown(Path(name)) for name in names[:_NAMED]) + more
