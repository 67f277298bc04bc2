"""`hiera-serve` as a person types it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from colours import BLUE, GREEN, RED, image_of, video_of, write_colour_package
from hiera_command import hiera_serve
from running_server import RunningServer


def test_classify_prints_a_table(colour_repository: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(image_of(GREEN))
    done = hiera_serve("classify", photo, model_repository=colour_repository)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "photo.jpg: colours version 1, onnxruntime fp32"
    assert [line.split()[0] for line in lines[4:7]] == ["green", "red", "blue"]
    assert "%" in lines[4]


def test_classify_prints_the_server_s_json(colour_repository: Path, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(video_of(RED, BLUE, seconds_each=2))
    done = hiera_serve(
        "classify", clip, "--json", "--clips", 2, "--crops", 3, "--top-k", 1, model_repository=colour_repository
    )
    result = json.loads(done.stdout)
    assert [each["label"] for each in result["clips"]] == ["red", "blue"]
    assert len(result["predictions"]) == 1
    assert list(result) == ["request_id", "model", "predictions", "latency_ms", "batch_rows", "clips"]


def test_classify_says_in_one_line_what_is_wrong(colour_repository: Path, tmp_path: Path) -> None:
    text = tmp_path / "notes.jpg"
    text.write_text("these are no pixels")
    for words, message in (
        (("classify", tmp_path / "nothing.jpg"), "no such file"),
        (("classify", text), "an image is wanted"),
        (("classify", text, "--model", "nothing"), "has no model named nothing"),
        (("classify", text, "--clips", 2), "clips and crops are for videos"),
    ):
        done = hiera_serve(*words, model_repository=colour_repository)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("hiera-serve: ")
        assert message in done.stderr


def test_random_weights_and_the_no_op_engine_are_said_aloud(tmp_path: Path) -> None:
    write_colour_package(tmp_path / "repo", "guess", random_seed=1)
    photo = tmp_path / "photo.png"
    photo.write_bytes(image_of(RED, form="PNG"))
    assert "WEIGHTS ARE RANDOM" in hiera_serve("classify", photo, model_repository=tmp_path / "repo").stdout
    loud = hiera_serve("classify", photo, model_repository=tmp_path / "repo", engine="noop")
    assert "THE NO-OP ENGINE IS ON" in loud.stdout


def test_a_real_package_answers_before_a_demo_one_and_a_random_one(tmp_path: Path) -> None:
    repository = tmp_path / "repo"
    write_colour_package(repository, "a_random", random_seed=1)
    write_colour_package(repository, "b_demo", demo=True)
    write_colour_package(repository, "c_real")
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(image_of(RED))
    assert "c_real" in hiera_serve("classify", photo, model_repository=repository).stdout
    named = hiera_serve("classify", photo, model_repository=repository, default_image_model="b_demo").stdout
    assert "b_demo" in named


def test_classify_passes_over_packages_that_are_refused_as_the_server_does(tmp_path: Path) -> None:
    repository = tmp_path / "repo"
    good = write_colour_package(repository, "colours")
    worse = write_colour_package(repository, "colours", version=2)
    (worse / "model.onnx").write_bytes(b"x")
    unread = repository / "zz_broken" / "1"
    unread.mkdir(parents=True)
    (unread / "model.json").write_text("no JSON")
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(image_of(RED))
    for more in ((), ("--model", "colours")):
        done = hiera_serve("classify", photo, *more, model_repository=repository)
        assert done.returncode == 0, done.stderr
        assert "colours version 1" in done.stdout
        assert "colours version 2 is refused" in done.stderr
        assert ("zz_broken" in done.stderr) == (not more)
    (good / "model.onnx").write_bytes(b"x")
    done = hiera_serve("classify", photo, model_repository=repository)
    assert done.returncode == 1
    assert "changed after the build" in done.stderr.splitlines()[-1]


def test_models_lists_the_folder_and_says_what_is_refused(colour_repository: Path, tmp_path: Path) -> None:
    done = hiera_serve("models", model_repository=colour_repository)
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()[2:]] == ["colours", "colours_video"]
    folder = write_colour_package(tmp_path, "spoilt")
    (folder / "model.onnx").write_bytes(b"x")
    refused = hiera_serve("models", "--json", "--model-repository", tmp_path)
    assert refused.returncode == 1
    assert "changed after the build" in json.loads(refused.stdout)["refused"][0]["reason"]


def test_models_asks_a_running_server(server: RunningServer) -> None:
    done = hiera_serve("models", "--url", server.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[2].split()[:4] == ["colours", "1", "ready", "image"]
    gone = hiera_serve("models", "--url", "http://127.0.0.1:9")
    assert (gone.returncode, "does not answer" in gone.stderr) == (1, True)


def test_help_and_wrong_settings_answer_without_starting_anything() -> None:
    help_text = hiera_serve("run", "--help").stdout
    assert "HIERA_MAX_IMAGE_BYTES" in help_text
    wrong = hiera_serve("run", port="abc", log_format="xml")
    assert wrong.returncode == 2
    assert len(wrong.stderr.splitlines()) == 2
    assert all(line.startswith("hiera-serve: HIERA_") for line in wrong.stderr.splitlines())
    keys = hiera_serve("run", "--port", 0, api_keys="name:")
    assert (keys.returncode, "API key 1" in keys.stderr) == (2, True)


def test_an_address_that_cannot_be_had_is_told_from_a_port() -> None:
    elsewhere = hiera_serve("run", "--host", "192.0.2.1", "--port", 0)  # of a network for documents (RFC 5737)
    assert elsewhere.returncode == 1
    assert "cannot listen on 192.0.2.1" in elsewhere.stderr
    assert elsewhere.stderr.endswith("set HIERA_HOST or --host\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = hiera_serve("run", "--host", "127.0.0.1", "--port", taken.getsockname()[1])
    assert busy.returncode == 1
    assert busy.stderr.endswith("set HIERA_PORT or --port\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_seen_enough_is_no_failure(
    colour_repository: Path, monkeypatch: pytest.MonkeyPatch, unbuffered: str
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    reader, writer = os.pipe()
    os.close(reader)
    try:
        for words in (("models", "--json"), ("models",)):
            command = [sys.executable, "-m", "app.cli", *words, "--model-repository", str(colour_repository)]
            done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=120)
            assert (done.returncode, done.stderr) == (141, b"")
        command = [sys.executable, "-m", "app.cli", "--help"]
        assert subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=120).stderr == b""
    finally:
        os.close(writer)


def test_an_unknown_variable_is_warned_about(start_server) -> None:  # type: ignore[no-untyped-def]
    running = start_server(prot=1)
    running.wait_for("did you mean HIERA_PORT")


def test_an_unknown_flag_is_answered_with_the_one_that_was_meant() -> None:
    done = hiera_serve("run", "--workers", 2)
    assert done.returncode == 2
    assert "unrecognized arguments: --workers 2; did you mean --http-workers?" in done.stderr
    assert hiera_serve("models", "--frobnicate").stderr.endswith("unrecognized arguments: --frobnicate\n")
