"""What engines' libraries would send to their makers: each leaves a number for this user at home before it does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Where these are set the libraries keep quiet by themselves.
QUIETENED_BY = ("CI", "TF_BUILD", "JENKINS_URL", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS")
SERVE = "import sys; from app.cli import main; sys.exit(main(['classify', 'app/load/sample.jpg']))"
EXPORT = """
from pathlib import Path
from export.parity import open_graph
for precision in ("fp32", "bf16"):  # by ONNX Runtime, by OpenVINO
    open_graph(Path("model_repo/hiera_demo_objects/1/model.onnx"), precision)
"""


def files_at_home(home: Path, program: str) -> list[str]:
    """What a program that runs as a user of its own leaves in its home."""
    environment = {name: value for name, value in os.environ.items() if name not in QUIETENED_BY}
    environment = {name: value for name, value in environment.items() if not name.startswith(("XDG_", "HIERA_"))}
    subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={**environment, "HOME": str(home)}, check=True, timeout=120
    )
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())


@pytest.mark.parametrize("program", [SERVE, EXPORT], ids=["the server", "the exporter"])
def test_no_library_reports_to_its_makers(program: str, tmp_path: Path) -> None:
    foreign = [name for name in files_at_home(tmp_path, program) if not name.startswith(".cache/hiera-serve/")]
    assert foreign == []
