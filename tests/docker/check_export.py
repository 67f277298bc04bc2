"""The export image: a package that it made, in the mounted repository, is what the server then serves."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from compose_stack import ROOT, Stack
from docker_engine import compose, docker, inspect
from sample_files import photo

IMAGE = os.environ["EXPORT_IMAGE"]
MADE = "hiera_tiny_224"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model repository with the demo packages, which anybody may write into: the image's user is nobody here."""
    folder = tmp_path / "models"
    folder.mkdir()
    for package in ("hiera_demo_objects", "hiera_demo_camera_motion"):
        shutil.copytree(ROOT / "model_repo" / package, folder / package)
    folder.chmod(0o777)
    tmp_path.chmod(0o755)
    monkeypatch.setenv("MODEL_REPOSITORY", str(folder))
    return folder


def test_it_lists_the_variants() -> None:
    listed = docker("run", "--rm", "--network", "none", IMAGE, "list")
    assert MADE in listed
    print(f"\n   {IMAGE}: {inspect(IMAGE)['Size'] / 1e6:.0f} MB; {len(listed.splitlines())} lines")


def test_it_builds_a_demo_variant_whose_labels_come_with_it(repository: Path) -> None:
    options = ("--random-weights", "0", "--name", "again", "--max-batch", "1")
    compose("--profile", "export", "run", "--rm", "export", "build", "hiera_demo_objects", *options)
    labels = "labels.txt"
    made = (repository / "again" / labels).read_text(encoding="utf-8")
    assert made == (ROOT / "model_repo" / "hiera_demo_objects" / labels).read_text(encoding="utf-8")


def test_what_it_builds_is_served(repository: Path) -> None:
    said = compose("--profile", "export", "run", "--rm", "export", "build", MADE, "--random-weights", "0")
    print("\n   " + "\n   ".join(said.splitlines()[-3:]))
    assert (repository / MADE / "1" / "model.onnx").stat().st_uid == 10001
    stack = Stack()
    try:
        stack.up()
        models = {each["name"]: each for each in stack.server.get("/models").json()["models"]}
        answer = stack.classify("image", photo(), "photo.jpg", model=MADE, top_k=1000)
    finally:
        stack.down()
    assert models[MADE]["state"] == "ready"
    assert answer.status_code == 200, answer.text
    assert sum(each["probability"] for each in answer.json()["predictions"]) == pytest.approx(1, abs=1e-3)
    print(f"   served by {answer.json()['model']}")
