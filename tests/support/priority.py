"""Undoes what an encoder does to the process that it runs in."""

from __future__ import annotations

import os


def take_ordinary_priority() -> None:
    """Call it after encoding AV1: for root, SVT-AV1 makes the calling thread a real-time one, ahead of everything else
    on the machine, and every process started afterwards inherits that.
    """
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
