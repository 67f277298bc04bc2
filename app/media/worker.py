"""A media worker: a process that decodes one file at a time, confined, until its socket closes.

Forked by a process that has loaded its decoder (`app.media.forkserver`). It gives up its rights (`app.media.sandbox`),
says that it is ready, and then answers each job with what it found or with the error to raise. Pixels go straight into
the shared memory that came with the job.
"""

from __future__ import annotations

import array
import gc
import mmap
import os
import socket
import time
import traceback

import numpy as np

from app.errors import BrokenMedia, LimitExceeded, RequestError
from app.media import messages, sandbox
from app.media.decoders import Decode
from app.media.heap import give_back_freed_memory
from app.media.limits import MediaLimits
from app.media.messages import JobHeader, Outcome, WorkerSettings
from app.media.shared import ONE_SHOT
from app.media.spec import DecodeInfo, DecodeJob, row_shape, rows_of

CHANNEL_FD = 3  # the socket to the pool; above it nothing is open but what a job brings
_DESCRIPTORS_PER_JOB = 2
_LARGE_FILE_BYTES = 1 << 20


class _Bench:
    """Where jobs are done, one after the other: the socket, and the row buffers that stay mapped between jobs."""

    def __init__(self, channel: socket.socket, decode: Decode, limits: MediaLimits) -> None:
        self._channel = channel
        self._decode = decode
        self._limits = limits
        self._mapped: dict[int, mmap.mmap] = {}

    def work(self) -> None:
        """Answer jobs until the pool hangs up."""
        space = socket.CMSG_SPACE(_DESCRIPTORS_PER_JOB * array.array("i").itemsize)
        while True:
            packet, ancillary, _, _ = self._channel.recvmsg(messages.MAX_PACKET_BYTES, space)
            if not packet:
                return
            descriptors = array.array("i")
            for _, _, data in ancillary:
                descriptors.frombytes(data)
            self._channel.send(self._attempt(packet, list(descriptors)))

    def _attempt(self, packet: bytes, descriptors: list[int]) -> bytes:
        started = time.perf_counter()
        header, job, body = messages.decode_job(packet)
        info: DecodeInfo | None = None
        error: RequestError | None = None
        trace = ""
        try:
            sandbox.allow_cpu_time(header.cpu_s)
            info = self._run(header, job, body, descriptors)
        except RequestError as refusal:
            error = refusal.with_traceback(None)
            error.__cause__ = error.__context__ = None  # their frames hold what was decoded
        except MemoryError:
            error = LimitExceeded("decoding the file takes more memory than one file may take")
        except Exception:  # a decoder's bug, brought out by this file: its caller pays, the log says where
            error, trace = BrokenMedia("the file cannot be decoded"), traceback.format_exc()
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        if error is not None or header.body_bytes > _LARGE_FILE_BYTES:
            gc.collect()  # a cycle may hold the file's mapping, which counts against the memory limit
        if isinstance(error, LimitExceeded):
            give_back_freed_memory()  # else the next file might not find room beside what this one left in the heap
        return messages.encode_outcome(Outcome(header.number, time.perf_counter() - started, info, error, trace))

    def _run(self, header: JobHeader, job: DecodeJob, body: memoryview, descriptors: list[int]) -> DecodeInfo:
        """Decode the file in `body`, or else behind the first descriptor, into the rows behind the last, if any."""
        rest = list(descriptors)
        if len(body) < header.body_bytes:  # MAP_PRIVATE: kernels before 6.7 refuse MAP_SHARED on a write-sealed file
            body = memoryview(_map(rest.pop(0), header.body_bytes, mmap.MAP_PRIVATE, mmap.PROT_READ))
        if rest:
            flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
            self._mapped[header.slot] = _map(rest[0], header.rows_bytes, flags, mmap.PROT_READ | mmap.PROT_WRITE)
        try:
            rows = np.frombuffer(self._mapped[header.slot], np.uint8)
            rows = rows.reshape((rows_of(job), *row_shape(job.spec)))  # [bytes] -> [n, *row]
            return self._decode(body, job, self._limits, rows, header.threads)
        finally:
            if header.slot == ONE_SHOT:
                del self._mapped[ONE_SHOT]


def _map(fd: int, size: int, flags: int, protection: int) -> mmap.mmap:
    try:
        return mmap.mmap(fd, size, flags=flags, prot=protection)
    except OSError as error:  # the limit on the address space, as the descriptors are sound
        raise MemoryError from error


def work(decode: Decode, settings: WorkerSettings) -> None:
    """Be a worker for the pool at the other end of `CHANNEL_FD`; returns when it hangs up."""
    os.nice(settings.niceness)
    sandbox.name_process(f"media-{settings.kind}")
    channel = socket.socket(fileno=CHANNEL_FD)
    confinement = sandbox.confine(settings.memory_bytes)
    channel.send(messages.encode_ready(messages.Ready(confinement)))
    _Bench(channel, decode, settings.limits).work()
