"""`hiera-serve classify` over many files, as a person types it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from colours import BLUE, GREEN, RED, image_of, video_of, write_colour_package
from hiera_command import command_environment, hiera_serve


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three photos, one of them damaged, and a text; a photo and a clip below."""
    folder = tmp_path / "files"
    below = folder / "below"
    below.mkdir(parents=True)
    (folder / "b.jpg").write_bytes(image_of(BLUE))
    (folder / "a.PNG").write_bytes(image_of(RED, form="PNG"))
    (folder / "c.jpg").write_bytes(image_of(GREEN)[:200])
    (folder / "notes.txt").write_text("not of any kind")
    (below / "d.jpg").write_bytes(image_of(GREEN))
    (below / "e.mp4").write_bytes(video_of(RED, BLUE, seconds_each=2))
    return folder


def results(text: str) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines()]
    assert len({line["file"] for line in lines}) == len(lines)
    return {Path(line.pop("file")).name: line for line in lines}


def top(result: dict[str, Any]) -> str:
    return str(result["predictions"][0]["label"])


def test_a_folder_gets_a_line_for_each_file_in_their_order(colour_repository: Path, folder: Path) -> None:
    done = hiera_serve("classify", folder, "--top-k", 1, model_repository=colour_repository)
    assert done.returncode == 1
    names = [Path(line.partition(": ")[0]).name for line in done.stdout.splitlines()]
    assert names == ["a.PNG", "b.jpg", "c.jpg", "d.jpg", "e.mp4"]
    said = [line.partition(": ")[2] for line in done.stdout.splitlines()]
    assert [text.split(" ")[0] for text in said[:2]] == ["red", "blue"]
    assert "cut short" in said[2]
    assert done.stderr.startswith("5 files, 1 failed, ")
    assert done.stderr.count("\n") == 1


def test_json_lines_are_the_server_s_answers_of_the_file_itself(feature_repository: Path, folder: Path) -> None:
    words = ("classify", folder / "below", folder / "c.jpg", "--json", "--clips", 2, "--features", "--top-k", 1)
    done = hiera_serve(*words, model_repository=feature_repository, default_image_model="colours")
    given = results(done.stdout)
    assert list(given) == ["d.jpg", "e.mp4", "c.jpg"]
    assert list(given["d.jpg"]) == ["model", "predictions", "features"]
    assert list(given["e.mp4"]) == ["model", "predictions", "features", "clips"]
    assert [clip["label"] for clip in given["e.mp4"]["clips"]] == ["red", "blue"]
    assert len(given["d.jpg"]["features"]) == len(given["e.mp4"]["features"]) == 3
    assert given["c.jpg"]["error"]["code"] == "broken_media"


def test_a_task_takes_its_files_alone(colour_repository: Path, folder: Path) -> None:
    done = hiera_serve("classify", folder, "--task", "video", "--json", model_repository=colour_repository)
    assert list(results(done.stdout)) == ["e.mp4"]
    assert done.returncode == 0


