"""The Open Inference Protocol over gRPC against real server processes: the answers, keys and drains of HTTP."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import inference_http as http_form
import numpy as np
import pytest
from colours import BLUE, GREEN, RED, image_of, video_of, write_colour_package
from inference_grpc import files_message, message, method, rows_message, tensors
from numpy.typing import NDArray
from running_server import RunningServer

from app.load.processes import media_workers, process_tree, read_proc
from app.load.server import free_port

StartServer = Callable[..., RunningServer]
PATIENCE_S = 60.0
PICTURES = [image_of(RED), image_of(BLUE, (320, 200), "PNG"), image_of((90, 120, 100), (48, 64), "WEBP")]


class Caller:
    """A channel with a connection of its own to the gRPC port of this machine."""

    def __init__(self, port: int) -> None:
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)])

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *error: object) -> None:
        self._channel.close()

    def __call__(self, name: str, sent: Any = None, **metadata: str) -> Any:
        """The answer of a method; raises grpc.RpcError."""
        listed = [(key.replace("_", "-"), value) for key, value in metadata.items()]
        return method(self._channel, name)(sent or message(name), timeout=PATIENCE_S, metadata=listed)

    def begin(self, name: str, sent: Any) -> Any:
        """A call whose answer is waited for later."""
        return method(self._channel, name).future(sent, timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`colours` and `colours_video`, which give features, too."""
    root = tmp_path_factory.mktemp("model_repo")
    write_colour_package(root, "colours", features=True)
    write_colour_package(root, "colours_video", task="video", features=True)
    return root


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[tuple[RunningServer, int]]:
    """A ready server of one process, and its gRPC port."""
    port = free_port()
    settings = {"grpc_port": port, "max_queue_rows": 40, "engine_instances": 1}  # the same batches each time
    server = RunningServer(tmp_path_factory.mktemp("server"), repository, settings)
    yield server.wait_until_ready(), port
    assert server.stop() == 0, server.log
    assert "Traceback" not in server.log
    assert all(line.startswith("{") for line in server.log.splitlines())  # gRPC's library has a log of its own


