"""Runs load in a process of its own, so that drawing a progress bar or keeping results never delays a request."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection as Pipe
from multiprocessing.process import BaseProcess
from typing import TypeVar

from app.errors import HieraError
from app.load.generator import Progress, Samples, Workload, run_workload

Order = TypeVar("Order")
Result = TypeVar("Result")
Work = Callable[[Order, Progress], Result]


class GeneratorDied(HieraError):
    code = "generator_died"


def run_isolated(workload: Workload, progress: Progress | None = None) -> Samples:
    """As `run_workload`, from a fresh process; `progress` is called in this one.

    Raises:
        GeneratorDied: the process ended without a result.
    """
    return in_a_process(run_workload, workload, progress)


def in_a_process(work: Work[Order, Result], order: Order, progress: Progress | None = None) -> Result:
    """`work(order, progress)` from a fresh process; `progress` is called in this one, the rest is pickled.

    Raises:
        GeneratorDied: the process ended without a result.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_main, args=(work, order, theirs), name="load-generator", daemon=True)
    resource_tracker.ensure_running()  # which would lift the block of `_start`
    try:
        # By a thread: signals become exceptions on the main one, and in mid-start one would leave the process half told
        # what to do.
        with ThreadPoolExecutor(1) as starter:
            starter.submit(_start, process).result()
        theirs.close()
        while True:
            result, message = ours.recv()
            if message is None:
                return result  # type: ignore[no-any-return]
            if progress is not None:
                progress(*message)
    except EOFError:
        process.join()
        raise GeneratorDied(f"the load generator ended with exit code {process.exitcode} and no result") from None
    except BaseException:  # nobody waits for what it measures any more
        if process.pid is not None:
            process.kill()
        raise
    finally:
        ours.close()
        if process.pid is not None:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()


def _start(process: BaseProcess) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the process inherits that: Ctrl-C is for this one
    process.start()


def _main(work: Work[Order, Result], order: Order, pipe: Pipe) -> None:
    pipe.send((work(order, lambda fraction, answers: pipe.send((None, (fraction, answers)))), None))
    pipe.close()
