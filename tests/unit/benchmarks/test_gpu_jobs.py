"""How the GPU benchmark goes on where it was cut, and how it stops what takes too long."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_jobs
from benchmarks.contenders import ROOT
from benchmarks.gpu import run_course
from benchmarks.gpu_course import DRY, Course
from benchmarks.gpu_jobs import Job, run_job, run_process
from benchmarks.gpu_record import Record

COURSE = replace(DRY, engines=("onnxruntime",), others=())
KEYS = [
    "matrix torch fp16",
    "build hiera_tiny_224 package fp16",
    "rates hiera_tiny_224 onnxruntime fp16",
    "rates hiera_tiny_224 reference fp16",
    "agreement hiera_tiny_224 onnxruntime fp16",
    "http hiera_tiny_224 onnxruntime fp16 1 instance",
    "http hiera_tiny_224 onnxruntime fp16 2 instances",
    "rates hiera_tiny_224 reference-compiled fp16 batch 2",
]
RESULT = {"best": 1.0, "built": True, "rates": {"1": 1.0}, "top1": 1.0, "requests_per_s": 1.0}
Runner = Callable[..., list[str]]


@pytest.fixture
def run(tmp_path: Path) -> Runner:
    """One call of the benchmark over one file; the keys of the jobs that it ran."""

    def call(course: Course = COURSE, *, failing: str = "", cut: str = "", **asked: Any) -> list[str]:
        ran: list[str] = []

        def run_one(job: Job, seconds: float) -> dict[str, Any]:
            if job.key == cut:
                raise KeyboardInterrupt
            ran.append(job.key)
            became: dict[str, Any] = {"error": "broken"} if job.key == failing else {"result": RESULT}
            return {"job": job.document(), "took_s": 1.0, **became}

        try:
            run_course(course, Record(tmp_path / "gpu.json", {"dry_run": True}), run=run_one, **asked)
        except KeyboardInterrupt:
            assert cut
        return ran

    return call


def test_a_run_goes_on_where_it_was_cut(run: Runner) -> None:
    assert run(cut=KEYS[3]) == KEYS[:3]
    assert run() == KEYS[3:]
    assert run() == []


def test_what_failed_is_tried_again_when_asked_and_then_once(run: Runner) -> None:
    failed = "agreement hiera_tiny_224 onnxruntime fp16"
    assert run(failing=failed) == KEYS
    assert run() == []
    assert run(failing=failed, again=True) == [failed]
    assert run(again=True) == [failed]
    assert run(again=True) == []


def test_a_package_that_fails_is_tried_once_in_a_call(run: Runner) -> None:
    assert run(failing=KEYS[1]).count(KEYS[1]) == 1
    assert run(failing=KEYS[1], again=True) == [KEYS[1]]
    assert set(run(again=True)) == {key for key in KEYS if "onnxruntime" in key} | {KEYS[1]}


def test_a_job_with_other_parameters_is_run_anew(run: Runner) -> None:
    run()
    assert run(replace(COURSE, connections=7)) == [key for key in KEYS if key.startswith("http")]


def test_no_job_is_begun_when_the_time_is_over(run: Runner) -> None:
    moments = iter([0.0, 1.0, 119.0, 120.0])
    assert run(minutes=2, clock=lambda: next(moments)) == KEYS[:2]
    assert run(minutes=0) == []
    assert run() == KEYS[2:]


def test_figures_of_something_else_are_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    Record(path, {"dry_run": True, "gpus": {"gpus": ["A"]}}).write([])
    assert Record(path, {"dry_run": True, "gpus": {"gpus": ["A"]}}).done == {}
    with pytest.raises(SystemExit, match="dry_run was True and is False"):
        Record(path, {"dry_run": False, "gpus": {"gpus": ["A"]}})
    path.write_text('{"benchmark": "gpu", "measured": {"rates": {}}}')
    with pytest.raises(SystemExit, match="not of this benchmark"):
        Record(path, {"dry_run": True})


def test_the_file_is_whole_after_each_job(tmp_path: Path) -> None:
    path = tmp_path / "new" / "gpu.json"
    seen: list[int] = []

    def run_one(job: Job, seconds: float) -> dict[str, Any]:
        seen.append(len(json.loads(path.read_text())["measured"]["jobs"]) if path.exists() else 0)
        return {"job": job.document(), "took_s": 1.0, "result": RESULT}

    run_course(COURSE, Record(path, {"dry_run": True}), run=run_one)
    assert seen == list(range(len(KEYS)))
    assert [each.name for each in path.parent.iterdir()] == ["gpu.json"]


def test_a_process_that_takes_too_long_is_ended_with_what_it_started(tmp_path: Path) -> None:
    child = tmp_path / "child"
    script = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open({str(child)!r}, "w").write(str(child.pid))
print("so far", file=sys.stderr, flush=True)
time.sleep(60)
"""
    began = time.monotonic()
    status, _, said = run_process([sys.executable, "-c", script], 1.0)
    assert status is None
    assert said == "so far\n"
    assert time.monotonic() - began < 10
    wait_until_gone(int(child.read_text()))


def test_a_process_ends_with_the_one_that_started_it() -> None:
    script = """
import time
from benchmarks.gpu_jobs import end_with_parent
end_with_parent()
print("up", flush=True)
time.sleep(60)
"""
    starter = f"""
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {script!r}], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
child.stdout.readline()
print(child.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    output = subprocess.run([sys.executable, "-c", starter], capture_output=True, text=True, cwd=ROOT).stdout
    wait_until_gone(int(output))


def test_a_failed_job_keeps_its_last_line_and_the_end_of_what_it_said(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job("rates", "nothing fp16", "hiera_tiny_224", "cpu", "nowhere", (1,), 0.1)
    said = "x" * 3000 + "\nhiera-export: the reason\n\n"
    answers = iter([(1, "", said), (None, "", said), (-9, "", ""), (0, "noise", ""), (0, 'noise\n{"rates": {}}\n', "")])
    monkeypatch.setattr(gpu_jobs, "run_process", lambda command, seconds: next(answers))
    failed, slow, killed, mute, well = (run_job(job, 5.0) for _ in range(5))
    assert failed["error"] == "hiera-export: the reason"
    assert failed["stderr"] == said[-2000:]
    assert slow["error"] == "stopped after 5 s"
    assert slow["stderr"] == said[-2000:]
    assert killed["error"] == "ended with -9"
    assert mute["error"] == "gave no result"
    assert well["result"] == {"rates": {}}
    assert Job.of(json.loads(json.dumps(well["job"]))) == job


def test_a_job_that_went_well_keeps_the_end_of_its_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job("rates", "nothing fp16", "hiera_tiny_224", "cpu", "nowhere", (1,), 0.1)
    warning = "batches of 8 are not run as a CUDA graph (no)\n"
    answers = iter([(0, '{"rates": {}}\n', "x" * 100_000 + warning), (0, '{"rates": {}}\n', "\n")])
    monkeypatch.setattr(gpu_jobs, "run_process", lambda command, seconds: next(answers))
    warned, silent = run_job(job, 5.0), run_job(job, 5.0)
    assert warned["stderr"].endswith(warning)
    assert len(warned["stderr"]) == 2000, "a record has some sixty of them"
    assert "error" not in warned
    assert "stderr" not in silent


def wait_until_gone(pid: int) -> None:
    """Also of a process that nobody has reaped."""
    for _ in range(500):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state in "ZX":
            return
        time.sleep(0.01)
    os.kill(pid, 9)
    pytest.fail(f"{pid} is still there")
