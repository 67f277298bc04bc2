"""The server around one package on the GPU, asked for one photo by many connections at once."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

from app.errors import Unavailable
from app.load.generator import Workload
from app.load.isolated import run_isolated
from app.load.request import classify_request
from app.load.summary import summarise
from app.load.target import parse_target
from benchmarks.gpu_jobs import Job
from benchmarks.gpu_packages import prepare, repository_of_one
from benchmarks.own_server import own_server


def http_rate(job: Job) -> dict[str, Any]:
    """Requests per second, and what else tells where the limit is.

    Raises:
        Unavailable: the server did not start, or answered nothing.
    """
    package = prepare(job)
    name = package.manifest.name
    with repository_of_one(package) as repository:
        server = own_server(
            repository,
            job.contender.split()[0],
            engine_device=job.device,
            engine_instances=job.instances,
            max_batch_rows=job.batches[-1],
            http_workers=job.http_workers,
        )

        def stopped(*_: object) -> None:
            print(server.log_tail(), file=sys.stderr)
            sys.exit(128 + signal.SIGTERM)

        signal.signal(signal.SIGTERM, stopped)  # a job that is stopped stops its server, which is of another group
        target = parse_target(server.url)
        request = classify_request(target, Path(job.photo), model=name)
        workload = Workload(
            target, (request,), connections=job.connections, seconds=5 * job.seconds, warmup_s=job.seconds
        )
        with server:
            summary = summarise(workload, run_isolated(workload))
            if not summary.succeeded:
                raise Unavailable(f"nothing was answered: {summary.errors}\n{server.log_tail()}")
    return {
        "requests_per_s": summary.throughput_per_s,
        "p50_ms": summary.latency_ms.p50 if summary.latency_ms else None,
        "p99_ms": summary.latency_ms.p99 if summary.latency_ms else None,
        "stages_ms": summary.stages_ms,
        "generator_share": summary.generator_share,
        "errors": summary.errors,
        "ready_s": server.ready_s,
    }