@pytest.fixture(scope="module")
def locked_pair(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[tuple[RunningServer, int]]:
    """A ready server of two HTTP workers that asks for a key, and its gRPC port."""
    port = free_port()
    settings = {"grpc_port": port, "http_workers": 2, "api_keys": "alice:secret"}
    server = RunningServer(tmp_path_factory.mktemp("server"), repository, settings)
    yield server.wait_until_ready(), port
    assert server.stop() == 0, server.log


@pytest.fixture
def call(running: tuple[RunningServer, int]) -> Iterator[Caller]:
    with Caller(running[1]) as caller:
        yield caller


@pytest.fixture
def http(running: tuple[RunningServer, int]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running[0].url, timeout=PATIENCE_S) as client:
        yield client


def noise(n: int, task: str = "image") -> NDArray[np.uint8]:
    """uint8 [n, *row_shape]."""
    shape = (8, 8, 3) if task == "image" else (4, 8, 8, 3)
    return np.random.default_rng(n).integers(0, 256, (n, *shape), np.uint8)


def refused(ask: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    """The status and the details of a call that is refused."""
    with pytest.raises(grpc.RpcError) as error:
        ask()
    return error.value.code(), error.value.details()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def check_same_bits(given: dict[str, NDArray[Any]], wanted: dict[str, NDArray[Any]]) -> None:
    assert list(given) == list(wanted)
    for name, values in wanted.items():
        assert (given[name].shape, given[name].dtype) == (values.shape, values.dtype)
        assert given[name].tolist() == values.tolist()


@pytest.mark.parametrize("model", ["colours", "colours_video"])
def test_rows_get_exactly_what_they_get_over_http(call: Caller, http: httpx.Client, model: str) -> None:
    rows = noise(5, "video" if "video" in model else "image")
    answer = call("ModelInfer", rows_message(rows, model, id="42", model_version="1"))
    check_same_bits(tensors(answer), http_form.tensors(http_form.post(http, model, http_form.rows_call(rows))))
    assert list(tensors(answer)) == ["probabilities", "features"]
    assert (answer.model_name, answer.model_version, answer.id) == (model, "1", "42")
    typed = {"name": "rows", "datatype": "UINT8", "shape": rows.shape, "contents": {"uint_contents": rows.ravel()}}
    check_same_bits(
        tensors(call("ModelInfer", message("ModelInfer", model_name=model, inputs=[typed]))), tensors(answer)
    )


def test_files_get_exactly_what_they_get_over_http(call: Caller, http: httpx.Client) -> None:
    for model, file in (*(("colours", picture) for picture in PICTURES), ("colours_video", video_of(GREEN, BLUE))):
        over_http = http_form.tensors(http_form.post(http, model, http_form.files_call([file])))
        check_same_bits(tensors(call("ModelInfer", files_message([file], model))), over_http)
    together = tensors(call("ModelInfer", files_message(PICTURES)))  # in batches as they come
    assert together["probabilities"].argmax(1).tolist() == [0, 2, 1]
    assert together["features"].shape == (3, 3)


def test_outputs_come_as_they_were_asked_for(call: Caller, http: httpx.Client) -> None:
    rows = noise(4)
    assert list(tensors(call("ModelInfer", rows_message(rows, outputs=["features", "probabilities"])))) == [
        "features",
        "probabilities",
    ]
    sent = rows_message(rows, outputs=["probabilities"])
    sent.outputs[0].parameters["classification"].int64_param = 2
    top = {"name": "probabilities", "parameters": {"classification": 2}}
    over_http = http_form.tensors(http_form.post(http, "colours", http_form.rows_call(rows, [top])))
    check_same_bits(tensors(call("ModelInfer", sent)), over_http)
    sent.outputs[0].parameters["binary_data"].bool_param = False  # JSON is no choice here
    check_same_bits(tensors(call("ModelInfer", sent)), over_http)


def test_the_server_and_its_models_say_what_they_say_over_http(call: Caller, http: httpx.Client) -> None:
    assert call("ServerLive").live
    assert call("ServerReady").ready
    server, metadata = call("ServerMetadata"), http.get("/v2").json()
    assert {"name": server.name, "version": server.version, "extensions": list(server.extensions)} == metadata
    for version in ("", "1"):
        assert call("ModelReady", message("ModelReady", name="colours_video", version=version)).ready
        model = call("ModelMetadata", message("ModelMetadata", name="colours_video", version=version))
        metadata = http.get("/v2/models/colours_video").json()
        assert (model.name, list(model.versions), model.platform) == tuple(
            metadata[key] for key in ("name", "versions", "platform")
        )
        for key in ("inputs", "outputs"):
            assert metadata[key] == [
                {"name": each.name, "datatype": each.datatype, "shape": list(each.shape)}
                for each in getattr(model, key)
            ]


@pytest.mark.parametrize(
    ("model", "version"), [("nothing", ""), ("colours", "2"), ("colours", "01"), ("../colours", "")]
)
def test_another_model_or_version_is_not_found(call: Caller, model: str, version: str) -> None:
    for name in ("ModelReady", "ModelMetadata"):
        status, _ = refused(lambda name=name: call(name, message(name, name=model, version=version)))  # type: ignore[misc]
        assert status is grpc.StatusCode.NOT_FOUND
    status, _ = refused(lambda: call("ModelInfer", rows_message(noise(1), model, model_version=version)))
    assert status is grpc.StatusCode.NOT_FOUND


def test_a_refusal_has_the_words_of_the_http_form(call: Caller, http: httpx.Client) -> None:
    rows = noise(1, "video")
    problem = http_form.post(http, "colours", http_form.rows_call(rows)).json()
    assert problem["status"] == 422
    said = refused(lambda: call("ModelInfer", rows_message(rows)))
    assert said == (grpc.StatusCode.INVALID_ARGUMENT, problem["detail"])
    spoilt = refused(lambda: call("ModelInfer", files_message([b"no picture"])))
    assert spoilt[0] is grpc.StatusCode.INVALID_ARGUMENT
    late = rows_message(noise(1), parameters={"timeout": {"int64_param": 1}})
    assert refused(lambda: call("ModelInfer", late))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    nonsense = rows_message(noise(1), parameters={"timeout": {"string_param": "soon"}})
    status, details = refused(lambda: call("ModelInfer", nonsense))
    assert (status, "parameters.timeout" in details) == (grpc.StatusCode.INVALID_ARGUMENT, True)


def metrics(url: str) -> dict[str, float]:
    lines = httpx.get(f"{url}/metrics", timeout=PATIENCE_S).text.splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def access_lines(server: RunningServer, request_id: str) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in server.log.splitlines() if request_id in line)
    return [line for line in lines if line["logger"] == "hiera.access" and line["request_id"] == request_id]


def test_calls_are_counted_and_logged_like_requests(running: tuple[RunningServer, int], call: Caller) -> None:
    server, _ = running
    before = metrics(server.url)
    call("ModelInfer", rows_message(noise(5)), x_request_id="grpc-1")
    refused(lambda: call("ModelInfer", files_message([b"no picture"]), x_request_id="grpc-2"))
    after = metrics(server.url)
    for series, rise in {
        'hiera_requests_total{code="200",model="colours",task="image"}': 1,
        'hiera_requests_total{code="415",model="colours",task="image"}': 1,
        'hiera_rows_total{model="colours"}': 5,
        'hiera_stage_duration_seconds_count{model="colours",stage="inference"}': 1,
    }.items():
        assert after[series] - before.get(series, 0) == rise, series
    (line,) = access_lines(server, "grpc-1")
    told = {"path": "/v2/models/colours/infer", "status": 200, "model": "colours", "files": 5, "client": "127.0.0.1"}
    assert told.items() <= line.items()
    assert line["body_bytes"] > 5 * 8 * 8 * 3
    assert [line["status"] for line in access_lines(server, "grpc-2")] == [415]


def test_models_ask_for_a_key_and_health_for_none(locked_pair: tuple[RunningServer, int]) -> None:
    with Caller(locked_pair[1]) as call:
        assert call("ServerLive").live
        assert call("ServerReady").ready
        assert call("ServerMetadata").name == "hiera-serve"
        asked = {name: message(name, name="colours") for name in ("ModelReady", "ModelMetadata")}
        asked["ModelInfer"] = rows_message(noise(1))
        for name, sent in asked.items():
            for key in ({}, {"x_api_key": "secre"}, {"authorization": "Basic secret"}):
                status, _ = refused(lambda name=name, sent=sent, key=key: call(name, sent, **key))  # type: ignore[misc]
                assert status is grpc.StatusCode.UNAUTHENTICATED
            call(name, sent, x_api_key="secret")
            call(name, sent, authorization="Bearer secret")


def holders(server: RunningServer, port: int) -> set[int]:
    """The processes of a server that have a connection of a port, by the kernel's tables of sockets."""
    tables = [Path(f"/proc/net/{table}").read_text().splitlines()[1:] for table in ("tcp", "tcp6")]
    rows = [row.split() for table in tables for row in table]
    links = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "01"}
    found = set()
    for pid in process_tree(server.process.pid):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            if descriptor.is_symlink() and os.readlink(descriptor) in links:
                found.add(pid)
    return found


