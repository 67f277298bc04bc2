"""Packages that several tests look at; each is built once, by the command itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.cli import main


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with random-weight packages of both micro models and of tiny."""
    folder = tmp_path_factory.mktemp("repository")
    random = ["--random-weights", "5", "--max-batch", "4", "--output", str(folder)]
    assert main(["build", "hiera_demo_objects", "hiera_demo_camera_motion", "hiera_tiny_224", *random]) == 0
    return folder


@pytest.fixture(scope="session")
def objects(repository: Path) -> Path:
    """The version folder of the micro image model."""
    return repository / "hiera_demo_objects" / "1"


@pytest.fixture(scope="session")
def camera_motion(repository: Path) -> Path:
    """The version folder of the micro video model."""
    return repository / "hiera_demo_camera_motion" / "1"
