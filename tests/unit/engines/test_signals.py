"""A process hears signals as before once its engines are gone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.interpreter import import_path

REPOSITORY = Path(__file__).resolve().parents[3] / "model_repo"
CLOSE_AND_LISTEN = """
import gc, os, signal, sys
from pathlib import Path
from app.engines.factory import EngineOptions, candidates
from app.repository.store import discover, latest, open_package
from app.serving.proven import build_engine

def use(name):
    package = open_package(latest(discover(Path(sys.argv[1])))[0])
    options = EngineOptions(name=name, device="cpu")
    engine = build_engine(package, candidates(options)[0], options)
    engine.run(engine.empty_rows(1))
    return engine

engine = use(sys.argv[2])
engine.close()
del engine
gc.collect()
heard = []
signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
for _ in range(20):
    os.kill(os.getpid(), signal.SIGTERM)
assert heard
"""


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_signal_after_the_last_engine_was_closed_is_heard(name: str) -> None:
    command = [sys.executable, "-c", CLOSE_AND_LISTEN, str(REPOSITORY), name]
    environment = os.environ | {"PYTHONPATH": import_path()}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