def test_http_workers_share_the_port_and_answer_alike(locked_pair: tuple[RunningServer, int]) -> None:
    server, port = locked_pair
    callers = [Caller(port) for _ in range(32)]  # which worker gets a connection is the kernel's choice
    answers = [caller("ModelInfer", rows_message(noise(3)), x_api_key="secret") for caller in callers]
    workers = holders(server, port)
    for caller in callers:
        caller.__exit__()
    assert len(workers) == 2
    assert all(b"app.http_worker" in read_proc(pid, "cmdline") for pid in workers)
    for answer in answers:
        check_same_bits(tensors(answer), tensors(answers[0]))


def test_a_call_that_was_taken_in_is_answered_while_the_server_drains(
    start_server: StartServer, repository: Path
) -> None:
    port = free_port()
    patience = {"image_timeout_seconds": 600, "image_decode_timeout_seconds": 600, "shutdown_grace_seconds": 600}
    server = start_server(repository, grpc_port=port, **patience).wait_until_ready()
    workers = media_workers(server.process.pid)
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    with Caller(port) as call, Caller(port) as another:
        held = call.begin("ModelInfer", files_message([image_of(GREEN)]))
        until(lambda: metrics(server.url)["hiera_in_flight_rows"] == 1)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("draining")
        assert (another("ServerLive").live, another("ServerReady").ready) == (True, False)
        assert list(tensors(another("ModelInfer", rows_message(noise(2)))))  # within the grace
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("no further requests")
        assert refused(lambda: another("ModelInfer", rows_message(noise(2))))[0] is grpc.StatusCode.UNAVAILABLE
        until(lambda: refuses_connections(port))
        assert (server.process.poll(), held.done()) == (None, False)
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
        assert tensors(held.result())["probabilities"].argmax(1).tolist() == [1]
    assert server.process.wait(PATIENCE_S) == 0, server.log
    assert "not finished" not in server.log


