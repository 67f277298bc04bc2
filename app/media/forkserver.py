"""A fork server: a process that has loaded and tried out its decoder, and forks a media worker when it is told to.

Started by the pool as `python -m app.media.forkserver SOCKET_FD PARENT_PID`. Starting Python and loading a decoder
takes a quarter of a second of a core, a fork some milliseconds: so the crash of a worker, which any file may cause, is
cheap. The fork server itself never sees a file, and hears nobody but the pool. It has one thread, as forking demands.
"""

from __future__ import annotations

import array
import faulthandler
import gc
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from app.media import messages, sandbox
from app.media.decoders import Decode, load_decoder
from app.media.formats import Kind
from app.media.heap import keep_freed_memory
from app.media.limits import MediaLimits
from app.media.messages import WorkerSettings
from app.media.worker import CHANNEL_FD, work

_IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # meant for the server, which ends its workers itself
_DESCRIPTORS_PER_FORK = 2
_MOST_DESCRIPTORS = 1 << 20
_STDERR = 2


@dataclass(frozen=True)
class _Child:
    number: int
    pid: int


class _ForkServer:
    """Forks, kills and reaps workers as `control` says, and says there how they ended."""

    def __init__(self, control: socket.socket, settings: WorkerSettings, decode: Decode) -> None:
        self._control = control
        self._settings = settings
        self._decode = decode
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._children: dict[int, _Child] = {}  # by pidfd

    def run(self) -> None:
        """Serve until the pool hangs up; then no worker is left."""
        while True:
            for fd, _ in self._poll.poll():
                if fd in self._children:
                    self._reap(fd)
                elif not self._obey():
                    for child in self._children.values():
                        os.kill(child.pid, signal.SIGKILL)
                    return

    def _obey(self) -> bool:
        """Read one command and carry it out; False once the pool has hung up."""
        space = socket.CMSG_SPACE(_DESCRIPTORS_PER_FORK * array.array("i").itemsize)
        packet, ancillary, _, _ = self._control.recvmsg(messages.MAX_PACKET_BYTES, space)
        if not packet:
            return False
        descriptors = array.array("i")
        for _, _, data in ancillary:
            descriptors.frombytes(data)
        kill, number = messages.decode_command(packet)
        if kill:
            for child in self._children.values():
                if child.number == number:
                    os.kill(child.pid, signal.SIGKILL)
            return True
        if len(descriptors) < _DESCRIPTORS_PER_FORK:  # this process has no room for more: the kernel dropped the rest
            for descriptor in descriptors:
                os.close(descriptor)
            self._control.send(messages.encode_exit(number, 1))
            return True
        channel, stderr = descriptors
        try:
            self._fork(number, channel, stderr)
        except OSError as error:  # no process or descriptor is left
            os.write(stderr, f"a worker cannot be forked: {error}".encode())
            self._control.send(messages.encode_exit(number, 1))
        finally:
            os.close(channel)
            os.close(stderr)
        return True

    def _fork(self, number: int, channel: int, stderr: int) -> None:
        parent_pid = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._be_a_worker(parent_pid, channel, stderr)
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        self._children[pidfd] = _Child(number, pid)
        self._poll.register(pidfd, select.POLLIN)

    def _be_a_worker(self, parent_pid: int, channel: int, stderr: int) -> None:
        """In the new process: keep nothing of the fork server's but its memory. Does not return."""
        status = 1
        try:
            os.dup2(stderr, _STDERR)
            if channel != CHANNEL_FD:
                os.dup2(channel, CHANNEL_FD, inheritable=False)
            os.closerange(CHANNEL_FD + 1, _MOST_DESCRIPTORS)
            sandbox.die_with_parent(parent_pid)
            work(self._decode, self._settings)
            status = 0
        except BaseException:  # whatever it is, this process must not go on as a second fork server
            traceback.print_exc()
        finally:
            os._exit(status)  # nothing is left to tidy, and the sandbox would refuse some of the tidying

    def _reap(self, pidfd: int) -> None:
        child = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(child.pid, 0)
        self._control.send(messages.encode_exit(child.number, os.waitstatus_to_exitcode(status)))


def serve(socket_fd: int, parent_pid: int, load: Callable[[Kind, MediaLimits], Decode] = load_decoder) -> None:
    """Be a fork server for the pool at the other end of `socket_fd`; returns when it hangs up."""
    sandbox.die_with_parent(parent_pid)
    for ignored in _IGNORED_SIGNALS:
        signal.signal(ignored, signal.SIG_IGN)
    # Whoever started the server may ignore this one, and so would we: the kernel would reap our children before us.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    faulthandler.enable()
    keep_freed_memory()
    control = socket.socket(fileno=socket_fd)
    packet = control.recv(messages.MAX_PACKET_BYTES)
    if not packet:
        return
    settings = messages.decode_settings(packet)
    decode = load(settings.kind, settings.limits)
    gc.collect()
    gc.freeze()
    _ForkServer(control, settings, decode).run()


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
    os._exit(0)