def test_a_run_goes_on_where_one_was_cut(colour_repository: Path, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "results.jsonl"
    words = ("classify", folder, "--output", output)
    assert hiera_serve(*words, model_repository=colour_repository).returncode == 1
    whole = output.read_text()
    first, second, *_ = whole.splitlines(keepends=True)
    output.write_text(first.replace('"red"', '"kept"') + second[:20])
    done = hiera_serve(*words, model_repository=colour_repository)
    assert done.stdout == ""
    assert "4 files, 1 failed" in done.stderr
    assert "1 had an answer already" in done.stderr
    assert output.read_text() == whole.replace('"red"', '"kept"', 1)
    again = hiera_serve(*words, model_repository=colour_repository)
    assert again.returncode == 0
    assert "0 files" in again.stderr


@pytest.mark.parametrize(
    "content", [b"a thesis", b"a thesis\nof two lines\n", b'{"a": 1}\n', b"\xff\xd8\xff\n\x00", b"[]\n"]
)
def test_nothing_is_written_on_what_is_no_list_of_results(
    colour_repository: Path, folder: Path, tmp_path: Path, content: bytes
) -> None:
    output = tmp_path / "thesis.txt"
    output.write_bytes(content)
    done = hiera_serve("classify", folder, "--output", output, model_repository=colour_repository)
    assert done.returncode == 1
    assert "holds something else" in done.stderr
    assert output.read_bytes() == content


def test_names_need_not_be_text(colour_repository: Path, tmp_path: Path) -> None:
    folder, output = tmp_path / "files", tmp_path / "results.jsonl"
    folder.mkdir()
    odd = os.fsencode(folder) + b"/\xff\n.jpg"
    Path(os.fsdecode(odd)).write_bytes(image_of(RED))
    for _ in range(2):
        assert hiera_serve("classify", folder, "--output", output, model_repository=colour_repository).returncode == 0
    (line,) = output.read_text().splitlines()
    assert os.fsencode(json.loads(line)["file"]) == odd
    assert hiera_serve("classify", folder, model_repository=colour_repository).returncode == 0
    assert "red" in hiera_serve("classify", os.fsdecode(odd), model_repository=colour_repository).stdout


def test_files_that_cannot_be_read_are_named_and_cost_no_other(colour_repository: Path, tmp_path: Path) -> None:
    photo, empty = tmp_path / "a.jpg", tmp_path / "empty.jpg"
    photo.write_bytes(image_of(BLUE))
    empty.touch()
    words = ("classify", tmp_path / "gone.jpg", empty, photo, "--json")
    done = hiera_serve(*words, model_repository=colour_repository)
    given = results(done.stdout)
    assert given["gone.jpg"]["error"] == {
        "code": "unreadable_file",
        "detail": "it cannot be read: No such file or directory",
    }
    assert "empty" in given["empty.jpg"]["error"]["detail"]
    assert top(given["a.jpg"]) == "blue"
    assert done.returncode == 1


def test_what_is_wrong_with_all_of_it_is_said_once(colour_repository: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_colour_package(tmp_path / "repo", "colours")
    images.mkdir()
    for number in range(40):
        (images / f"{number}.jpg").write_bytes(image_of(RED))
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(video_of(RED))
    for words, message in (
        (("--top-k", 0), "top_k must be 1 or more"),
        (("--model", "nothing"), "has no model named nothing"),
        (("--json", "--features"), "colours gives no features"),
        (("--features",), "--features goes with --json"),
        (("--clips", 2, "--task", "image"), "clips and crops are for videos"),
        ((clip,), "holds no model for the task video"),
        (("--output", tmp_path / "no folder" / "x"), "No such file or directory"),
    ):
        done = hiera_serve("classify", images, *words, model_repository=tmp_path / "repo")
        assert done.returncode == 1
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


def test_more_files_than_there_is_room_for_wait_their_turn(colour_repository: Path, tmp_path: Path) -> None:
    colours = {f"{number:03}.jpg": (RED, GREEN, BLUE)[number % 3] for number in range(150)}
    for name, colour in colours.items():
        (tmp_path / name).write_bytes(image_of(colour))
    few = {"max_queue_rows": 3, "max_files_per_request": 3, "max_in_flight_bytes": 20_000}
    done = hiera_serve("classify", tmp_path, "--json", model_repository=colour_repository, **few)
    names = {RED: "red", GREEN: "green", BLUE: "blue"}
    assert {name: top(result) for name, result in results(done.stdout).items()} == {
        name: names[colour] for name, colour in colours.items()
    }
    assert done.returncode == 0


def test_an_interrupt_keeps_what_was_done(colour_repository: Path, tmp_path: Path) -> None:
    output, folder = tmp_path / "results.jsonl", tmp_path / "files"
    folder.mkdir()
    for number in range(3000):
        (folder / f"{number:04}.jpg").write_bytes(image_of(RED))
    words = [sys.executable, "-m", "app.cli", "classify", str(folder), "--output", str(output)]
    environment = command_environment(model_repository=colour_repository)
    # Where these tests run in the background, a shell has told them to ignore interrupts.
    listens = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=listens) as running:
        until = time.monotonic() + 60
        while not (output.exists() and output.stat().st_size):
            assert time.monotonic() < until
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert said == ""
    assert 0 < len(results(output.read_text())) < 3000
    done = hiera_serve("classify", folder, "--output", output, model_repository=colour_repository)
    assert done.returncode == 0
    assert len(results(output.read_text())) == 3000


def test_what_never_ends_or_is_too_large_is_a_line_like_any_other(colour_repository: Path, tmp_path: Path) -> None:
    """A pipe that nobody writes to would hold the run for ever, and not even Ctrl-C would end it."""
    os.mkfifo(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").symlink_to("/dev/zero")
    (tmp_path / "c.jpg").write_bytes(image_of(BLUE))
    with (tmp_path / "d.jpg").open("wb") as huge:
        huge.truncate(3 << 30)
    done = hiera_serve("classify", tmp_path, "--json", model_repository=colour_repository, max_image_bytes=100_000)
    given = results(done.stdout)
    assert given["a.jpg"]["error"] == given["b.jpg"]["error"]
    assert given["a.jpg"]["error"] == {"code": "unreadable_file", "detail": "it is no regular file"}
    assert top(given["c.jpg"]) == "blue"
    assert given["d.jpg"]["error"] == {
        "code": "limit_exceeded",
        "detail": "the file has 3,221,225,472 bytes; at most 100,000 are accepted",
    }
    alone = hiera_serve("classify", tmp_path / "a.jpg", model_repository=colour_repository)
    assert (alone.returncode, alone.stderr) == (1, f"hiera-serve: {tmp_path / 'a.jpg'}: it is no regular file\n")


def test_names_of_any_kind_take_a_line_each(colour_repository: Path, tmp_path: Path) -> None:
    for name in ("a\nb.jpg", "c\x1b[31m.jpg", "é.jpg"):
        (tmp_path / name).write_bytes(image_of(RED))
    too_long = tmp_path / ("x" * 300 + ".jpg")
    done = hiera_serve("classify", tmp_path, too_long, model_repository=colour_repository)
    names = [line.rpartition("/")[2].partition(":")[0] for line in done.stdout.splitlines()]
    assert names == ["a\\nb.jpg", "c\\x1b[31m.jpg", "é.jpg", too_long.name]
    assert "File name too long" in done.stdout


def test_a_named_model_takes_the_files_of_its_task(colour_repository: Path, folder: Path) -> None:
    words = ("classify", folder, "--model", "colours", "--json", "--top-k", 1)
    given = results(hiera_serve(*words, model_repository=colour_repository).stdout)
    assert sorted(given) == ["a.PNG", "b.jpg", "c.jpg", "d.jpg"]


def test_a_full_disk_is_said_in_one_line(colour_repository: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(image_of(RED))
    command = [sys.executable, "-m", "app.cli", "classify", str(tmp_path), str(tmp_path)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=command_environment(model_repository=colour_repository),
        )
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["hiera-serve: the output cannot be written: No space left on device"]


def test_folders_that_may_not_be_read_are_said(colour_repository: Path, tmp_path: Path) -> None:
    shut = tmp_path / "files" / "shut"
    shut.mkdir(parents=True)
    for place in (shut, shut.parent):
        (place / "a.jpg").write_bytes(image_of(RED))
    shut.chmod(0)
    rights = "-dac_override,-dac_read_search"  # by which root reads all
    setpriv = ["setpriv", "--bounding-set", rights, "--inh-caps", rights] if os.geteuid() == 0 else []
    files = map(str, (shut, shut.parent, shut / "a.jpg"))
    command = [*setpriv, sys.executable, "-m", "app.cli", "classify", *files]
    environment = command_environment(model_repository=colour_repository)
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    shut.chmod(0o700)
    refused = "it cannot be read: Permission denied"
    assert [line.partition(" 9")[0] for line in done.stdout.splitlines()] == [
        f"{shut}: {refused}",
        f"{shut.parent / 'a.jpg'}: red",
        f"{shut}: {refused}",
        f"{shut / 'a.jpg'}: {refused}",
    ]
    assert done.returncode == 1
