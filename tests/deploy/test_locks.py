"""What the locks install on Linux on Arm: nothing that has no wheel there."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
ARM = {"platform_machine": "aarch64"}


def declared() -> Iterator[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for lines in (project["dependencies"], *project["optional-dependencies"].values()):
        yield from map(Requirement, lines)


def wanted(requirement: Requirement, machine: dict[str, str]) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(machine)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_what_is_declared_for_x86_alone_is_locked_for_x86_alone(lock: Path) -> None:
    x86_alone = {canonicalize_name(each.name) for each in declared() if not wanted(each, ARM)}
    assert x86_alone == {"cykooz-resizer", "openvino"}
    lines = re.findall(r"^[a-z0-9].*?(?= \\$|$)", lock.read_text(encoding="utf-8"), re.MULTILINE)
    locked = [Requirement(line) for line in lines]
    assert "cykooz-resizer" in {each.name for each in locked}
    assert not {each.name for each in locked if wanted(each, ARM)} & x86_alone
