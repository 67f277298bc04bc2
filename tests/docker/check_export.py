"""The export image: it makes a package that it has verified itself, as a user without rights, into a mounted folder."""

from __future__ import annotations

import os
from pathlib import Path

from docker_engine import docker

IMAGE = os.environ["EXPORT_IMAGE"]


def test_it_lists_the_variants() -> None:
    listed = docker("run", "--rm", "--network", "none", IMAGE, "list")
    assert "hiera_tiny_224" in listed
    print(f"\n   {len(listed.splitlines())} lines")


def test_it_builds_a_package(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    arguments = ("build", "hiera_demo_objects", "--random-weights", "0", "--name", "made_in_a_container")
    docker("run", "--rm", "--network", "none", "--volume", f"{tmp_path}:/models", IMAGE, *arguments)
    package = tmp_path / "made_in_a_container"
    assert (package / "1" / "model.onnx").stat().st_size > 1_000_000
    assert (package / "config.pbtxt").exists()
