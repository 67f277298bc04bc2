"""Decodes files in processes of their own: hostile bytes can cost one request and one worker, and nothing else.

Photos and videos have separate workers, so that no number of long videos keeps a photo waiting; video workers run at a
lower priority. The upload and the rows lie in shared memory (`app.media.shared`), jobs and outcomes are short messages
(`app.media.messages`), and workers are confined (`app.media.sandbox`). Each kind has a process that forks its workers
(`app.media.forkserver`).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from typing import Protocol

from app.media.formats import Kind
from app.media.group import GroupOptions, WorkerGroup
from app.media.limits import MediaLimits
from app.media.messages import WorkerSettings
from app.media.process import FORK_SERVER_COMMAND, ForkServer
from app.media.shared import DecodedRows, SharedBytes
from app.media.spec import DecodeJob, ImageSpec

WORKER_STATES = ("starting", "idle", "busy")
RESTART_REASONS = (
    "crashed",  # a signal, or an exit status that nobody asked for
    "killed",  # SIGKILL from outside: the kernel out of memory, or a person
    "cpu_time",  # more processor time than a job may take
    "timeout",  # longer than the server lets a job run
    "deadline",  # the caller's deadline passed while it ran
    "abandoned",  # the caller left and the job ran on
    "protocol",  # it said what no honest worker says
    "start_failed",  # it never became ready
    "recycled",  # it did its share of jobs
)

_REPORT_EVERY_S = 0.1

_logger = logging.getLogger(__name__)


class PoolObserver(Protocol):
    """Who counts. States are `WORKER_STATES`, reasons are `RESTART_REASONS`."""

    def workers(self, state: str, count: int) -> None:
        """So many workers are in `state`; told within 0.1 s of a change."""

    def restarted(self, reason: str) -> None:
        """A worker was replaced for `reason`."""


# Each has pictures of its own, and all of them must fit into `worker_memory_bytes`.
MOST_CODEC_THREADS = 8


class MediaPool:
    """Image and video workers behind one `decode`. Lives in the event loop that it was started in.

    Args:
        image_workers, video_workers: processes of each kind, at least 1.
        limits: what is refused from the headers of a file.
        worker_memory_bytes: address space that one job may take: the file, its rows and the codec's buffers together.
        image_timeout_s, video_timeout_s: the longest that a job of the kind may run.
        observer: told of workers and restarts.
        codec_threads: threads of a video decoder that has its group to itself (default: the CPUs open to this process);
            never more than `MOST_CODEC_THREADS`.
        video_niceness: added to the server's own niceness for video workers.
        recycle_after_jobs: a worker is replaced after about that many jobs, which bounds the leaks of codecs.
        start_timeout_s: a worker that is not ready by then is ended.
        abandoned_grace_s: how long a job may run on after its caller left, before its worker is killed.
        command: what starts a fork server; a socket descriptor and the server's process id are appended.
    """

    def __init__(
        self,
        *,
        image_workers: int,
        video_workers: int,
        limits: MediaLimits,
        worker_memory_bytes: int,
        image_timeout_s: float,
        video_timeout_s: float,
        observer: PoolObserver | None = None,
        codec_threads: int | None = None,
        video_niceness: int = 10,
        recycle_after_jobs: int = 5000,
        start_timeout_s: float = 30.0,
        abandoned_grace_s: float = 0.05,
        command: Sequence[str] = FORK_SERVER_COMMAND,
    ) -> None:
        if image_workers < 1 or video_workers < 1:
            raise ValueError("a pool needs at least one worker of each kind")
        self._observer = observer
        self._reported: dict[str, int] = {}
        self._report: asyncio.TimerHandle | None = None

        def group(name: Kind, workers: int, timeout_s: float, threads: int, niceness: int) -> WorkerGroup:
            settings = WorkerSettings(name, limits, worker_memory_bytes, niceness)
            options = GroupOptions(
                name=name,
                workers=workers,
                timeout_s=timeout_s,
                codec_threads=threads,
                recycle_after_jobs=recycle_after_jobs,
                start_timeout_s=start_timeout_s,
                abandoned_grace_s=abandoned_grace_s,
            )
            return WorkerGroup(options, lambda: ForkServer(settings, command), self._changed, self._restarted)

        threads = min(codec_threads or len(os.sched_getaffinity(0)), MOST_CODEC_THREADS)
        self._groups: dict[Kind, WorkerGroup] = {
            "image": group("image", image_workers, image_timeout_s, 1, 0),
            "video": group("video", video_workers, video_timeout_s, threads, video_niceness),
        }

    async def start(self) -> None:
        """Start all workers at once and wait until they are ready, or as many of each kind as can be had.

        Raises:
            Unavailable: workers end as soon as they are started. The pool is closed then.
        """
        try:
            await asyncio.gather(*(group.start() for group in self._groups.values()))
        except BaseException:
            await self.close(0.0)
            raise
        if self.confinement != "seccomp":
            _logger.warning(
                "MEDIA WORKERS ARE NOT FULLY CONFINED: this kernel has no seccomp filter for them. Resource limits "
                "hold, but a decoder that was taken over could open files and connections."
            )

    async def decode(self, body: SharedBytes, job: DecodeJob, deadline: float, caller: str = "") -> DecodedRows:
        """Decode one file to rows. The caller closes `body` and the rows.

        A caller that is cancelled drops its job: one that waits is not run, one that runs gets `abandoned_grace_s`.

        Args:
            body: the file; sealed here.
            job: the rows that are wanted.
            deadline: `time.monotonic()` seconds.
            caller: whose turn it takes: callers who wait get equal parts of the workers' time.

        Raises:
            UnsupportedMedia, BrokenMedia: the file is to blame; a decoder that crashes counts as BrokenMedia.
            LimitExceeded: the file breaks a limit, or takes too much memory or time.
            DeadlineExceeded: `deadline` passed first.
            Overloaded: no descriptor or memory is left for the rows.
            Unavailable: the pool is closed, or its workers cannot be kept alive.
        """
        kind: Kind = "image" if isinstance(job.spec, ImageSpec) else "video"
        return await self._groups[kind].run(body, job, deadline, caller)

    async def close(self, grace_s: float) -> None:
        """Refuse new jobs, give accepted ones `grace_s` seconds to finish, then end all workers and reap them."""
        for group in self._groups.values():
            group.refuse()
        await asyncio.gather(*(group.close(grace_s) for group in self._groups.values()))
        if self._report is not None and self._observer is not None:
            self._report.cancel()
            self._tell(self._observer)

    def pending(self, kind: Kind) -> int:
        """Jobs of `kind` that wait for a worker."""
        return self._groups[kind].pending

    @property
    def unhealthy(self) -> str | None:
        """Why the pool cannot decode; None if it can, or may soon."""
        reasons = [group.trouble for group in self._groups.values() if group.trouble is not None]
        return "; ".join(reasons) or None

    @property
    def confinement(self) -> str:
        """How workers are held: "seccomp" (a system call filter and resource limits) or "rlimits" (only the latter)."""
        kinds = set().union(*(group.confinements for group in self._groups.values()))
        return "seccomp" if kinds == {"seccomp"} else "rlimits"

    @property
    def worker_states(self) -> dict[str, int]:
        """Workers of both kinds by state; the keys are `WORKER_STATES`."""
        states = [group.states for group in self._groups.values()]
        return {state: sum(one[state] for one in states) for state in WORKER_STATES}

    def _changed(self) -> None:
        """Have the observer told soon; telling it for each job would cost as much as the job's messages."""
        if self._report is None and self._observer is not None:
            self._report = asyncio.get_running_loop().call_later(_REPORT_EVERY_S, self._tell, self._observer)

    def _tell(self, observer: PoolObserver) -> None:
        self._report = None
        for state, count in self.worker_states.items():
            if self._reported.get(state) != count:
                self._reported[state] = count
                observer.workers(state, count)

    def _restarted(self, reason: str) -> None:
        if self._observer is not None:
            self._observer.restarted(reason)
