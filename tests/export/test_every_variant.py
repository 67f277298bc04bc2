"""Every variant from random weights to a verified package. Micro and tiny ones are built for the other tests too."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from app.repository.store import PackagePath, open_package
from export.catalog import VARIANTS
from export.cli import main

BUILT_ELSEWHERE = {"hiera_demo_objects", "hiera_demo_camera_motion", "hiera_tiny_224"}
# abswin differs in architecture; the others only in size, so they need not run each time.
QUICK = {"hiera_small_abswin_256"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in VARIANTS
        if name not in BUILT_ELSEWHERE
    ],
)
def test_it_is_traced_verified_and_packaged(name: str, tmp_path: Path) -> None:
    arguments = ["build", name, "--random-weights", "0", "--max-batch", "2", "--output", str(tmp_path)]
    assert main(arguments) == 0
    package = open_package(PackagePath(name, 1, tmp_path / name / "1"))
    assert [item.top1_agreement for item in package.manifest.parity] == [1.0, 1.0]
    # Up to 2.7 GB each.
    shutil.rmtree(tmp_path)
