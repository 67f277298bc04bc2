"""What a benchmark writes down of the machine and of itself."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import pytest

from benchmarks.results import add_output_argument, write_document, write_results


def test_the_load_that_is_written_down_is_not_the_benchmarks_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = [0.25]
    monkeypatch.setattr(os, "getloadavg", lambda: (load[0], 0.0, 0.0))
    parser = argparse.ArgumentParser()
    add_output_argument(parser)
    path = tmp_path / "results.json"
    arguments = parser.parse_args(["--output", str(path)])
    load[0] = 16.0
    write_results(arguments.output, "waiting", vars(arguments), {"seconds": 1})
    document = json.loads(path.read_text())
    assert document["machine"]["load_before"] == 0.25
    assert document["method"] == {"output": str(path)}
    assert document["measured"] == {"seconds": 1}


def test_nothing_is_written_unless_asked() -> None:
    parser = argparse.ArgumentParser()
    add_output_argument(parser)
    write_results(parser.parse_args([]).output, "waiting", {}, {})


def test_a_link_such_as_dev_stdout_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_document(tmp_path / "link", [1])
    assert (tmp_path / "link").is_symlink()
    assert json.loads((tmp_path / "file").read_text()) == [1]
