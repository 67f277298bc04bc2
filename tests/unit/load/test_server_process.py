import os
import sys
import time

import pytest

from app.errors import Unavailable
from app.load.server import ServerProcess, free_port

# Serves an empty folder and starts a child that would outlive it.
PROGRAM = """
import http.server, pathlib, subprocess, sys, tempfile
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path(sys.argv[2]).write_text(str(child.pid))
handler = lambda *a: http.server.SimpleHTTPRequestHandler(*a, directory=tempfile.mkdtemp())
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), handler).serve_forever()
"""


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] != "Z"


def test_a_server_is_ready_when_it_answers_and_takes_its_children_with_it(tmp_path) -> None:  # type: ignore[no-untyped-def]
    port = free_port()
    note = tmp_path / "pid"
    command = [sys.executable, "-c", PROGRAM, str(port), str(note)]
    with ServerProcess(command, port=port, ready_path="/") as server:
        assert server.ready_s > 0
        assert server.memory_bytes() > 1_000_000
        child = int(note.read_text())
        assert is_alive(child)
    for _ in range(100):
        if not is_alive(child):
            break
        time.sleep(0.05)
    assert not is_alive(child)


def test_a_server_that_ends_at_once_says_what_it_printed() -> None:
    command = [sys.executable, "-c", "print('no such setting'); raise SystemExit(3)"]
    with (
        pytest.raises(Unavailable, match=r"(?s)exit code 3.*no such setting"),
        ServerProcess(command, port=free_port()),
    ):
        pass


def test_a_server_that_never_answers_is_given_up_and_stopped() -> None:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    server = ServerProcess(command, port=free_port(), ready_timeout_s=0.3)
    with pytest.raises(Unavailable, match="not ready"), server:
        pass