def refuses_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False


def test_calls_under_load_lose_nothing_when_the_server_ends(start_server: StartServer, repository: Path) -> None:
    port = free_port()
    server = start_server(repository, grpc_port=port, http_workers=2, max_batch_rows=2).wait_until_ready()
    ends: dict[str, tuple[str, str]] = {}

    def send_until_the_end(sender: int) -> None:
        with Caller(port) as call:
            for number in itertools.count():
                name = f"grpc-{sender}-{number}"
                try:
                    call("ModelInfer", rows_message(noise(1 + number % 3)), x_request_id=name)
                    ends[name] = ("OK", "")
                except grpc.RpcError as error:
                    ends[name] = (error.code().name, error.details())
                    if server.process.poll() is not None:
                        return

    with ThreadPoolExecutor(6) as senders:
        sending = [senders.submit(send_until_the_end, sender) for sender in range(6)]
        until(lambda: len(ends) > 100)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE_S) == 0, server.log
        for each in sending:
            each.result()
    # What comes in the moment of the stop, nobody has taken in; gRPC's library calls some of it cancelled.
    assert {status for status, _ in ends.values()} <= {"OK", "UNAVAILABLE", "CANCELLED"}
    lines = [json.loads(line) for line in server.log.splitlines() if "/v2/models/colours/infer" in line]
    taken_in = {line["request_id"]: line["status"] for line in lines if "method" in line}
    assert set(taken_in.values()) <= {200, 503}
    assert {name for name, end in ends.items() if end[0] == "OK"} == {
        name for name, status in taken_in.items() if status == 200
    }
    assert {name for name, end in ends.items() if "shutting down" in end[1]} == {
        name for name, status in taken_in.items() if status == 503
    }
    assert "Traceback" not in server.log


def test_a_port_that_was_asked_for_and_is_taken_is_said_in_one_line(start_server: StartServer) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    with taken, pytest.raises(AssertionError, match="ended with 1") as ended:
        start_server(grpc_port=taken.getsockname()[1])
    (line,) = str(ended.value).splitlines()[1:]
    assert json.loads(line)["level"] == "error"
    assert "HIERA_GRPC_PORT" in line


@pytest.mark.parametrize("port", ["70000", "-1", "grpc"])
def test_a_port_that_is_none_is_refused(start_server: StartServer, port: str) -> None:
    with pytest.raises(AssertionError, match=r"(?s)ended with 2.*HIERA_GRPC_PORT"):
        start_server(grpc_port=port)


def test_without_its_library_the_server_speaks_http_and_says_so(
    start_server: StartServer, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text('import sys\nsys.modules["grpc"] = None\n')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    port = free_port()
    server = start_server(repository, grpc_port=port).wait_until_ready()
    server.wait_for(r"HIERA_GRPC_PORT has no effect without gRPC: install hiera-serve\[grpc\]")
    (listening,) = (json.loads(line) for line in server.log.splitlines() if '"listening"' in line)
    assert "grpc" not in listening
    answer = httpx.post(f"{server.url}/classify/image?model=colours", content=image_of(RED), timeout=PATIENCE_S)
    assert answer.json()["predictions"][0]["label"] == "red"
    assert refuses_connections(port)
    assert server.stop() == 0, server.log
