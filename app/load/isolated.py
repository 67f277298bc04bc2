"""Runs a plan in a process of its own, so that drawing a progress bar or keeping results never delays a request."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection as Pipe

from app.errors import HieraError
from app.load.generator import Plan, Progress, Samples, run_plan


class GeneratorDied(HieraError):
    code = "generator_died"


def run_isolated(plan: Plan, progress: Progress | None = None) -> Samples:
    """As `run_plan`, from a fresh process; `progress` is called in this one.

    Raises:
        GeneratorDied: the process ended without a result.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_main, args=(plan, theirs), name="load-generator", daemon=True)
    process.start()
    theirs.close()
    try:
        while True:
            message = ours.recv()
            if isinstance(message, Samples):
                return message
            if progress is not None:
                progress(*message)
    except EOFError:
        process.join()
        raise GeneratorDied(f"the load generator ended with exit code {process.exitcode} and no result") from None
    finally:
        ours.close()
        process.join(timeout=5)
        if process.is_alive():
            process.kill()


def _main(plan: Plan, pipe: Pipe) -> None:
    pipe.send(run_plan(plan, lambda fraction, answers: pipe.send((fraction, answers))))
    pipe.close()
