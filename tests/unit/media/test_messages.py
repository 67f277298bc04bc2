from __future__ import annotations

import json

import pytest
from pool_scenes import CLIP, PHOTO
from pydantic import ValidationError

from app.errors import BrokenMedia, LimitExceeded, UnsupportedMedia
from app.media import messages
from app.media.limits import MediaLimits
from app.media.messages import JobHeader, Outcome, ProtocolViolation, Ready, WorkerSettings
from app.media.shared import ONE_SHOT
from app.media.spec import DecodeInfo, DecodeJob, View
from app.settings import Settings


@pytest.mark.parametrize("job", [PHOTO, CLIP, DecodeJob(CLIP.spec, clips=5, crops=3)])
def test_a_job_arrives_as_it_was_sent(job: DecodeJob) -> None:
    header = JobHeader(number=2**32 - 1, slot=ONE_SHOT, threads=2, body_bytes=2**40, rows_bytes=2**33, cpu_s=0.1)
    for body in (b"", b"the file"):
        *sent, rest = messages.decode_job(messages.encode_job(header, job) + body)
        assert sent == [header, job]
        assert bytes(rest) == body


@pytest.mark.parametrize("number", [0, 2**32 - 1])
def test_what_a_fork_server_is_told_and_says_arrives_as_it_was_sent(number: int) -> None:
    for kill in (False, True):
        assert messages.decode_command(messages.encode_command(number, kill=kill)) == (kill, number)
    for status in (0, 3, -9):
        assert messages.decode_exit(messages.encode_exit(number, status)) == (number, status)


def test_the_end_of_a_long_trace_arrives() -> None:
    trace = "in a file\n" * 1000 + "RuntimeError: what happened"
    outcome = Outcome(5, 0.25, error=BrokenMedia("the file cannot be decoded"), trace=trace)
    reply = messages.decode_reply(messages.encode_outcome(outcome))
    assert isinstance(reply, Outcome)
    assert len(reply.trace) == 4000
    assert trace.endswith(reply.trace)


def test_settings_arrive_as_they_were_sent() -> None:
    settings = WorkerSettings("video", MediaLimits(max_pixels=7), memory_bytes=2**31, niceness=10)
    assert messages.decode_settings(messages.encode_settings(settings)) == settings


@pytest.mark.parametrize(
    "info",
    [
        DecodeInfo(width=500, height=331, format="jpeg"),
        DecodeInfo(
            640, 480, "mov,mp4,m4a,3gp,3g2,mj2", 300, 10.01, 29.97, (View(0, 0, 0.0, 2.1), View(0, 1, 0.0, 2.1))
        ),
    ],
)
def test_what_was_found_arrives_as_it_was_sent(info: DecodeInfo) -> None:
    outcome = Outcome(5, 0.25, info)
    assert messages.decode_reply(messages.encode_outcome(outcome)) == outcome


def test_no_more_views_can_be_asked_for_than_a_worker_may_tell_of() -> None:
    most = Settings(max_clips=333).max_clips
    views = tuple(View(clip, crop, 1e4 / 3, 2e4 / 3) for clip in range(most) for crop in range(3))
    outcome = Outcome(5, 0.25, DecodeInfo(640, 480, "mp4", 300, 10.01, 29.97, views))
    assert messages.decode_reply(messages.encode_outcome(outcome)) == outcome
    with pytest.raises(ValidationError):
        Settings(max_clips=most + 1)


@pytest.mark.parametrize("kind", [UnsupportedMedia, BrokenMedia, LimitExceeded])
def test_an_error_arrives_with_its_class_words_and_code(kind: type[BrokenMedia]) -> None:
    reply = messages.decode_reply(
        messages.encode_outcome(Outcome(5, 0.25, error=kind("too long", code="too_many_frames")))
    )
    assert isinstance(reply, Outcome)
    assert type(reply.error) is kind
    assert (str(reply.error), reply.error.code) == ("too long", "too_many_frames")


def test_a_long_error_with_control_characters_arrives_short_and_printable() -> None:
    error = BrokenMedia("line\nbreak\x1b[31m" + "x" * 10_000)
    reply = messages.decode_reply(messages.encode_outcome(Outcome(5, 0.25, error=error)))
    assert isinstance(reply, Outcome)
    assert str(reply.error).startswith("line break [31m")
    assert str(reply.error).isprintable()
    assert len(str(reply.error)) <= 500


def test_readiness_arrives() -> None:
    assert messages.decode_reply(messages.encode_ready(Ready("seccomp"))) == Ready("seccomp")


GOOD = {"job": 1, "decode_s": 0.1, "info": [10, 10, "jpeg", None, None, None, []]}


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\x80\x04\x95",
        b"[]",
        b"7",
        b"{}",
        b"[" * 100_000,
        {**GOOD, "job": -1},
        {**GOOD, "job": True},
        {**GOOD, "job": 1.0},
        {**GOOD, "job": "1"},
        {**GOOD, "decode_s": float("nan")},
        {**GOOD, "decode_s": float("inf")},
        {**GOOD, "decode_s": 10**400},
        {**GOOD, "decode_s": None},
        {**GOOD, "decode_s": True},
        {**GOOD, "info": None},
        {**GOOD, "info": [10, 10, "jpeg"]},
        {**GOOD, "info": [2**50, 10, "jpeg", None, None, None, []]},
        {**GOOD, "info": [10, 10, "jp\neg", None, None, None, []]},
        {**GOOD, "info": [10, 10, "j" * 100, None, None, None, []]},
        {**GOOD, "info": [10, 10, "mp4", None, None, None, [[0, 0, 0, 0]] * 1001]},
        {**GOOD, "info": [10, 10, "mp4", None, None, None, [[0, 0, 0]]]},
        {**GOOD, "info": [10, 10, "mp4", None, None, None, "views"]},
        {**GOOD, "info": [10, 10, "mp4", None, None, None, {}]},
        {"job": 1, "decode_s": 0.1},
        {"job": 1, "decode_s": 0.1, "error": ["PackageError", "x", "x", ""]},
        {"job": 1, "decode_s": 0.1, "error": ["BrokenMedia", "x" * 501, "x", ""]},
        {"job": 1, "decode_s": 0.1, "error": ["BrokenMedia", 5, "x", ""]},
        {"job": 1, "decode_s": 0.1, "error": ["BrokenMedia", "x", "a\r\nb", ""]},
        {"job": 1, "decode_s": 0.1, "error": [["BrokenMedia"], "x", "x", ""]},
        {"job": 1, "decode_s": 0.1, "error": ["BrokenMedia"]},
        {"job": 1, "decode_s": 0.1, "error": ["BrokenMedia", "x", "x"]},
        {"job": 1, "decode_s": 0.1, "error": ["BrokenMedia", "x", "x", True]},
        {"job": 1, "decode_s": 0.1, "error": ["BrokenMedia", "x", "x", "t" * 4001]},
        {"ready": ["seccomp"]},
    ],
)
def test_a_packet_that_no_honest_worker_sends_is_refused(packet: bytes | dict[str, object]) -> None:
    assert isinstance(messages.decode_reply(json.dumps(GOOD).encode()), Outcome)
    with pytest.raises(ProtocolViolation):
        messages.decode_reply(packet if isinstance(packet, bytes) else json.dumps(packet).encode())
