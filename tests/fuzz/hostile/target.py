"""What a session fuzzes, and how much: one server process over the demo packages, and impatient."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from campaign import Tally
from observation import State
from running_server import RunningServer
from samples import images, videos

PACKAGES = Path(__file__).parents[3] / "model_repo"
SETTINGS = {
    "image_workers": 2,
    "video_workers": 2,
    "image_timeout_seconds": 15,
    "video_timeout_seconds": 20,
    "image_decode_timeout_seconds": 3,
    "video_decode_timeout_seconds": 5,
    "media_worker_memory_bytes": 1 << 30,
    "max_image_bytes": 1 << 20,
    "max_video_bytes": 2 << 20,
    "max_request_bytes": 2 << 20,
    "header_timeout_seconds": 1,
    "keep_alive_seconds": 0.5,
    "upload_idle_timeout_seconds": 1,
    "upload_grace_seconds": 2,
}


SEED = int(os.environ.get("FUZZ_SEED") or 1)
CASES = int(os.environ.get("FUZZ_CASES") or 2000)
ONLY_CASE = int(os.environ["FUZZ_CASE"]) if os.environ.get("FUZZ_CASE") else None


@dataclass(frozen=True, repr=False)  # Hypothesis shows it with what failed, and would refuse to for its length
class Target:
    """The server, what it held before anything hostile came, and what it said to good files then."""

    server: RunningServer
    before: State
    answers: list[Any]
    tally: Tally


def good_answers(server: RunningServer) -> list[Any]:
    """What the server makes of good files, without what differs from one time to the next."""
    answers = []
    files = [("image", data) for data in images().values()] + [("video", data) for data in videos().values()]
    for task, data in files:
        answer = httpx.post(f"{server.url}/classify/{task}", files={"file": data}, timeout=60)
        assert answer.status_code == 200, answer.text
        document = answer.json()
        answers.append([document["model"], document["predictions"], document.get("clips")])
    return answers


def write_report(target: Target, after: State) -> None:
    """Write what the run saw to FUZZ_REPORT, if that is set. The session has asserted the zeros before."""
    path = os.environ.get("FUZZ_REPORT")
    if not path:
        return
    restarts = {why: count - target.before.restarts.get(why, 0) for why, count in after.restarts.items()}
    report = (
        {"seed": SEED}
        | target.tally.report()
        | {
            "server_deaths": 0,
            "leaked_workers": 0,
            "leaked_rows_and_bytes": 0,
            "leaked_descriptors": 0,
            "surprising_log_lines": 0,
            "good_files_answered_as_before": len(target.answers),
            "media_workers_replaced": restarts,
            "server_resident_mib": [target.before.resident_bytes >> 20, after.resident_bytes >> 20],
        }
    )
    Path(path).write_text(json.dumps(report, indent=1) + "\n")
