"""What the pool and a worker say to each other over their socket, one packet a message.

    pool → worker   job                 header, job as JSON, the file if it is small; descriptors: of the file if it
                                        is not, and of the row buffer if it is new
    worker → pool   ready, once         JSON
                    outcome             JSON: what was found, or which error
    pool → fork server   settings, once     JSON
                         fork, kill         which worker; with the former the descriptors of its socket and its stderr
    fork server → pool   exit               which worker, and its exit status

A worker has parsed hostile bytes and may be theirs by now, so nothing that it says is unpickled or taken on trust:
packets are bounded, and each field is checked for type and range.
"""

from __future__ import annotations

import functools
import json
import math
import re
import struct
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from app.errors import BrokenMedia, LimitExceeded, RequestError, UnsupportedMedia
from app.media.formats import Kind
from app.media.limits import MediaLimits
from app.media.spec import DecodeInfo, DecodeJob, ImageSpec, VideoSpec, View

MAX_PACKET_BYTES = 128 * 1024
_MAX_MESSAGE_CHARS = 500
_MAX_TRACE_CHARS = 4000
_MAX_VIEWS = 1000
_MAX_COUNT = 1 << 40

_ERRORS: dict[str, type[RequestError]] = {
    error.__name__: error for error in (UnsupportedMedia, BrokenMedia, LimitExceeded)
}
_JOB = struct.Struct("!IHHQQdH")
_COMMAND = struct.Struct("!?I")
_EXIT = struct.Struct("!Ii")


class ProtocolViolation(Exception):
    """A worker said something that no honest worker says."""


@dataclass(frozen=True)
class WorkerSettings:
    """What all workers of a fork server are.

    `memory_bytes` is address space beyond what the idle worker has: room for the file, its rows and the codec's
    buffers. `niceness` is added to the server's own (see nice(2)).
    """

    kind: Kind
    limits: MediaLimits
    memory_bytes: int
    niceness: int = 0


class JobHeader(NamedTuple):
    """The fixed part of a job. Sizes in bytes; `cpu_s` bounds the seconds of processor time over all `threads`."""

    number: int
    slot: int
    threads: int
    body_bytes: int
    rows_bytes: int
    cpu_s: float


@dataclass(frozen=True)
class Ready:
    """A worker can take jobs. `confinement` is "seccomp", or "rlimits" where the kernel refuses filters."""

    confinement: str


@dataclass(frozen=True)
class Outcome:
    """How job `number` ended: `info`, or `error` to raise, with a `trace` for the log if it is unexpected."""

    number: int
    decode_s: float
    info: DecodeInfo | None = None
    error: RequestError | None = None
    trace: str = ""


def encode_settings(settings: WorkerSettings) -> bytes:
    return json.dumps(asdict(settings)).encode()


def decode_settings(packet: bytes) -> WorkerSettings:
    fields = json.loads(packet)
    return WorkerSettings(**{**fields, "limits": MediaLimits(**fields["limits"])})


def encode_command(number: int, *, kill: bool = False) -> bytes:
    """Fork worker `number`, or kill it."""
    return _COMMAND.pack(kill, number)


def decode_command(packet: bytes) -> tuple[bool, int]:
    """Whether to kill instead of to fork, and which worker."""
    kill, number = _COMMAND.unpack(packet)
    return kill, number


def encode_exit(number: int, status: int) -> bytes:
    """Worker `number` has ended; `status` is negative for a signal."""
    return _EXIT.pack(number, status)


def decode_exit(packet: bytes) -> tuple[int, int]:
    number, status = _EXIT.unpack(packet)
    return number, status


@functools.lru_cache(maxsize=256)
def _encode_job(job: DecodeJob) -> bytes:
    kind = "image" if isinstance(job.spec, ImageSpec) else "video"
    return json.dumps({"kind": kind, "spec": asdict(job.spec), "clips": job.clips, "crops": job.crops}).encode()


