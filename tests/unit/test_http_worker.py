"""An HTTP worker's own bounds."""

from __future__ import annotations

import resource

import pytest

from app.http_worker import within_descriptors
from app.main import connection_limits
from app.settings import Settings


@pytest.mark.parametrize(
    ("files", "connections", "lines"), [(1024, 512, 1), (2048, 1024, 0), (1 << 20, 1024, 0), (-1, 1024, 0)]
)
def test_connections_leave_half_of_the_descriptors_to_files(
    files: int, connections: int, lines: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (files, files))
    limits = connection_limits(Settings(max_connections=2048), 2)
    assert within_descriptors(limits).max_connections == connections
    assert within_descriptors(limits).max_header_bytes == limits.max_header_bytes
    assert len(caplog.messages) == 2 * lines
    assert all("no more than 1024 files" in message for message in caplog.messages)
