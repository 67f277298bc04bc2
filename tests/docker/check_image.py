"""The server image by itself: how large it is, what it holds and what it may do."""

from __future__ import annotations

import os

from docker_engine import docker, inspect

IMAGE = os.environ.get("SERVER_IMAGE", "hiera-serve")
MEGABYTE = 1_000_000


def run_in_image(*command: str, check: bool = True) -> str:
    entrypoint, *arguments = command
    return docker(
        "run", "--rm", "--read-only", "--network", "none", "--entrypoint", entrypoint, IMAGE, *arguments, check=check
    )


def test_its_own_layers_are_under_500_mb() -> None:
    whole = inspect(IMAGE)["Size"]
    base = inspect(os.environ["BASE_IMAGE"])["Size"]
    print(f"\n   {IMAGE}: {whole / MEGABYTE:.0f} MB, of which {(whole - base) / MEGABYTE:.0f} MB are its own layers")
    assert whole - base < 500 * MEGABYTE


def test_it_runs_without_rights() -> None:
    assert inspect(IMAGE)["Config"]["User"] == "10001:10001"
    assert run_in_image("id", "-u") == "10001"
    assert run_in_image("python3", "-c", "import os; print(os.access('/srv/hiera/app', os.W_OK))") == "False"


def test_it_holds_no_torch_no_compiler_and_no_export() -> None:
    for module in ("torch", "export", "training", "pip"):
        found = run_in_image(
            "/opt/venv/bin/python3", "-c", f"import importlib.util as u; print(u.find_spec({module!r}))"
        )
        assert found == "None", f"{module} is in the image"
    for program in ("gcc", "cc", "make"):
        found = run_in_image("python3", "-c", f"import shutil; print(shutil.which({program!r}))")
        assert found == "None", f"{program} is in the image"


def test_it_asks_readiness_for_its_health_and_says_what_it_is() -> None:
    config = inspect(IMAGE)["Config"]
    assert "healthcheck.py" in " ".join(config["Healthcheck"]["Test"])
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert config["Labels"]["org.opencontainers.image.title"] == "hiera-serve"


def test_its_health_is_bad_where_no_server_runs() -> None:
    script = (
        "import subprocess, sys; print(subprocess.run([sys.executable, '/usr/local/bin/healthcheck.py']).returncode)"
    )
    assert run_in_image("python3", "-c", script) == "1"


def test_its_engines_survived_the_slimming() -> None:
    script = (
        "import onnxruntime, openvino; print(openvino.Core().available_devices, onnxruntime.get_available_providers())"
    )
    devices = run_in_image("python3", "-c", script)
    assert "CPU" in devices
    assert "CPUExecutionProvider" in devices
