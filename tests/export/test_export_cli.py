"""The `hiera-export` command as a user meets it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from export.catalog import VARIANTS
from export.cli import main


def test_list_shows_each_variant_with_its_licence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines if line.startswith("hiera_")}
    assert rows.keys() == VARIANTS.keys()
    assert "CC-BY-NC-4.0" in rows["hiera_base_16x224"]
    assert "84 Kinetics-400" in rows["hiera_base_16x224"]
    assert "Apache-2.0" in rows["hiera_small_abswin_256"]
    assert any("forbids commercial use" in line for line in lines)


WITHOUT_TORCH = """
import sys
sys.modules.update(dict.fromkeys(["torch", "onnx", "onnxruntime", "safetensors", "tqdm"]))  # as if not installed
from export.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_serving_environment_can_list_and_inspect_and_is_told_what_else_needs(repository: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", WITHOUT_TORCH, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert run("list").returncode == 0
    inspected = run("inspect", str(repository / "hiera_demo_objects"))
    assert inspected.returncode == 0
    assert "onnx is not installed: the manifest was not compared with the graph" in inspected.stderr
    refused = run("build", "hiera_tiny_224")
    assert refused.returncode == 1
    assert "pip install 'hiera-serve[export]'" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_inspect_shows_what_the_manifest_says(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(repository / "hiera_demo_camera_motion")]) == 0
    shown = capsys.readouterr().out
    assert "uint8 [batch, 16, 64, 64, 3]" in shown
    assert "16 frames, dense, stride 4 at 30 per second" in shown
    assert "random weights, seed 5" in shown
    assert "batch   4: largest difference" in shown
    assert main(["inspect", "--json", str(repository / "hiera_demo_camera_motion" / "1")]) == 0
    assert json.loads(capsys.readouterr().out)["task"] == "video"


def test_verify_of_a_built_package_succeeds(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(repository / "hiera_demo_camera_motion"), "--max-batch", "2"]) == 0
    assert "agrees with torch" in capsys.readouterr().out


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said.partition("hiera-export: ")[2]


def test_failures_are_told_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIERA_WEIGHTS_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("HIERA_WEIGHTS_DIR", str(tmp_path / "cache"))
    output = str(tmp_path / "repository")
    assert "no variant is called 'hiera_nano'" in failure(capsys, "build", "hiera_nano")
    offline = failure(capsys, "build", "hiera_tiny_224", "--output", output)
    assert str(tmp_path / "cache" / "hiera_tiny_224.pth") in offline
    assert "go with one variant" in failure(
        capsys, "build", "hiera_tiny_224", "hiera_base_224", "--weights", "x.pth", "--output", output
    )
    assert "no such file" in failure(
        capsys, "build", "hiera_tiny_224", "--weights", str(tmp_path / "x.pth"), "--output", output
    )
    assert "no such package" in failure(capsys, "inspect", str(tmp_path / "hiera_tiny_224"))
    assert not Path(output).exists()


def test_a_package_name_that_no_server_takes_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["build", "hiera_demo_objects", "--random-weights", "0", "--output", str(tmp_path), "--name"]
    assert "name" in failure(capsys, *arguments, "../elsewhere")
    assert list(tmp_path.parent.glob("elsewhere*")) == []
    assert list(tmp_path.iterdir()) == []


def test_a_model_may_be_called_a_number(objects: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = shutil.copytree(objects.parent, tmp_path / "2024")
    manifest = json.loads((model / "1" / "model.json").read_text())
    (model / "1" / "model.json").write_text(json.dumps(manifest | {"name": "2024"}))
    for path in (model, model / "1"):
        assert main(["inspect", str(path)]) == 0
        assert "2024, version 1" in capsys.readouterr().out
    assert f"{model / '7'}: no such package" in failure(capsys, "inspect", str(model / "7"))
    (model / "notes").mkdir()
    assert f"{model / 'notes'}: holds no package" in failure(capsys, "inspect", str(model / "notes"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"feature_dim": 7}, "feature_dim is 7, and the graph's features have "),
        (
            {"outputs": ["probabilities"]},
            "outputs are probabilities, and the graph has probabilities, logits, features",
        ),
        ({"outputs": ["logits", "probabilities", "features"]}, "outputs are logits, probabilities, features, and"),
        ({"outputs": [], "feature_dim": 7}, "outputs are none, and the graph has probabilities, logits, features; fea"),
    ],
)
def test_a_manifest_that_the_graph_contradicts_is_told(
    changed: dict[str, object], message: str, objects: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(objects.parent, tmp_path / objects.parent.name)
    manifest = json.loads((model / "1" / "model.json").read_text())
    (model / "1" / "model.json").write_text(json.dumps(manifest | changed))
    for more in ([], ["--json"]):
        said = failure(capsys, "inspect", str(model), *more)
        assert "manifest and graph disagree: " + message in said
    assert capsys.readouterr().out == ""


TERMINATED_WHILE_IT_WRITES = """
import os, signal, sys
from export import package
from export.cli import main
package.triton_config = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
sys.exit(main(sys.argv[1:]))
"""


def test_a_build_that_is_terminated_leaves_nothing(tmp_path: Path) -> None:
    build = ["build", "hiera_demo_objects", "--random-weights", "0", "--max-batch", "1", "--output", str(tmp_path)]
    command = [sys.executable, "-c", TERMINATED_WHILE_IT_WRITES, *build]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert list(tmp_path.iterdir()) == []
    assert ended.returncode == 128 + signal.SIGTERM
    assert ended.stderr.endswith("hiera-export: terminated; nothing half-written was left\n")


def test_the_command_leaves_the_handler_of_sigterm_as_it_was() -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert main(["list"]) == 0
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["build"],
        ["build", "hiera_tiny_224", "--precision", "int8"],
        ["build", "hiera_tiny_224", "--version", "0"],
        ["build", "hiera_tiny_224", "--weights", "x.pth", "--random-weights", "0"],
        ["verify", "x", "--rows", "4", "--engine-device", "gpu"],
        ["tensorrt", "x", "--target", "../sm_89"],
        ["polish"],
    ],
)
def test_wrong_usage_is_answered_with_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "usage: hiera-export" in capsys.readouterr().err


def test_a_link_to_itself_and_an_empty_name_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert "loop: no such package" in failure(capsys, "inspect", str(tmp_path / "loop"))
    build = ["build", "hiera_demo_objects", "--random-weights", "0", "--output", str(tmp_path), "--name", ""]
    assert "'' can't be the name of a package" in failure(capsys, *build)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_early_is_no_failure(unbuffered: str) -> None:
    command = [sys.executable, "-m", "export.cli", "list"]
    reading, writing = os.pipe()
    os.close(reading)
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, "")


def test_an_output_that_takes_no_more_is_told_once() -> None:
    command = [sys.executable, "-m", "export.cli", "list"]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (1, "hiera-export: [Errno 28] No space left on device\n")


def test_what_the_terminal_cannot_show_is_escaped(objects: Path) -> None:
    command = [sys.executable, "-m", "export.cli", "inspect", str(objects)]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "\\u2026" in ended.stdout
