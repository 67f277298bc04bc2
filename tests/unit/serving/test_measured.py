"""What is kept for the next start: whole, or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from app.serving.curve import BatchCurve
from app.serving.measured import Measured, MeasuredStore
from app.serving.model import EngineTrial

KEY = ("graph", "machine")
MEASURED = Measured("openvino", (EngineTrial("openvino", 0.01, "passed"),), 2, BatchCurve((1, 2), (0.01, 0.02)))


def test_what_was_written_is_read_under_its_key_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = MeasuredStore(tmp_path / "made" / "on demand")
    assert store.read(KEY) is None
    store.write(KEY, MEASURED)
    assert store.read(KEY) == MEASURED
    assert store.read(("graph", "another machine")) is None
    assert caplog.messages == [], "there is nothing to tell of a first start"


def test_a_file_under_another_key_s_name_is_not_taken_for_that_key_s(tmp_path: Path) -> None:
    store, other = MeasuredStore(tmp_path), ("graph", "another machine")
    store.write(KEY, MEASURED)
    (of_key,) = tmp_path.iterdir()
    store.write(other, MEASURED)
    (of_other,) = set(tmp_path.iterdir()) - {of_key}
    of_key.replace(of_other)
    assert store.read(other) is None


def test_a_store_without_a_folder_keeps_nothing_and_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    store = MeasuredStore(None)
    store.write(KEY, MEASURED)
    assert store.read(KEY) is None
    assert caplog.messages == []


def test_two_writers_never_write_the_same_file_though_their_process_ids_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of two containers that share a volume."""
    written: list[Path] = []
    write_text = Path.write_text

    def write_after_another(path: Path, text: str, encoding: str) -> int:
        written.append(path)
        if len(written) == 1:
            MeasuredStore(tmp_path).write(KEY, MEASURED)
        return write_text(path, text, encoding)

    monkeypatch.setattr(Path, "write_text", write_after_another)
    MeasuredStore(tmp_path).write(KEY, MEASURED)
    assert len(set(written)) == 2
    assert MeasuredStore(tmp_path).read(KEY) == MEASURED
    assert len(list(tmp_path.iterdir())) == 1


def test_a_disk_that_is_full_is_said_and_leaves_nothing_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def half(path: Path, text: str, encoding: str) -> int:
        path.write_bytes(text[: len(text) // 2].encode(encoding))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", half)
    MeasuredStore(tmp_path).write(KEY, MEASURED)
    assert caplog.messages == [f"measurements cannot be kept in {tmp_path} (No space left on device)"]
    assert list(tmp_path.iterdir()) == []