@functools.lru_cache(maxsize=256)
def _decode_job(packet: bytes) -> DecodeJob:
    fields = json.loads(packet)
    spec = ImageSpec(**fields["spec"]) if fields["kind"] == "image" else VideoSpec(**fields["spec"])
    return DecodeJob(spec, clips=fields["clips"], crops=fields["crops"])


def encode_job(header: JobHeader, job: DecodeJob) -> bytes:
    """The packet, to be followed by the file if it is small."""
    job_packet = _encode_job(job)
    return _JOB.pack(*header, len(job_packet)) + job_packet


def decode_job(packet: bytes) -> tuple[JobHeader, DecodeJob, memoryview]:
    """The header, the job, and the bytes that follow: a small file, or none."""
    *header, job_bytes = _JOB.unpack_from(packet)
    end = _JOB.size + job_bytes
    return JobHeader(*header), _decode_job(packet[_JOB.size : end]), memoryview(packet)[end:]


def encode_ready(ready: Ready) -> bytes:
    return json.dumps({"ready": ready.confinement}).encode()


def encode_outcome(outcome: Outcome) -> bytes:
    fields: dict[str, Any] = {"job": outcome.number, "decode_s": outcome.decode_s}
    if outcome.info is not None:
        info = outcome.info
        views = [(view.clip, view.crop, view.start_s, view.end_s) for view in info.views]
        fields["info"] = (info.width, info.height, info.format, info.frames, info.duration_s, info.fps, views)
    if outcome.error is not None:
        message = str(outcome.error)[:_MAX_MESSAGE_CHARS]
        fields["error"] = (type(outcome.error).__name__, message, outcome.error.code, outcome.trace[-_MAX_TRACE_CHARS:])
    return json.dumps(fields).encode()


def decode_reply(packet: bytes) -> Ready | Outcome:
    """Read what a worker sent, believing none of it.

    Raises:
        ProtocolViolation: the packet is not one of ours.
    """
    try:
        fields = json.loads(packet)
        if "ready" in fields:
            return Ready(_word(fields["ready"]))
        number, decode_s = _count(fields["job"]), _seconds(fields["decode_s"])
        if "info" in fields:
            return Outcome(number, decode_s, info=_info(*fields["info"]))
        return Outcome(number, decode_s, error=_error(*fields["error"][:3]), trace=_trace(fields["error"][3]))
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError) as error:
        raise ProtocolViolation(f"not a worker's message: {packet[:80]!r}") from error


def _info(
    width: object, height: object, format: object, frames: object, duration_s: object, fps: object, views: object
) -> DecodeInfo:
    if not isinstance(views, list) or len(views) > _MAX_VIEWS:
        raise ValueError("views")
    return DecodeInfo(
        width=_count(width),
        height=_count(height),
        format=_word(format),
        frames=None if frames is None else _count(frames),
        duration_s=None if duration_s is None else _seconds(duration_s),
        fps=None if fps is None else _seconds(fps),
        views=tuple(View(_count(clip), _count(crop), _seconds(t0), _seconds(t1)) for clip, crop, t0, t1 in views),
    )


def _error(kind: object, message: object, code: object) -> RequestError:
    if not isinstance(kind, str) or not isinstance(message, str) or len(message) > _MAX_MESSAGE_CHARS:
        raise ValueError("error")
    return _ERRORS[kind]("".join(c if c.isprintable() else " " for c in message), code=_word(code))


def _trace(value: object) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TRACE_CHARS:
        raise ValueError("trace")
    return value


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < _MAX_COUNT:
        raise ValueError("count")
    return value


def _seconds(value: object) -> float:
    if type(value) not in (int, float):
        raise ValueError("seconds")
    number = float(value)  # type: ignore[arg-type]  # narrowed by the line above
    if not math.isfinite(number):
        raise ValueError("seconds")
    return number


def _word(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_.,+ -]{0,64}", value):
        raise ValueError("word")
    return value
