"""`hiera-serve evaluate`, as a person types it, with a model whose answers can be foretold."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from colours import BLUE, GREEN, RED, image_of, video_of, write_colour_package
from hiera_command import hiera_serve


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four photos that are named rightly, one of them below; one of a red thing among the blue; and a damaged one."""
    folder = tmp_path / "val"
    for name in ("blue", "green/below", "red", ".hidden"):
        (folder / name).mkdir(parents=True)
    (folder / "red" / "a.jpg").write_bytes(image_of(RED))
    (folder / "red" / "b.jpg").write_bytes(image_of(RED)[:200])
    (folder / "green" / "below" / "c.png").write_bytes(image_of(GREEN, form="PNG"))
    (folder / "blue" / "d.jpg").write_bytes(image_of(BLUE))
    (folder / "blue" / "e.jpg").write_bytes(image_of(RED))
    (folder / "blue" / "f.jpg").write_bytes(image_of(BLUE))
    (folder / ".hidden" / "g.jpg").write_bytes(image_of(BLUE))
    (folder / "h.jpg").write_bytes(image_of(BLUE))
    return folder


def measured(folder: Path, repository: Path, *words: object, status: int = 0) -> dict[str, Any]:
    done = hiera_serve("evaluate", folder, "--json", *words, model_repository=repository)
    assert done.returncode == status, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_right_and_wrong_answers_are_counted_by_class(colour_repository: Path, folder: Path) -> None:
    document = measured(folder, colour_repository, status=1)
    assert document["classes_told"] == "by name"
    assert document["model"]["name"] == "colours"
    assert (document["files"], document["failed"], document["top1"], document["top5"]) == (5, 1, 0.8, 1.0)
    assert document["top1_interval"] == pytest.approx([0.3755, 0.9638], abs=1e-4)
    assert list(document["folders"]) == ["blue", "green", "red"]
    blue, red = document["folders"]["blue"], document["folders"]["red"]
    assert (blue["class_ids"], blue["files"], blue["top1"]) == ([2], 3, pytest.approx(2 / 3))
    assert blue["taken_for"] == {"red": 1}
    assert (red["files"], red["top1"], red["taken_for"]) == (1, 1.0, {})


def test_people_get_tables(colour_repository: Path, folder: Path) -> None:
    done = hiera_serve("evaluate", folder, model_repository=colour_repository)
    assert done.returncode == 1
    assert "colours version 1, onnxruntime fp32" in done.stdout
    assert "5 files of 3 classes, told by name; 1 more failed" in done.stdout
    assert "80.00%" in done.stdout
    assert "4 of 5" in done.stdout
    assert "top-5" not in done.stdout  # of three classes all are among the five likeliest
    worst = done.stdout.splitlines()[-1].split()
    assert worst == ["blue", "66.7%", "3", "red", "(33%)"]


def test_folders_can_be_told_by_their_order(colour_repository: Path, tmp_path: Path) -> None:
    for name, colour in (("0", RED), ("1", GREEN), ("2", BLUE)):
        (tmp_path / "val" / name).mkdir(parents=True)
        (tmp_path / "val" / name / "a.jpg").write_bytes(image_of(colour))
    document = measured(tmp_path / "val", colour_repository)
    assert document["classes_told"] == "by the order of names"
    assert document["top1"] == 1.0


def test_videos_are_measured_by_the_mean_of_their_views(colour_repository: Path, tmp_path: Path) -> None:
    clips = tmp_path / "val" / "red"
    clips.mkdir(parents=True)
    (clips / "a.mp4").write_bytes(video_of(RED, BLUE, RED, seconds_each=2))
    assert measured(tmp_path / "val", colour_repository)["top1"] == 0.0  # the clip in the middle is blue
    views = ("--clips", 3, "--crops", 3)
    assert measured(tmp_path / "val", colour_repository, *views)["top1"] == 1.0


