"""Fork servers and the workers that they make, seen from the server: started, spoken to, ended. It decides nothing.

pool ──commands──▶ fork server ──fork──▶ worker, worker, …
     ◀──exits────
     ◀──────────jobs and outcomes──────▶
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence

from app.interpreter import import_path
from app.media import messages
from app.media.messages import JobHeader, Outcome, Ready, WorkerSettings
from app.media.shared import RowBuffer, RowBuffers, SharedBytes
from app.media.spec import DecodeJob

FORK_SERVER_COMMAND = (sys.executable, "-P", "-s", "-m", "app.media.forkserver")

_LAST_WORDS_BYTES = 2000
_EXIT_BYTES = 64


def _environment() -> dict[str, str]:
    """What a worker inherits: nothing of the server's settings or keys, one thread in each numeric library."""
    environment = {
        "PYTHONPATH": import_path(),
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "2",  # an arena reserves 64 MiB of the address space that the worker is limited to
    }
    if "LD_LIBRARY_PATH" in os.environ:  # some Pythons find their own library by it
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    return environment


class WorkerProcess:
    """A worker and the server's ends of what leads to it. `ForkServer.fork` makes it.

    Attributes:
        channel: a non-blocking SOCK_SEQPACKET socket, readable when the worker said something or hung up.
        buffers: the row buffers that the worker writes into.
        on_exit: called on the event loop once the process has ended.
        fork_server: that it comes from, and ends with.
    """

    def __init__(self, fork_server: ForkServer, number: int, channel: socket.socket, stderr: int) -> None:
        self.channel = channel
        self.buffers = RowBuffers()
        self.on_exit: Callable[[], object] = lambda: None
        self.fork_server = fork_server
        self._number = number
        self._stderr = stderr
        self._words_of_others = ""
        self._status: int | None = None

    def send(self, header: JobHeader, job: DecodeJob, body: SharedBytes, new_buffer: RowBuffer | None) -> None:
        """Hand over a job: a small file in the message, and the row buffer only when the worker has not got it yet.

        Raises:
            ConnectionError: the worker has gone.
            OSError: the kernel has no memory for the message.
        """
        descriptors = [body.fd] if body.fd >= 0 else []
        if new_buffer is not None:
            descriptors.append(new_buffer.fd)
        self.channel.sendmsg([messages.encode_job(header, job), body.small], _rights(*descriptors))

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
        """End it now, whatever it is doing. Harmless if it has ended."""
        if self._status is None:
            self.fork_server.kill_worker(self._number)

    def exited(self, status: int, words: str = "") -> None:
        """The process has ended with `status`, and whoever made it says `words` of that."""
        self._status, self._words_of_others = status, words
        self.on_exit()

    def reap(self) -> int | None:
        """The exit status, negative for a signal, freeing all that belonged to the process; None while it runs."""
        if self._status is not None:
            self.hang_up()
            self.buffers.close()
            if self._stderr >= 0:
                os.close(self._stderr)
                self._stderr = -1
        return self._status

    def last_words(self) -> str:
        """The end of what the worker wrote to its stderr, to be logged when it has gone (before `reap`)."""
        return _last_words(self._stderr) or self._words_of_others


class ForkServer:
    """The process that forks the workers of a group. It is started by the first `fork`, and again after its end, with
    which its workers end too. Lives in one event loop.

    Args:
        settings: what the workers are.
        command: what starts it; a socket descriptor and the server's process id are appended.
    """

    def __init__(self, settings: WorkerSettings, command: Sequence[str] = FORK_SERVER_COMMAND) -> None:
        self._settings = settings
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._stderr = -1
        self._numbers = itertools.count()
        self._workers: dict[int, WorkerProcess] = {}
        self._retired = False

    def fork(self) -> WorkerProcess:
        """A worker that will say that it is ready, or end.

        Raises:
            OSError: no process can be started, or the kernel has no descriptors or memory left.
        """
        control = self._control or self._start()
        number = next(self._numbers) & 0xFFFFFFFF
        with contextlib.ExitStack() as undo:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(ours.close)
            with theirs:
                ours.setblocking(False)
                stderr = os.memfd_create("stderr", os.MFD_CLOEXEC)
                undo.callback(os.close, stderr)
                control.sendmsg([messages.encode_command(number)], _rights(theirs.fileno(), stderr))
            undo.pop_all()
        self._workers[number] = worker = WorkerProcess(self, number, ours, stderr)
        return worker

    def kill_worker(self, number: int) -> None:
        """What `WorkerProcess.kill` does."""
        if self._control is None:
            return
        try:
            self._control.send(messages.encode_command(number, kill=True))
        except OSError:  # it does not listen any more
            self.kill()

    def kill(self) -> None:
        """End it now, with all of its workers; each of them is told of in a moment."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                # Its group, as a worker that was stopped right after the fork outlives it and holds its socket open.
                os.killpg(self._process.pid, signal.SIGKILL)

    def retire(self) -> None:
        """Nothing more is asked of it: let it end with its last worker."""
        self._retired = True
        if not self._workers:
            self.close()

    def close(self) -> None:
        """End it, when all of its workers have ended."""
        self.kill()
        if self._control is not None:
            self._ended(self._control)

    def _start(self) -> socket.socket:
        with contextlib.ExitStack() as undo:
            control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(control.close)
            with theirs:
                control.setblocking(False)
                control.send(messages.encode_settings(self._settings))
                stderr = os.memfd_create("stderr", os.MFD_CLOEXEC)
                undo.callback(os.close, stderr)
                process = subprocess.Popen(  # noqa: S603 - the command is ours
                    [*self._command, str(theirs.fileno()), str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    pass_fds=(theirs.fileno(),),
                    cwd="/",
                    env=_environment(),
                    process_group=0,  # Ctrl-C is for the server; a session of its own would void `niceness` (autogroup)
                )
            undo.pop_all()
        asyncio.get_running_loop().add_reader(control.fileno(), self._heard, control)
        self._process, self._control, self._stderr = process, control, stderr
        return control

    def _heard(self, control: socket.socket) -> None:
        """Read one message; the loop calls again if there are more."""
        try:
            packet = control.recv(_EXIT_BYTES)
        except BlockingIOError:
            return
        except ConnectionError:
            packet = b""
        if not packet:
            self._ended(control)
            return
        number, status = messages.decode_exit(packet)
        self._workers.pop(number).exited(status)
        if self._retired and not self._workers:
            self.close()

    def _ended(self, control: socket.socket) -> None:
        """It has hung up, so it has ended or is about to; the kernel ends its workers with it."""
        asyncio.get_running_loop().remove_reader(control.fileno())
        control.close()
        if self._process is not None:
            self.kill()
            self._process.wait()
            with contextlib.suppress(ChildProcessError):
                while True:  # process 1 of a container inherits the workers
                    os.waitpid(-self._process.pid, 0)
        words = f"its fork server has ended: {_last_words(self._stderr)}"
        os.close(self._stderr)
        self._process = self._control = None
        workers, self._workers = self._workers, {}
        for worker in workers.values():  # each by itself: what goes wrong with one keeps nothing from the others
            asyncio.get_running_loop().call_soon(worker.exited, -signal.SIGKILL, words)


def _rights(*descriptors: int) -> list[tuple[int, int, array.array[int]]]:
    """Ancillary data that hands descriptors over (unix(7)); none for none."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []


def _last_words(stderr: int) -> str:
    size = os.fstat(stderr).st_size
    text = os.pread(stderr, _LAST_WORDS_BYTES, max(0, size - _LAST_WORDS_BYTES))
    return text.decode("utf-8", "replace")
