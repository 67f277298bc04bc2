"""The Open Inference Protocol where keys, several HTTP processes and the end of a server matter."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from colours import BLUE, GREEN, RED, image_of, video_of
from inference_http import (
    HEADER,
    check_same,
    expected,
    files_call,
    json_call,
    metrics,
    noise,
    post,
    problem,
    rows_call,
    tensors,
    wait_until,
)
from numpy.typing import NDArray
from raw_http import connect, post_head, read_response
from running_server import RunningServer

StartServer = Callable[..., RunningServer]
KEY = {"X-API-Key": "secret"}


@pytest.fixture(scope="module")
def locked_pair(tmp_path_factory: pytest.TempPathFactory, feature_repository: Path) -> Iterator[RunningServer]:
    """A ready server of two HTTP workers that asks for a key."""
    settings = {"http_workers": 2, "api_keys": "alice:secret"}
    server = RunningServer(tmp_path_factory.mktemp("server"), feature_repository, settings)
    yield server.wait_until_ready()
    assert server.stop() == 0, server.log
    assert "Traceback" not in server.log


def test_models_ask_for_a_key_and_health_for_none(locked_pair: RunningServer) -> None:
    for path in ("/v2", "/v2/health/live", "/v2/health/ready"):
        assert httpx.get(locked_pair.url + path, timeout=60).status_code == 200
    with httpx.Client(base_url=locked_pair.url, timeout=60) as stranger:
        for path in ("/v2/models/colours", "/v2/models/colours/ready", "/v2/models/nothing"):
            problem(stranger.get(path), 401, "unauthorized")
        problem(post(stranger, "colours", rows_call(noise(1))), 401, "unauthorized")
        assert stranger.get("/v2/models/colours", headers=KEY).status_code == 200
        assert post(stranger, "colours", rows_call(noise(1)), **KEY).status_code == 200


@pytest.mark.parametrize(
    ("model", "rows"), [("colours", noise(20)), ("colours_video", noise(2, "video"))], ids=["images", "videos"]
)
def test_each_of_several_http_workers_gives_what_the_graph_gives(
    locked_pair: RunningServer, feature_repository: Path, model: str, rows: NDArray[np.uint8]
) -> None:
    wanted = expected(feature_repository, model, rows)
    for _ in range(2):  # two connections, of which each worker gets one
        with httpx.Client(base_url=locked_pair.url, timeout=60, headers=KEY) as client:
            metadata = client.get(f"/v2/models/{model}").json()
            assert [output["name"] for output in metadata["outputs"]] == ["probabilities", "features"]
            for call in (rows_call(rows), json_call(rows)):
                check_same(tensors(post(client, model, call)), wanted)
            alone = rows_call(rows, [{"name": "probabilities"}])
            check_same(tensors(post(client, model, alone)), {"probabilities": wanted["probabilities"]})


def test_each_of_several_http_workers_decodes_files(locked_pair: RunningServer) -> None:
    top = {"name": "probabilities", "parameters": {"classification": 1}}
    for _ in range(2):
        with httpx.Client(base_url=locked_pair.url, timeout=60, headers=KEY) as client:
            for model, files, labels in (
                ("colours", [image_of(RED), image_of(BLUE)], ["red", "blue"]),
                ("colours_video", [video_of(GREEN)], ["green"]),
            ):
                names = tensors(post(client, model, files_call(files, [top])))["probabilities"]
                assert [name.split(":")[2] for name in names.ravel()] == labels


def test_a_request_that_was_accepted_is_finished_while_the_server_drains(
    start_server: StartServer, feature_repository: Path
) -> None:
    server = start_server(feature_repository, shutdown_grace_seconds=60).wait_until_ready()
    call = rows_call(noise(2))
    headers = [f"{name}: {value}" for name, value in call.headers.items() if name == HEADER]
    head = post_head("/v2/models/colours/infer", "", f"Content-Length: {len(call.content)}", *headers)
    with connect(server.port, 60) as connection:
        connection.sendall(head + call.content[:-1])
        wait_until(lambda: metrics(server.url)["hiera_in_flight_rows"] == 2)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("draining")
        refused = problem(httpx.get(f"{server.url}/v2/health/ready"), 503, "not_ready")
        assert "shutting down" in refused
        assert httpx.get(f"{server.url}/v2/health/live").status_code == 200
        server.process.send_signal(signal.SIGTERM)  # ends the grace
        server.wait_for("no further requests")
        assert server.process.poll() is None
        connection.sendall(call.content[-1:])
        response = read_response(connection)
        assert response.status == 200
        document = json.loads(response.body[: int(response.headers[HEADER.lower()])])
        assert [output["shape"] for output in document["outputs"]] == [[2, 3], [2, 3]]
    assert server.process.wait(30) == 0