def test_answers_are_kept_and_gone_on_with(colour_repository: Path, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    whole = measured(folder, colour_repository, "--output", output, status=1)
    kept = output.read_text().splitlines(keepends=True)
    assert len(kept) == 6
    output.write_text("".join(kept[:3]) + kept[3][:40])
    assert measured(folder, colour_repository, "--output", output, status=1) == whole
    done = hiera_serve("evaluate", folder, "--output", output, model_repository=colour_repository)
    assert "0 files" in done.stderr
    assert "6 had an answer already" in done.stderr
    # Answers that `classify` gave, for these files and others, are as good.
    output.unlink()
    hiera_serve("classify", folder, "--task", "image", "--output", output, model_repository=colour_repository)
    done = hiera_serve("evaluate", folder, "--json", "--output", output, model_repository=colour_repository)
    assert "0 files" in done.stderr
    assert json.loads(done.stdout) == whole


def test_answers_of_another_model_are_not_gone_on_with(folder: Path, tmp_path: Path) -> None:
    repository, output = tmp_path / "repository", tmp_path / "answers.jsonl"
    for name in ("colours", "others"):
        write_colour_package(repository, name)
    measured(folder, repository, "--model", "others", "--output", output, status=1)
    before = output.read_bytes()
    done = hiera_serve("evaluate", folder, "--output", output, model_repository=repository)
    assert done.returncode == 1
    assert "holds answers of others version 1, onnxruntime fp32, where one model is measured, colours" in done.stderr
    assert output.read_bytes() == before


@pytest.mark.parametrize("content", ["{}\n", '{"file": "a"}\n', "a thesis"])
def test_nothing_else_is_taken_for_answers(colour_repository: Path, folder: Path, tmp_path: Path, content: str) -> None:
    output = tmp_path / "thesis.txt"
    output.write_text(content.replace('"a"', json.dumps(str(folder / "red" / "a.jpg"))))
    before = output.read_bytes()
    done = hiera_serve("evaluate", folder, "--output", output, model_repository=colour_repository)
    assert done.returncode == 1
    assert "holds something else than lines" in done.stderr
    assert output.read_bytes() == before


def test_what_cannot_be_measured_is_said_before_anything_is(
    colour_repository: Path, folder: Path, tmp_path: Path
) -> None:
    empty, mixed, wrong = tmp_path / "empty", tmp_path / "mixed", tmp_path / "wrong"
    for each in (empty / "red", mixed / "red", wrong / "red", wrong / "bleu"):
        each.mkdir(parents=True)
    (empty / "red" / "notes.txt").touch()
    for name in ("a.jpg", "a.mp4"):
        (mixed / "red" / name).touch()
    (wrong / "red" / "a.jpg").touch()
    for words, message in (
        ((tmp_path / "gone",), "gone: No such file or directory"),
        ((folder / "h.jpg",), "Not a directory"),
        ((empty,), "holds no folders with photos or videos"),
        ((folder, "--task", "video"), "holds no folders with videos"),
        ((mixed,), "say which count with --task image or --task video"),
        ((wrong,), "bleu: no such class"),
        ((folder, "--clips", 2), "clips and crops are for videos"),
        ((folder, "--model", "nothing"), "has no image model named nothing"),
        ((folder, "--model", "nothing", "--task", "video"), "holds no folders with videos"),
    ):
        done = hiera_serve("evaluate", *words, model_repository=colour_repository)
        assert done.returncode == 1, words
        assert done.stdout == ""
        assert message in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Four photos in one folder: two of red, one of green, one of blue that its list calls red."""
    flat = tmp_path / "flat"
    (flat / "below").mkdir(parents=True)
    for name, colour in (("a b.jpg", RED), ("c.jpg", RED), ("below/d.jpg", GREEN), ("e", BLUE), ("unlisted.jpg", BLUE)):
        (flat / name).write_bytes(image_of(colour))
    return flat


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("a b.jpg 0\nc.jpg 0\n\nbelow/d.jpg  1\ne 0\n", "by number"),
        ('path,label\r\na b.jpg,red\r\nc.jpg, RED\r\n./below/d.jpg,green\r\n"e",red\r\nc.jpg,RED\r\n', "by name"),
        ("\ufeffa b.jpg\tred\nc.jpg\tRed\nbelow/d.jpg\tgreen\ne\tred", "by name"),
    ],
    ids=["val.txt", "csv", "tabs"],
)
def test_a_list_says_of_what_class_files_are(
    colour_repository: Path, flat: Path, tmp_path: Path, lines: str, told: str
) -> None:
    (tmp_path / "val.txt").write_text(lines)
    document = measured(flat, colour_repository, "--labels", tmp_path / "val.txt")
    assert document["classes_told"] == told
    assert (document["files"], document["top1"], document["failed"]) == (4, 0.75, 0)
    assert [each["class_ids"] for each in document["folders"].values() if each["taken_for"]] == [[0]]
    assert sum(each["files"] for each in document["folders"].values()) == 4


def test_of_a_mixed_list_the_files_of_the_task_count(colour_repository: Path, flat: Path, tmp_path: Path) -> None:
    (flat / "clip.mp4").write_bytes(b"a clip")
    listed = tmp_path / "val.txt"
    listed.write_text("\npath label\nclip.mp4 2\nc.jpg 0\ne 2\n")
    done = hiera_serve("evaluate", flat, "--labels", listed, model_repository=colour_repository)
    assert "say which count with --task image or --task video" in done.stderr
    document = measured(flat, colour_repository, "--labels", listed, "--task", "image")
    assert (document["files"], document["top1"], document["failed"]) == (2, 1.0, 0)
    listed.write_text("c.jpg 0\n")
    done = hiera_serve("evaluate", flat, "--labels", listed, "--task", "video", model_repository=colour_repository)
    assert "no file in the list is for the task video" in done.stderr


def test_people_get_the_labels_of_a_lists_numbers(colour_repository: Path, flat: Path, tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("a b.jpg 0\ne 0\n")
    done = hiera_serve("evaluate", flat, "--labels", tmp_path / "val.txt", model_repository=colour_repository)
    assert done.returncode == 0
    assert "2 files of 1 classes, told by number" in done.stdout
    assert done.stdout.splitlines()[-1].split() == ["0", "red", "50.0%", "2", "blue", "(50%)"]


def test_what_is_wrong_with_a_list_is_said_with_the_line(colour_repository: Path, flat: Path, tmp_path: Path) -> None:
    listed = tmp_path / "val.txt"
    for lines, message in (
        ("c.jpg 0\ngone.jpg 0\n", f"{listed}, line 2: {flat} has no file gone.jpg"),
        ("c.jpg 0\nbelow 1\n", f"{listed}, line 2: {flat} has no file below"),
        ("c.jpg 0\n\n490\n", f"{listed}, line 3: a path and a class are wanted"),
        ("c.jpg,red,1\n", f"{listed}, line 1: a path and a class are wanted"),
        ("c.jpg," + 200_000 * "r" + "\n", f"{listed}, line 1: a path and a class are wanted"),
        ("c.jpg,\n", f"{listed}, line 1: a path and a class are wanted"),
        ("c.jpg 0\ne 2\n./c.jpg 1\n", f"{listed}, line 3: c.jpg has another class in a line before"),
        ("c.jpg 0\nbelow/../c.jpg 1\n", f"{listed}, line 2: below/../c.jpg has another class in a line before"),
        ("c.jpg 3\n", f"{listed}: 3: no such class; the model has 3, numbered from 0"),
        ("c.jpg red\ne bleu\n", f"{listed}: bleu: no such class"),
        ("c.jpg -1\ne red\n", f"{listed}: -1: no such class"),
        ("gone.jpg label\n", f"{listed}: the list is empty"),
        ("\n", f"{listed}: the list is empty"),
        ("\0 0\n", f"{listed}, line 1: {flat} has no file \\x00"),
        ("\x1b[31m 0\n", f"{listed}, line 1: {flat} has no file \\x1b[31m"),
    ):
        listed.write_text(lines)
        done = hiera_serve("evaluate", flat, "--labels", listed, model_repository=colour_repository)
        assert done.returncode == 1, lines
        assert done.stdout == ""
        assert message in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
    listed.write_text("c.jpg 0\n")
    for folder, labels, message in (
        (flat, tmp_path / "gone.txt", "gone.txt: No such file or directory"),
        (flat, tmp_path, "it is no regular file"),
        (tmp_path / "gone", listed, "gone: no such folder"),
    ):
        done = hiera_serve("evaluate", folder, "--labels", labels, model_repository=colour_repository)
        assert (done.returncode, done.stdout) == (1, "")
        assert message in done.stderr


def test_names_of_a_list_need_not_be_text(colour_repository: Path, flat: Path, tmp_path: Path) -> None:
    odd = os.fsencode(flat) + b"/\xff.jpg"
    with open(odd, "wb") as file:
        file.write(image_of(RED))
    (tmp_path / "val.txt").write_bytes(b"\xff.jpg 0\n")
    assert measured(flat, colour_repository, "--labels", tmp_path / "val.txt")["top1"] == 1.0
