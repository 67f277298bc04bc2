"""Processes from outside, with some that this test starts."""

from __future__ import annotations

import os
import subprocess
import sys

from app.load.processes import (
    media_workers,
    peak_resident_bytes,
    process_tree,
    pss_bytes,
    read_proc,
    resident_bytes,
    session_members,
)

# Starts a child of its own that calls itself as a worker does, tells its id, and waits until its input ends.
PARENT = """
import pathlib, subprocess, sys
named = "import pathlib, sys; pathlib.Path('/proc/self/comm').write_text('media-image'); print(flush=True); input()"
child = subprocess.Popen([sys.executable, "-S", "-c", named], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
sys.stdin.read()
child.kill()
child.wait()
"""


def test_a_tree_and_a_session_are_seen_with_their_memory_and_nothing_once_they_ended() -> None:
    command = [sys.executable, "-S", "-c", PARENT]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert process_tree(parent.pid) == [parent.pid, child]
        assert process_tree(os.getpid())[0] == os.getpid()
        assert {parent.pid, child} <= set(process_tree(os.getpid()))
        assert sorted(session_members(parent.pid)) == sorted([parent.pid, child])
        assert media_workers(parent.pid) == [child]
        assert 0 < pss_bytes(child) <= resident_bytes(child) <= peak_resident_bytes(child)
        parent.communicate()
    assert process_tree(parent.pid) == [parent.pid]
    assert session_members(parent.pid) == []
    assert pss_bytes(child) == resident_bytes(child) == 0
    assert read_proc(child, "comm") == b""
