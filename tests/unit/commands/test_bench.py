"""`hiera-serve bench` against a small server on a real socket that answers as ours does."""

from __future__ import annotations

import argparse
import http.server
import json
import os
import socket
import threading
from array import array
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from app.commands import bench
from app.errors import InvalidParameter, Unavailable
from app.load.generator import Samples, Workload

MODEL = {"batch_curve": [{"rows": 1, "milliseconds": 2.0}, {"rows": 2, "milliseconds": 1.0}]}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    noop = False
    status = 200
    models = MODEL

    def do_GET(self) -> None:
        assert self.path in ("/models", "/models/tiny")
        self._send(401 if self.status == 401 else 200, json.dumps(self.models).encode(), "application/json")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        model = {"name": "tiny", "engine": "openvino", "precision": "bf16", **({"noop": True} if self.noop else {})}
        self._send(self.status, json.dumps({"model": model, "code": "overloaded"}).encode(), "application/json")

    def _send(self, status: int, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Server-Timing", "decode;dur=0.01, inference;dur=0.02")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    handler = type("Chosen", (Handler,), getattr(request, "param", {}))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(["--seconds", "0.3", "--warmup", "0.05", *words])


def test_a_running_server_is_measured_and_the_figures_are_written(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--url", url, "--connections", "1,2", "--rates", "30", "--output", str(tmp_path))
    assert bench.run(arguments(*words)) == 0
    table = capsys.readouterr().out
    assert "tiny on openvino bf16" in table
    assert "2,000.0 rows/s" in table  # two rows in a millisecond
    for load in ("1 connection ", "2 connections", "30.0/s offered"):
        assert load in table
    results = json.loads((tmp_path / "results.json").read_text())
    assert [run["errors"] for run in results["runs"]] == [{}, {}, {}]
    assert all(run["succeeded"] > 0 and run["overhead_ms"]["p50"] > 0 for run in results["runs"])
    assert ElementTree.parse(tmp_path / "latency.svg").getroot().tag.endswith("svg")


@pytest.mark.parametrize("url", [{"noop": True}], indirect=True)
def test_the_no_op_engine_is_named_and_has_no_efficiency(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    bench.run(arguments("--url", url, "--connections", "1", "--rates", "none"))
    table = capsys.readouterr().out
    assert "no-op engine is on" in table
    assert "%" not in table


@pytest.mark.parametrize("url", [{"status": 429}], indirect=True)
def test_a_server_that_only_refuses_is_a_failure_with_its_errors_counted(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.run(arguments("--url", url, "--connections", "1", "--rates", "none", "--json")) == 1
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert run["succeeded"] == 0
    assert run["errors"]["429"] == run["answers"] > 0


@pytest.mark.parametrize("url", [{"models": {"batch_curve": [{"rows": 1, "milliseconds": 0}]}}], indirect=True)
def test_a_batch_that_took_no_time_costs_the_efficiency_and_not_the_results(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.run(arguments("--url", url, "--connections", "1", "--rates", "none", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["engine_rows_per_s"] is None


def test_an_output_that_is_no_folder_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidParameter, match=r"file: cannot be written \(File exists\)"):
        bench.run(arguments("--url", "http://127.0.0.1:9", "--output", str(tmp_path / "file")))


def test_an_output_that_cannot_be_written_does_not_cost_the_table(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.json").mkdir()
    with pytest.raises(InvalidParameter, match=r"results\.json: cannot be written"):
        bench.run(arguments("--url", url, "--connections", "1", "--rates", "none", "--output", str(tmp_path)))
    assert "1 connection " in capsys.readouterr().out


def test_automatic_rates_are_parts_of_what_the_fastest_closed_loop_reached(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    workloads: list[Workload] = []

    def run_isolated(workload: Workload, progress: object) -> Samples:
        workloads.append(workload)
        answers = 10 * workload.connections if workload.rate_per_s is None else 1
        times = array("d", [0.01] * answers)
        return Samples(array("h", [200] * answers), times, times, [b""] * answers, seconds=1.0)

    monkeypatch.setattr(bench, "run_isolated", run_isolated)
    bench.run(arguments("--url", url, "--connections", "1,40,2"))
    assert [workload.connections for workload in workloads if workload.rate_per_s is None] == [1, 40, 2]
    opened = [workload for workload in workloads if workload.rate_per_s is not None]
    assert [workload.rate_per_s for workload in opened] == [100.0, 200.0, 300.0, 360.0, 440.0]
    # Where too few may be open at once, the loop is closed again.
    assert {workload.connections for workload in opened} == {512}


@pytest.mark.parametrize("url", [{"models": {**MODEL, "instances": 3}}], indirect=True)
def test_the_bare_engine_s_rate_is_that_of_all_its_instances(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    bench.run(arguments("--url", url, "--connections", "1", "--rates", "none", "--json"))
    assert json.loads(capsys.readouterr().out)["engine_rows_per_s"] == 6000.0


def test_another_machine_is_not_loaded() -> None:
    with pytest.raises(InvalidParameter, match="--allow-remote"):
        bench.run(arguments("--url", "http://192.0.2.1:8000"))


def test_a_missing_file_is_named_before_anything_is_started() -> None:
    with pytest.raises(InvalidParameter, match=r"nowhere\.jpg"):
        bench.run(arguments("nowhere.jpg"))


def test_the_sample_photo_is_there() -> None:
    assert bench.SAMPLE_PHOTO.read_bytes().startswith(b"\xff\xd8")


@pytest.mark.parametrize("url", [{"status": 401}], indirect=True)
def test_a_server_that_wants_a_key_is_not_asked_a_thousand_times(url: str) -> None:
    with pytest.raises(Unavailable, match=r"answers 401: give a key that opens it with --api-key"):
        bench.run(arguments("--url", url))


def test_an_address_where_nobody_listens_is_said_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(Unavailable, match=f"http://127.0.0.1:{port} does not answer: .*refused"):
        bench.run(arguments("--url", f"http://127.0.0.1:{port}"))


def test_nothing_to_measure_is_refused(url: str) -> None:
    with pytest.raises(InvalidParameter, match="nothing is to be measured"):
        bench.run(arguments("--url", url, "--connections", "0"))
    assert bench.run(arguments("--url", url, "--connections", "0", "--rates", "20")) == 0


def test_a_file_s_name_need_not_be_text(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = Path(os.fsdecode(bytes(tmp_path) + b'/\xff"\r\n.jpg'))
    photo.write_bytes(b"pixels")
    assert bench.run(arguments(str(photo), "--url", url, "--connections", "1", "--rates", "none")) == 0
    assert '\\udcff"\\r\\n.jpg' in capsys.readouterr().out
