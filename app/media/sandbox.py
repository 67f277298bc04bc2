"""What a media worker may do: decode the file that it was handed, and nothing else.

Two walls. Resource limits (setrlimit(2)) bound memory, processor time, descriptors and file writes. A seccomp filter
(seccomp(2), Documentation/userspace-api/seccomp_filter.rst in Linux) allows the system calls that decoding needs and
answers EPERM to the rest: no files, no sockets, no programs, no other processes, no new executable memory. Threads are
allowed, because codecs use them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import resource
import signal
import struct
import sys
from dataclasses import dataclass

MAX_OPEN_FILES = 64
MAX_WRITTEN_BYTES = 64 * 1024  # the worker's stderr; pixels are written through memory maps, which this does not bound

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NAME, _PR_SET_NO_NEW_PRIVS = 1, 4, 15, 38
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC = 1, 1
_CLONE_THREAD, _PROT_EXEC = 0x00010000, 0x4
_FCNTL_COMMANDS = (fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL, fcntl.F_DUPFD_CLOEXEC)  # what mmap needs
_OWN_LIMITS = (resource.RLIMIT_CPU, resource.RLIMIT_STACK)  # set for each job; read by the C library

# name: (number on x86-64, number on aarch64); _NONE where the architecture has no such call
_NONE = -1
_ALLOWED = {
    # bytes in and out of descriptors that it holds
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67), "lseek": (8, 62),
    "close": (3, 57), "fstat": (5, 80), "recvmsg": (47, 212), "recvfrom": (45, 207), "sendmsg": (46, 211),
    "sendto": (44, 206), "poll": (7, _NONE), "ppoll": (271, 73), "select": (23, _NONE), "pselect6": (270, 72),
    # memory
    "munmap": (11, 215), "mremap": (25, 216), "madvise": (28, 233), "brk": (12, 214), "membarrier": (324, 283),
    # threads
    "futex": (202, 98), "set_robust_list": (273, 99), "rseq": (334, 293), "exit": (60, 93), "exit_group": (231, 94),
    "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "getcpu": (309, 168), "gettid": (186, 178),
    # signals to itself
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    # clocks and facts
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "nanosleep": (35, 101),
    "gettimeofday": (96, 169), "time": (201, _NONE), "getrusage": (98, 165), "getpid": (39, 172),
    "getrandom": (318, 278), "uname": (63, 160), "sysinfo": (99, 179),
}  # fmt: skip


@dataclass(frozen=True)
class _Conditional:
    """A call that is allowed if its arguments, by number, are among the values and have or lack the bits."""

    numbers: tuple[int, int]
    equal: tuple[tuple[int, tuple[int, ...]], ...] = ()
    forbidden_bits: tuple[tuple[int, int], ...] = ()
    required_bits: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class _Architecture:
    index: int  # into the pairs above
    audit: int  # AUDIT_ARCH_*, linux/audit.h
    seccomp: int  # the number of seccomp(2)


_ARCHITECTURES = {"x86_64": _Architecture(0, 0xC000003E, 317), "aarch64": _Architecture(1, 0xC00000B7, 277)}
_CLONE3 = 435  # on every architecture; ENOSYS sends glibc back to clone, whose flags a filter can read

# BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_JMP|BPF_JSET|BPF_K, BPF_RET|BPF_K
_LOAD, _JUMP_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_RET_ALLOW, _RET_ERRNO, _RET_KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_OFFSET_NUMBER, _OFFSET_ARCHITECTURE, _OFFSET_ARGUMENTS = 0, 4, 16  # struct seccomp_data, linux/seccomp.h


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when the server goes, however it goes; exit now if it has gone already."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.exit(1)


def name_process(name: str) -> None:
    """What `ps -o comm` and `top` call this process: up to 15 characters."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NAME, ctypes.c_char_p(name.encode()[:15]), 0, 0, 0)


def confine(memory_bytes: int) -> str:
    """Give up everything that decoding does not need, for good. Call it once all is imported and warm.

    Args:
        memory_bytes: address space that may be taken beyond what is mapped now.

    Returns:
        "seccomp" if both walls stand; "rlimits" if the kernel or the architecture has no filter for us.
    """
    _raise_oom_score()
    for limit, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
        (resource.RLIMIT_FSIZE, MAX_WRITTEN_BYTES),
        (resource.RLIMIT_AS, _mapped_bytes() + memory_bytes),
    ):
        allowed = _within(resource.getrlimit(limit)[1], most)
        resource.setrlimit(limit, (allowed, allowed))
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    architecture = _ARCHITECTURES.get(platform.machine())
    if architecture is not None and _install(architecture, _program(architecture)):
        return "seccomp"
    return "rlimits"


