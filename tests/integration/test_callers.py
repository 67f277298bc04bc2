"""Callers take turns: a real server with one caller's queue before it, and another one who comes later."""

from __future__ import annotations

import io
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image
from running_server import RunningServer

MANY = 60
_KEYS = {"many": "secret-of-many", "few": "secret-of-few"}


def large_photo() -> bytes:
    """One that takes a moment to decode."""
    noise = Image.effect_noise((500, 375), 60).convert("RGB").resize((4000, 3000))
    file = io.BytesIO()
    noise.save(file, "JPEG", quality=70)
    return file.getvalue()


@pytest.mark.parametrize("http_workers", [1, 2])
def test_who_comes_later_with_little_is_answered_long_before_the_queue_is_done(
    http_workers: int, tmp_path: Path, colour_repository: Path
) -> None:
    keys = ",".join(f"{name}:{secret}" for name, secret in _KEYS.items())
    settings = {"api_keys": keys, "image_workers": 1, "http_workers": http_workers}
    server = RunningServer(tmp_path, colour_repository, settings).wait_until_ready()
    photo = large_photo()
    answered = threading.Semaphore(0)

    def classify(caller: str) -> float:
        headers = {"X-API-Key": _KEYS[caller]}
        response = httpx.post(f"{server.url}/classify/image", content=photo, headers=headers, timeout=120)
        assert response.status_code == 200, response.text
        answered.release()
        return time.monotonic()

    def left(futures: list[Future[float]]) -> int:
        return sum(not future.done() for future in futures)

    with ThreadPoolExecutor(MANY) as senders:
        queue = [senders.submit(classify, "many") for _ in range(MANY)]
        for _ in range(4):  # the others are on their way by then, or wait
            answered.acquire()
        classify("few")
        still_waiting = left(queue)
        assert [future.exception() for future in queue] == [None] * MANY
    assert server.stop() == 0, server.log
    assert still_waiting > MANY / 4
