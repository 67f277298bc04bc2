"""One worker process, seen from the server: started, spoken to, ended, reaped. This module decides nothing."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import app
from app.media import messages
from app.media.messages import JobHeader, Outcome, Ready, WorkerSettings
from app.media.shared import RowBuffer, RowBuffers, SharedBytes
from app.media.spec import DecodeJob

WORKER_COMMAND = (sys.executable, "-P", "-s", "-m", "app.media.worker")

_IMPORT_ROOT = str(Path(app.__file__).resolve().parent.parent)
_LAST_WORDS_BYTES = 2000
_PROVEN_AFTER_S = 10.0  # a worker that waited this long for a job did start properly


def _environment() -> dict[str, str]:
    """What a worker inherits: nothing of the server's settings or keys, one thread in each numeric library."""
    environment = {
        "PYTHONPATH": _IMPORT_ROOT,
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "2",  # an arena reserves 64 MiB of the address space that the worker is limited to
    }
    if "LD_LIBRARY_PATH" in os.environ:  # some Pythons find their own library by it
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    return environment


class WorkerProcess:
    """A worker and the server's ends of what leads to it.

    Attributes:
        pid: process id, valid until `reap`.
        pidfd: readable once the process has ended (pidfd_open(2)).
        channel: a non-blocking SOCK_SEQPACKET socket, readable when the worker said something or hung up.
        buffers: the row buffers that the worker writes into.

    Raises:
        OSError: the process cannot be started.
    """

    def __init__(self, settings: WorkerSettings, command: Sequence[str] = WORKER_COMMAND) -> None:
        self.buffers = RowBuffers()
        with contextlib.ExitStack() as undo:
            self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(self.channel.close)
            with theirs:
                self.channel.setblocking(False)
                self.channel.send(messages.encode_settings(settings))  # now, as it may die at once
                self._stderr = os.memfd_create("stderr", os.MFD_CLOEXEC)
                undo.callback(os.close, self._stderr)
                self._process = subprocess.Popen(  # noqa: S603 - the command is ours
                    [*command, str(theirs.fileno()), str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=self._stderr,
                    pass_fds=(theirs.fileno(),),
                    cwd="/",
                    env=_environment(),
                    process_group=0,  # Ctrl-C is for the server; a session of its own would void `niceness` (autogroup)
                )
            undo.callback(self._process.wait)
            undo.callback(self._process.kill)
            self.pid = self._process.pid
            self.pidfd = os.pidfd_open(self.pid)
            undo.pop_all()

    def send(self, header: JobHeader, job: DecodeJob, body: SharedBytes, new_buffer: RowBuffer | None) -> None:
        """Hand over a job: a small file in the message, and the row buffer only when the worker has not got it yet.

        Raises:
            ConnectionError: the worker has gone.
            OSError: the kernel has no memory for the message.
        """
        descriptors = array.array("i", [body.fd] if body.fd >= 0 else [])
        if new_buffer is not None:
            descriptors.append(new_buffer.fd)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)] if descriptors else []
        self.channel.sendmsg([messages.encode_job(header, job), body.small], rights)

    def receive(self) -> Ready | Outcome | None:
        """The worker's next message; None once it hung up. Descriptors that it sends along are refused by the kernel.

        Raises:
            BlockingIOError: it has said nothing.
            messages.ProtocolViolation: it said what no honest worker says.
        """
        try:
            packet = self.channel.recv(messages.MAX_PACKET_BYTES)
        except ConnectionError:
            return None
        return messages.decode_reply(packet) if packet else None

    def hang_up(self) -> None:
        """Close the socket; an honest worker ends when it has finished what it is doing."""
        self.channel.close()

    def kill(self) -> None:
        """End it now, whatever it is doing. Harmless if it has ended and was not reaped."""
        if self.pidfd >= 0:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def reap(self) -> int | None:
        """The exit status, negative for a signal, freeing all that belonged to the process; None while it runs."""
        status = self._process.poll()
        if status is not None:
            self.hang_up()
            self.buffers.close()
            if self.pidfd >= 0:
                os.close(self.pidfd)
                os.close(self._stderr)
                self.pidfd = self._stderr = -1
        return status

    def last_words(self) -> str:
        """The end of what the worker wrote to its stderr, to be logged when it has gone (before `reap`)."""
        size = os.fstat(self._stderr).st_size
        text = os.pread(self._stderr, _LAST_WORDS_BYTES, max(0, size - _LAST_WORDS_BYTES))
        return text.decode("utf-8", "replace")


class Worker:
    """A worker process and its standing.

    Attributes:
        confinement: what its sandbox is made of; None until it is ready.
        jobs: how many it was given.
        due: whether it was given enough and should be replaced; `retiring`: whether its replacement is there.
        leaving: whether it is past use.
    """

    def __init__(self, process: WorkerProcess, recycle_after_jobs: int) -> None:
        self.process = process
        self.confinement: str | None = None
        self.ready_at: float | None = None
        self.jobs = 0
        self.recycle_after_jobs = round(recycle_after_jobs * random.uniform(0.8, 1.2))  # noqa: S311 - not all at once
        self.retiring = False
        self.leaving = False
        self.timer: asyncio.TimerHandle | None = None

    @property
    def due(self) -> bool:
        return self.jobs >= self.recycle_after_jobs

    @property
    def proven(self) -> bool:
        """Whether it was of use: it took a job, or waited for one for a while."""
        waited = self.ready_at is not None and time.monotonic() - self.ready_at > _PROVEN_AFTER_S
        return self.jobs > 0 or waited

    def set_timer(self, delay_s: float, callback: Callable[..., object], *arguments: Any) -> None:
        """Call back after `delay_s` seconds, instead of what was planned before."""
        self.cancel_timer()
        self.timer = asyncio.get_running_loop().call_later(delay_s, callback, *arguments)

    def cancel_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
