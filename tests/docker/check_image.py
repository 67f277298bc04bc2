"""The server image by itself: how large it is, what it holds and what it may do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from docker_engine import docker, inspect

ROOT = Path(__file__).parents[2]
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


def test_it_can_send_traces() -> None:
    imports = "import app.telemetry.tracing, opentelemetry.exporter.otlp.proto.http.trace_exporter as exporter"
    assert "OTLPSpanExporter" in run_in_image("python3", "-c", f"{imports}; print(dir(exporter))")


def test_a_change_of_the_code_installs_nothing_again(tmp_path: Path) -> None:
    for name in ("app", "export", "docker", "requirements", "model_repo"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Dockerfile", ".dockerignore", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    with (tmp_path / "app" / "errors.py").open("a") as code:
        code.write("\nCHANGED = True\n")
    begin = time.monotonic()
    command = [os.environ["DOCKER"], "build", "--progress=plain", "--network=host", "--build-arg", "BASE_IMAGE"]
    built = subprocess.run(
        [*command, "--target", "server", "--tag", "hiera-test/changed", tmp_path],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    print(f"\n   built again after a change of the code in {time.monotonic() - begin:.1f} s")
    assert built.returncode == 0, built.stdout
    steps = dict(re.findall(r"^#(\d+) \[.*?\] (.*)$", built.stdout, re.M))
    reused = {steps[number] for number in re.findall(r"^#(\d+) CACHED$", built.stdout, re.M) if number in steps}
    assert any("pip-install.sh --require-hashes" in step for step in reused), built.stdout
    assert not any(step.startswith("COPY app") for step in reused), "the change was not seen"