def allow_cpu_time(seconds: float) -> None:
    """Let this process use `seconds` more of processor time (rounded up); then SIGXCPU ends it.

    Where that cannot be had it is done without: no file is to blame for it, and the pool's clock bounds each job too.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime + seconds) + 2
    with contextlib.suppress(OSError, ValueError):
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (_within(hard, soft), hard))


def _within(hard: int, wanted: int) -> int:
    """`wanted`, or the hard limit of whoever started the server: only root may go beyond that."""
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")


def _raise_oom_score() -> None:
    """If the machine runs out of memory, it should end a worker and not the server; a wish, not a condition."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "r+") as file:
        score = int(file.read())  # the server's own; Kubernetes gives some pods more than 500
        file.seek(0)
        file.write(str(min(1000, score + 500)))


def _mapped_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _conditional() -> list[_Conditional]:
    me = (os.getpid(),)
    return [
        _Conditional((56, 220), required_bits=((0, _CLONE_THREAD),)),  # clone: threads, not processes
        _Conditional((9, 222), forbidden_bits=((2, _PROT_EXEC),)),  # mmap: data, not code
        _Conditional((10, 226), forbidden_bits=((2, _PROT_EXEC),)),  # mprotect
        _Conditional((62, 129), equal=((0, me),)),  # kill
        _Conditional((234, 131), equal=((0, me),)),  # tgkill, for abort
        _Conditional((302, 261), equal=((0, (0,)), (1, _OWN_LIMITS))),  # prlimit64
        _Conditional((157, 167), equal=((0, (_PR_SET_NAME,)),)),  # prctl: codecs name their threads
        _Conditional((72, 25), equal=((1, _FCNTL_COMMANDS),)),  # fcntl
    ]


def _program(architecture: _Architecture) -> bytes:
    """The filter: struct sock_filter[] of classic BPF (linux/filter.h)."""
    deny = _instruction(_RETURN, _RET_ERRNO | errno.EPERM)
    allow = _instruction(_RETURN, _RET_ALLOW)
    code = [
        _instruction(_LOAD, _OFFSET_ARCHITECTURE),
        _instruction(_JUMP_EQUAL, architecture.audit, then=1),
        _instruction(_RETURN, _RET_KILL_PROCESS),  # a call in another architecture's numbers
        _instruction(_LOAD, _OFFSET_NUMBER),
        _instruction(_JUMP_EQUAL, _CLONE3, otherwise=1),
        _instruction(_RETURN, _RET_ERRNO | errno.ENOSYS),
    ]
    for numbers in _ALLOWED.values():
        if numbers[architecture.index] != _NONE:
            code += [_instruction(_JUMP_EQUAL, numbers[architecture.index], otherwise=1), allow]
    for call in _conditional():
        body = []
        for argument, values in call.equal:
            body.append(_load_argument(argument))
            body += [_instruction(_JUMP_EQUAL, value, then=len(values) - i) for i, value in enumerate(values)]
            body.append(deny)
        for argument, bits in call.required_bits:
            body += [_load_argument(argument), _instruction(_JUMP_SET, bits, then=1), deny]
        for argument, bits in call.forbidden_bits:
            body += [_load_argument(argument), _instruction(_JUMP_SET, bits, otherwise=1), deny]
        body.append(allow)
        code += [_instruction(_JUMP_EQUAL, call.numbers[architecture.index], otherwise=len(body)), *body]
    return b"".join([*code, deny])


def _load_argument(argument: int) -> bytes:
    return _instruction(_LOAD, _OFFSET_ARGUMENTS + 8 * argument)  # its low half, on a little-endian machine


def _instruction(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("=HBBI", code, then, otherwise, value)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))  # struct sock_fprog


def _install(architecture: _Architecture, program: bytes) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    memory = ctypes.create_string_buffer(program, len(program))
    header = _Program(len(program) // 8, ctypes.cast(memory, ctypes.c_void_p))
    installed: int = libc.syscall(
        ctypes.c_long(architecture.seccomp),
        ctypes.c_uint(_SECCOMP_SET_MODE_FILTER),
        ctypes.c_uint(_SECCOMP_FILTER_FLAG_TSYNC),
        ctypes.byref(header),
    )
    return installed == 0
