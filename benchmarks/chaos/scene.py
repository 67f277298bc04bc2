"""Who sends which files to which server, what the right answers are, and how many of them a second there were."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from app.load.request import raw_request
from app.load.target import Target
from benchmarks.chaos.clients import Behaviour, Role
from benchmarks.chaos.files import File, bad_files, good_photos, good_videos
from benchmarks.chaos.verdict import Expected, Judgement

_TRICKLE_S = 4.0
_SLOW_TIMEOUT_MS = 20_000  # of senders that are slow, and of files that are sent alone
_HOSTILE = {  # shares of all requests
    Behaviour.LEAVES_UPLOADING: 0.04,
    Behaviour.LEAVES_WAITING: 0.04,
    Behaviour.TRICKLES: 0.01,
    Behaviour.STALLS: 0.01,
}
_BAD_FILES = 0.10


@dataclass(frozen=True)
class Scene:
    """The files of a run, the first `good` of which are sound, what was answered to each when idle, and who sends them.

    `asking` are those who send sound files and wait.
    """

    files: Sequence[File]
    good: int
    expected: Sequence[Expected]
    roles: tuple[Role, ...]

    @property
    def asking(self) -> tuple[Role, ...]:
        return tuple(role for role in self.roles if role.behaviour is Behaviour.ASKS and role.file < self.good)

    @property
    def asking_with_bad_files(self) -> tuple[Role, ...]:
        """The same and those who send files that are wrong, in the storm's proportion."""
        return tuple(role for role in self.roles if role.behaviour is Behaviour.ASKS)


@dataclass(frozen=True)
class Rate:
    """Right answers in time, a second.

    Attributes:
        photos_per_s, videos_per_s: of sound files.
        bad_files_per_s: refusals of files that are wrong.
        work: sound files, each weighed by its seconds when idle.
    """

    photos_per_s: float
    videos_per_s: float
    bad_files_per_s: float
    work: float

    @classmethod
    def of(cls, scene: Scene, judged: Judgement, seconds: float) -> Rate:
        counts = {"image": 0, "video": 0, "bad": 0}
        work_s = 0.0
        for number, count in judged.right_by_file.items():
            is_good = number < scene.good
            counts[scene.files[number].task if is_good else "bad"] += count
            work_s += count * scene.expected[number].seconds * is_good
        return cls(counts["image"] / seconds, counts["video"] / seconds, counts["bad"] / seconds, work_s / seconds)

    @property
    def good_per_s(self) -> float:
        return self.photos_per_s + self.videos_per_s

    @property
    def answers_per_s(self) -> float:
        return self.good_per_s + self.bad_files_per_s


def set_scene(target: Target, arguments: argparse.Namespace) -> Scene:
    """Learn the right answers and cast the clients."""
    good = [*good_photos(arguments.photos), *(good_videos(4) if arguments.video_share else ())]
    video = good_videos(1)[0]
    bad = [file for file in bad_files(good[0], video) if file.task == "image" or arguments.video_share]
    files = [*good, *bad]
    expected = [_when_idle(target.url, file, arguments) for file in files]
    wrong = [file.name for file, answer in zip(good, expected, strict=False) if answer.status != 200]
    if wrong:
        raise RuntimeError(f"good files are refused: {wrong}")

    def role(number: int, behaviour: Behaviour, share: float) -> Role:
        file = files[number]
        timeout_ms = arguments.video_timeout_ms if file.task == "video" else arguments.timeout_ms
        if behaviour in (Behaviour.TRICKLES, Behaviour.STALLS):
            timeout_ms = _SLOW_TIMEOUT_MS
        path = _path(file, arguments, timeout_ms, top_k=5)
        request = raw_request(target, path, file.data, content_type=file.content_type)
        name = "good" if number < len(good) else "bad"
        return Role(f"{name} {file.task}", behaviour, number, request, timeout_ms / 1000, share, _TRICKLE_S)

    roles: list[Role] = []
    for number, file in enumerate(good):
        of_task = sum(other.task == file.task for other in good)
        task_share = arguments.video_share if file.task == "video" else 1 - arguments.video_share
        share = task_share / of_task
        asking = 1 - sum(_HOSTILE.values()) - _BAD_FILES
        roles += [role(number, behaviour, share * part) for behaviour, part in _HOSTILE.items()]
        roles.append(role(number, Behaviour.ASKS, share * asking))
    roles += [role(len(good) + n, Behaviour.ASKS, _BAD_FILES / len(bad)) for n in range(len(bad))]
    return Scene(files, len(good), expected, tuple(roles))


def _path(file: File, arguments: argparse.Namespace, timeout_ms: int, top_k: int) -> str:
    model = arguments.video_model if file.task == "video" else arguments.model
    return f"/classify/{file.task}?model={model}&top_k={top_k}&timeout_ms={timeout_ms}"


def _when_idle(url: str, file: File, arguments: argparse.Namespace) -> Expected:
    """The answer to a file that is alone; the fastest of three, as the first one may be slow."""
    path = _path(file, arguments, _SLOW_TIMEOUT_MS, top_k=1000)
    headers = {"content-type": file.content_type}
    answers = []
    for _ in range(3):
        began_s = time.perf_counter()
        response = httpx.post(url + path, content=file.data, headers=headers, timeout=60)
        answers.append(Expected.of(response.status_code, response.content, time.perf_counter() - began_s))
    if any(answer.status != answers[0].status for answer in answers):
        raise RuntimeError(f"{file.name} is answered now so, now so: {answers}")
    return min(answers, key=lambda answer: answer.seconds)
