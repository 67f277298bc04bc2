from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import io
import itertools
import os
import random
import signal
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pool_scenes import CLIP, PHOTO, a_pool, children, found, new_pool, order, run, until, workers
from processes import open_descriptors

from app.errors import BrokenMedia, DeadlineExceeded, LimitExceeded, Unavailable, UnsupportedMedia
from app.media.image import decode_image
from app.media.limits import MediaLimits
from app.media.messages import JobHeader, Outcome, Ready
from app.media.pool import MOST_CODEC_THREADS, MediaPool
from app.media.process import FORK_SERVER_COMMAND, WorkerProcess
from app.media.shared import KEPT_BUFFERS, SMALL_FILE_BYTES, SharedBytes
from app.media.spec import DecodeJob, ImageSpec


def a_photo(seed: int = 0, size: tuple[int, int] = (120, 80)) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def test_a_photo_comes_back_as_the_pixels_that_the_decoder_makes_of_it() -> None:
    photo = a_photo()
    spec = ImageSpec(resize_short_side=64, height=56, width=48)
    expected = np.zeros((56, 48, 3), np.uint8)
    decode_image(photo, spec, MediaLimits(), expected)

    async def scene() -> None:
        async with a_pool(command=FORK_SERVER_COMMAND) as (pool, _):
            with await order(pool, photo, DecodeJob(spec)) as decoded:
                assert decoded.rows.shape == (1, 56, 48, 3)
                np.testing.assert_array_equal(decoded.rows[0], expected)
                assert (decoded.info.width, decoded.info.height, decoded.info.format) == (120, 80, "jpeg")
                assert decoded.decode_s > 0
                in_memory = np.frombuffer(os.pread(decoded.fd, expected.nbytes, 0), np.uint8)
                np.testing.assert_array_equal(in_memory, expected.ravel())
            with pytest.raises(UnsupportedMedia):
                await order(pool, b"no picture at all", DecodeJob(spec))
            with pytest.raises((UnsupportedMedia, BrokenMedia)):
                await order(pool, b"", DecodeJob(spec))
            with pytest.raises(BrokenMedia):
                await order(pool, photo[: len(photo) // 3], DecodeJob(spec))

    run(scene)


def test_two_hundred_photos_at_once_come_back_each_as_itself() -> None:
    spec = ImageSpec(resize_short_side=40, height=32, width=32)
    photos = [a_photo(seed) for seed in range(200)]
    expected = np.zeros((200, 32, 32, 3), np.uint8)
    for photo, row in zip(photos, expected, strict=True):
        decode_image(photo, spec, MediaLimits(), row)

    async def one(pool: MediaPool, photo: bytes) -> NDArray[np.uint8]:
        with await order(pool, photo, DecodeJob(spec)) as decoded:
            await asyncio.sleep(random.random() * 0.05)  # some rows are held while others come
            row: NDArray[np.uint8] = decoded.rows[0].copy()
            return row

    async def scene() -> None:
        async with a_pool(image_workers=2, command=FORK_SERVER_COMMAND) as (pool, counts):
            rows = await asyncio.gather(*(one(pool, photo) for photo in photos))
            np.testing.assert_array_equal(np.stack(rows), expected)
            assert pool.pending("image") == 0
            assert pool.worker_states == {"starting": 0, "idle": 3, "busy": 0}
            assert not counts.restarts

    run(scene)


@pytest.mark.parametrize("size", [SMALL_FILE_BYTES - 1, SMALL_FILE_BYTES, SMALL_FILE_BYTES + 1, 20_000_000])
def test_a_file_arrives_whole_whatever_its_size(size: int) -> None:
    async def scene() -> None:
        async with a_pool() as (pool, _):
            for value in (3, 4):
                with await order(pool, f"fill:{value}".ljust(size)) as decoded:
                    assert (decoded.rows == value).all()
            with await order(pool, "length".ljust(size)) as decoded:
                assert decoded.info.format == str(size)

    run(scene)


def test_rows_that_are_held_keep_their_pixels_while_other_jobs_run() -> None:
    async def scene() -> None:
        async with a_pool() as (pool, _):
            held = [await order(pool, f"fill:{value}") for value in range(30)]
            assert [int(decoded.rows.max()) for decoded in held] == list(range(30))
            for decoded in held:
                decoded.close()
            with await order(pool, "fill:99") as decoded:
                assert (decoded.rows == 99).all()

    run(scene)


def test_rows_say_whether_their_memory_will_hold_others_later() -> None:
    large = DecodeJob(ImageSpec(resize_short_side=640, height=640, width=640))  # 1.2 MB

    async def scene() -> None:
        async with a_pool() as (pool, _):
            held = [await order(pool, "fill:1") for _ in range(KEPT_BUFFERS + 1)]
            assert [decoded.reused for decoded in held] == [True] * KEPT_BUFFERS + [False]
            for decoded in held:
                decoded.close()
            with await order(pool, "fill:1", large) as decoded:
                assert not decoded.reused

    run(scene)


def test_a_video_job_gives_a_row_for_each_view() -> None:
    async def scene() -> None:
        async with a_pool() as (pool, _):
            with await order(pool, "fill:5", CLIP) as decoded:
                assert decoded.rows.shape == (3, 4, 32, 32, 3)
                assert (decoded.rows == 5).all()

    run(scene)


def test_photos_are_decoded_while_every_video_worker_is_busy() -> None:
    async def scene() -> None:
        async with a_pool() as (pool, _):
            video = asyncio.ensure_future(order(pool, "sleep:3600", CLIP))
            await until(lambda: pool.worker_states["busy"] == 1)
            (await order(pool, "fill:1")).close()
            video.cancel()

    run(scene)


def test_video_workers_yield_the_processor_to_photos() -> None:
    async def niceness(pool: MediaPool, job: DecodeJob) -> int:
        with await order(pool, "fill:1", job) as decoded:
            return os.getpriority(os.PRIO_PROCESS, decoded.info.width)  # an obedient worker's width is its process id

    async def scene() -> None:
        async with a_pool() as (pool, _):
            ours = os.getpriority(os.PRIO_PROCESS, 0)
            assert await niceness(pool, PHOTO) == ours
            assert await niceness(pool, CLIP) == min(ours + 10, 19)

    run(scene)


def test_a_lone_video_has_all_codec_threads_and_videos_beside_each_other_have_one() -> None:
    async def scene() -> None:
        async with a_pool(video_workers=2, codec_threads=7) as (pool, _):
            assert await found(pool, "threads", CLIP) == "7"
            beside = asyncio.ensure_future(order(pool, "sleep:3600", CLIP))
            await until(lambda: pool.worker_states["busy"] == 1)
            assert await found(pool, "threads", CLIP) == "1"
            assert await found(pool, "threads") == "1"
            beside.cancel()

    run(scene)


def test_a_video_that_others_wait_behind_has_one_codec_thread() -> None:
    async def scene() -> None:
        async with a_pool(codec_threads=7) as (pool, _):
            leaving = asyncio.ensure_future(order(pool, "hang", CLIP))
            await until(lambda: pool.worker_states["busy"] == 1)
            behind = [asyncio.ensure_future(order(pool, "threads", CLIP, within_s)) for within_s in (50.0, 60.0)]
            await until(lambda: pool.pending("video") == 2)
            leaving.cancel()
            rows = await asyncio.gather(*behind)
            assert [decoded.info.format for decoded in rows] == ["1", "7"]
            for decoded in rows:
                decoded.close()

    run(scene)


def test_codec_threads_are_bounded_since_all_of_them_need_memory() -> None:
    async def scene() -> None:
        async with a_pool(codec_threads=96) as (pool, _):
            assert await found(pool, "threads", CLIP) == str(MOST_CODEC_THREADS)

    run(scene)


def test_what_runs_when_the_pool_is_closed_is_ended_and_not_replaced() -> None:
    async def scene() -> None:
        async with a_pool() as (pool, counts):
            running = asyncio.ensure_future(order(pool, "sleep:3600", CLIP))
            await until(lambda: pool.worker_states["busy"] == 1)
            await pool.close(0.0)
            with pytest.raises(Unavailable):
                await running
            assert not counts.restarts

    run(scene)


def test_waiting_jobs_run_in_order_of_deadline() -> None:
    finished: list[float] = []

    async def one(pool: MediaPool, within_s: float) -> None:
        (await order(pool, "fill:1", within_s=within_s)).close()
        finished.append(within_s)

    async def scene() -> None:
        async with a_pool() as (pool, _):
            first = asyncio.ensure_future(order(pool, "sleep:0.2"))
            await until(lambda: pool.worker_states["busy"] == 1)
            await asyncio.gather(*(one(pool, within_s) for within_s in (50.0, 20.0, 40.0, 30.0)))
            (await first).close()
        assert finished == [20.0, 30.0, 40.0, 50.0]

    run(scene)


def test_callers_take_turns_by_the_time_that_workers_spend_on_their_files() -> None:
    finished: list[str] = []

    async def one(pool: MediaPool, data: str, caller: str) -> None:
        (await order(pool, data, caller=caller)).close()
        finished.append(caller)

    async def scene() -> None:
        async with a_pool() as (pool, _):
            first = asyncio.ensure_future(order(pool, "sleep:0.2"))
            await until(lambda: pool.worker_states["busy"] == 1)
            slow = [one(pool, "sleep:0.5", "slow") for _ in range(3)]
            await asyncio.gather(*slow, *(one(pool, "fill:1", "quick") for _ in range(4)))
            (await first).close()
        assert finished == ["slow", "quick", "quick", "quick", "quick", "slow", "slow"]

    run(scene)


def test_a_job_whose_deadline_passes_while_it_waits_is_refused_then_and_never_run() -> None:
    async def scene() -> None:
        async with a_pool(image_timeout_s=3600.0) as (pool, counts):
            blocking = asyncio.ensure_future(order(pool, "sleep:3600"))
            await until(lambda: pool.worker_states["busy"] == 1)
            with pytest.raises(DeadlineExceeded):
                await order(pool, "crash", within_s=0.05)
            with pytest.raises(DeadlineExceeded):
                await order(pool, "crash", within_s=-1.0)
            assert pool.pending("image") == 0
            blocking.cancel()
            await until(lambda: pool.worker_states["idle"] == 2)
            assert counts.restarts == {"abandoned": 1}

    run(scene)


def test_a_caller_who_leaves_while_waiting_is_forgotten() -> None:
    async def scene() -> None:
        async with a_pool() as (pool, counts):
            blocking = asyncio.ensure_future(order(pool, "sleep:0.3"))
            await until(lambda: pool.worker_states["busy"] == 1)
            waiting = asyncio.ensure_future(order(pool, "crash"))
            await until(lambda: pool.pending("image") == 1)
            waiting.cancel()
            await until(waiting.cancelled)
            assert pool.pending("image") == 0
            (await blocking).close()
            (await order(pool, "fill:1")).close()
            assert not counts.restarts

    run(scene)


def test_a_job_that_is_nearly_done_when_its_caller_leaves_costs_no_worker() -> None:
    async def scene() -> None:
        async with a_pool(abandoned_grace_s=30.0) as (pool, counts):
            worker = (await order(pool, "fill:1")).info.width
            leaving = asyncio.ensure_future(order(pool, "sleep:0.1"))
            await until(lambda: pool.worker_states["busy"] == 1)
            leaving.cancel()
            await until(lambda: pool.worker_states["busy"] == 0)
            assert (await order(pool, "fill:1")).info.width == worker
            assert not counts.restarts

    run(scene)


@pytest.mark.parametrize("what", ["sleep:0.02", "broken"])
def test_an_outcome_that_crosses_its_callers_leaving_is_released(what: str) -> None:
    async def scene() -> None:
        async with a_pool() as (pool, _):
            (await order(pool, "fill:1")).close()
            before = open_descriptors()
            for _ in range(20):
                leaving = asyncio.ensure_future(order(pool, what))
                await asyncio.sleep(0)
                assert pool.worker_states["busy"] == 1
                while pool.worker_states["busy"] == 1:
                    await asyncio.sleep(0)  # until the turn of the loop in which the outcome is there but not yet taken
                leaving.cancel()
                await asyncio.wait([leaving])
                assert leaving.cancelled()
            gc.collect()
            assert open_descriptors() == before

    run(scene)


def test_closing_finishes_what_was_accepted_and_refuses_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        async with a_pool() as (pool, _):
            accepted = [asyncio.ensure_future(order(pool, "sleep:0.1")) for _ in range(3)]
            await asyncio.sleep(0.01)
            closing = asyncio.ensure_future(pool.close(30.0))
            await asyncio.sleep(0)
            with pytest.raises(Unavailable):
                await order(pool, "fill:1")
            for decoded in await asyncio.gather(*accepted):
                decoded.close()
            await closing
            assert not children()

    run(scene)
    assert "not done within" not in caplog.text


def test_closing_ends_what_does_not_finish_in_time() -> None:
    async def scene() -> None:
        async with a_pool() as (pool, _):
            endless = [asyncio.ensure_future(order(pool, "hang")) for _ in range(3)]
            await asyncio.sleep(0.05)
            await pool.close(0.1)
            for outcome in await asyncio.gather(*endless, return_exceptions=True):
                assert isinstance(outcome, Unavailable)
            assert not children()

    run(scene)


def test_a_worker_that_did_its_share_is_replaced_without_a_gap() -> None:
    async def scene() -> None:
        async with a_pool(recycle_after_jobs=10) as (pool, counts):
            seen: set[int] = set()
            while len(seen) < 4:
                with await order(pool, "fill:3") as decoded:
                    seen.add(decoded.info.width)
                    assert pool.worker_states["idle"] + pool.worker_states["busy"] >= 2
            await until(lambda: pool.worker_states["idle"] == 2 and len(workers()) == 2)
            assert set(counts.restarts) == {"recycled"}

    run(scene)


def test_nothing_is_left_behind_by_three_hundred_jobs_of_all_sorts() -> None:
    sorts = ["fill:1", "broken", "bug", "crash", "bomb", "hang", "garble", "leave", "kill"]
    weights = [65, 20, 5, 2, 3, 1, 1, 2, 1]
    chance = random.Random(1)
    orders = chance.choices(sorts, weights, k=300)
    expected = (BrokenMedia, LimitExceeded, DeadlineExceeded, asyncio.CancelledError)

    async def one(pool: MediaPool, sort: str) -> None:
        job = chance.choice([PHOTO, CLIP])
        if sort == "leave":
            leaving = asyncio.ensure_future(order(pool, "hang", job))
            await asyncio.sleep(chance.random() * 0.2)
            leaving.cancel()
            await asyncio.wait([leaving])
        elif sort == "kill":
            alive = sorted(workers())  # perhaps none: others crash as well
            with contextlib.suppress(ProcessLookupError):
                for pid in chance.sample(alive, min(1, len(alive))):
                    os.kill(pid, signal.SIGKILL)
        else:
            (await order(pool, sort, job, within_s=0.3 if sort == "hang" else 60.0)).close()

    async def scene() -> None:
        async with a_pool(image_workers=2, abandoned_grace_s=0.05) as (pool, counts):
            (await order(pool, "fill:1")).close()
            for start in range(0, len(orders), 30):
                outcomes = await asyncio.gather(
                    *(one(pool, sort) for sort in orders[start : start + 30]), return_exceptions=True
                )
                assert all(outcome is None or isinstance(outcome, expected) for outcome in outcomes), outcomes
            await until(lambda: pool.worker_states["idle"] == 3 and len(workers()) == 3)
            assert pool.unhealthy is None
            assert (pool.pending("image"), pool.pending("video")) == (0, 0)
            with await order(pool, "fill:77") as decoded:
                assert (decoded.rows == 77).all()
            assert counts.restarts["crashed"] >= 1

    gc.collect()
    before = open_descriptors()
    run(scene)
    gc.collect()
    assert open_descriptors() == before
    assert not children()


def test_the_observer_is_told_of_workers_by_state() -> None:
    async def scene() -> None:
        async with a_pool(image_workers=2) as (pool, counts):
            await until(lambda: counts.states == {"starting": 0, "idle": 3, "busy": 0})
            busy = asyncio.ensure_future(order(pool, "sleep:3600"))
            await until(lambda: counts.states == {"starting": 0, "idle": 2, "busy": 1})
            busy.cancel()
            await pool.close(0.0)
            assert counts.states == {"starting": 0, "idle": 0, "busy": 0}

    run(scene)


def test_a_pool_needs_workers_of_each_kind() -> None:
    with pytest.raises(ValueError, match="at least one"):
        new_pool(video_workers=0)


def test_an_upload_that_was_closed_already_is_refused_at_once() -> None:
    async def scene() -> None:
        async with a_pool() as (pool, _):
            body = SharedBytes.of(b"fill:1")
            body.close()
            with pytest.raises(ValueError, match="closed"):
                await pool.decode(body, PHOTO, time.monotonic() + 1)

    run(scene)


@pytest.fixture
def headers(monkeypatch: pytest.MonkeyPatch) -> list[JobHeader]:
    """Those of the jobs that workers are given, as they are given them."""
    sent: list[JobHeader] = []
    send = WorkerProcess.send

    def watched(self: WorkerProcess, header: JobHeader, *rest: Any) -> None:
        sent.append(header)
        send(self, header, *rest)

    monkeypatch.setattr(WorkerProcess, "send", watched)
    return sent


def test_each_codec_thread_may_take_the_time_of_a_job(headers: list[JobHeader]) -> None:
    async def scene() -> None:
        async with a_pool(codec_threads=7, video_timeout_s=30.0) as (pool, _):
            (await order(pool, "fill:1", CLIP)).close()

    run(scene)
    assert headers[0].threads == 7
    assert headers[0].cpu_s == pytest.approx(7 * 30.0)


def test_a_job_may_take_the_processor_for_as_long_as_it_may_run_on_after_its_deadline(headers: list[JobHeader]) -> None:
    async def scene() -> None:
        async with a_pool(image_timeout_s=600.0, abandoned_grace_s=200.0) as (pool, _):
            for within_s in (300.0, 500.0):
                (await order(pool, "fill:1", within_s=within_s)).close()

    run(scene)
    assert 400 < headers[0].cpu_s <= 500  # the rest is what it took to hand it over
    assert headers[1].cpu_s == 600


def test_the_time_of_one_job_does_not_run_on_into_the_next() -> None:
    async def scene() -> None:
        async with asyncio.timeout(60), a_pool(image_timeout_s=2.0) as (pool, counts):
            for _ in range(5):
                (await order(pool, "sleep:0.5")).close()
            assert not counts.restarts

    run(scene)


def test_a_job_that_nobody_waits_for_runs_no_longer_than_any_other() -> None:
    async def scene() -> None:
        async with a_pool(image_timeout_s=1.0, abandoned_grace_s=3600.0) as (pool, counts):
            leaving = asyncio.ensure_future(order(pool, "hang"))
            await until(lambda: pool.worker_states["busy"] == 1)
            leaving.cancel()
            await until(lambda: counts.restarts == {"abandoned": 1})

    run(scene)


@pytest.mark.parametrize("claimed_s", [1e9, -1e9])
def test_no_worker_makes_the_server_believe_that_it_took_longer_than_it_did(
    claimed_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive = WorkerProcess.receive

    def lying(self: WorkerProcess) -> Ready | Outcome | None:
        reply = receive(self)
        return dataclasses.replace(reply, decode_s=claimed_s) if isinstance(reply, Outcome) else reply

    monkeypatch.setattr(WorkerProcess, "receive", lying)

    async def scene() -> None:
        async with a_pool() as (pool, _):
            started = time.monotonic()
            with await order(pool, "sleep:0.01") as decoded:
                assert 0 <= decoded.decode_s <= time.monotonic() - started
                assert (decoded.decode_s > 0) == (claimed_s > 0)

    run(scene)


def test_jobs_are_numbered_anew_once_no_larger_number_fits_into_a_message() -> None:
    async def scene() -> None:
        async with a_pool() as (pool, _):
            pool._groups["image"]._numbers = itertools.count((1 << 32) - 1)
            for value in (1, 2):
                with await order(pool, f"fill:{value}") as decoded:
                    assert (decoded.rows == value).all()

    run(scene)
