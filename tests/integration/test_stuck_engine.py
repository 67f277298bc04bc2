"""A real engine that never returns, in a real server: noticed by progress, rebuilt, in the end a case for a restart."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
from colours import BLUE, RED, image_of, write_colour_package
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from running_server import RunningServer

from app.repository.store import sha256

StartServer = Callable[..., RunningServer]
WHITE = (255, 255, 255)


def hang_on_white(package: Path) -> None:
    """Make the model of `package` count to 10^15 before it answers to a white picture."""
    path = package / "model.onnx"
    model = onnx.load(path)
    mean = next(node for node in model.graph.node if "mean" in node.output)
    mean.output[0] = "mean_before"
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["go_on_still"]), helper.make_node("Identity", ["held"], ["held_on"])],
        "count",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("held", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on_still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("held_on", TensorProto.FLOAT, None),
        ],
    )
    constants: dict[str, NDArray[Any]] = {"nearly": np.array(0.97, np.float32), "long": np.array(10**15, np.int64)}
    constants["yes"] = np.array(True)
    nodes = [
        helper.make_node("ReduceMin", ["mean_before"], ["darkest"], keepdims=0),
        helper.make_node("Greater", ["darkest", "nearly"], ["white"]),
        helper.make_node("Cast", ["white"], ["once"], to=TensorProto.INT64),
        helper.make_node("Mul", ["once", "long"], ["turns"]),
        helper.make_node("Loop", ["turns", "yes", "mean_before"], ["mean"], body=body),
    ]
    at = list(model.graph.node).index(mean) + 1
    for offset, node in enumerate(nodes):
        model.graph.node.insert(at + offset, node)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    onnx.save(model, path)
    manifest = json.loads((package / "model.json").read_text())
    manifest["files"]["model.onnx"] = sha256(path)
    (package / "model.json").write_text(json.dumps(manifest))


def classify(running: RunningServer, model: str, colour: tuple[int, int, int]) -> httpx.Response:
    url = f"{running.url}/classify/image?model={model}"
    return httpx.post(url, content=image_of(colour), timeout=60)


def health(running: RunningServer, what: str) -> tuple[int, str]:
    response = httpx.get(f"{running.url}/health/{what}", timeout=60)
    return response.status_code, response.text


def until_ready(running: RunningServer, ready: bool) -> str:
    """Wait until readiness is so, and return what it says."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        status, text = health(running, "ready")
        if (status == 200) is ready:
            return text
        time.sleep(0.02)
    raise AssertionError(running.log)


def test_an_engine_that_never_returns_is_replaced_until_only_a_restart_helps(
    start_server: StartServer, tmp_path: Path
) -> None:
    write_colour_package(tmp_path, "steady")
    hang_on_white(write_colour_package(tmp_path, "hanging"))
    running = start_server(tmp_path, engine_stuck_seconds=1, engine_stuck_factor=1, engine_threads=1).wait_until_ready()
    for times_stuck in (1, 2, 3):
        assert classify(running, "hanging", RED).json()["predictions"][0]["label"] == "red"
        stuck = classify(running, "hanging", WHITE)
        # Whoever was in the batch pays, once and soon; it is not tried again, as it may be the reason.
        assert (stuck.status_code, stuck.json()["code"]) == (500, "internal_error"), stuck.text
        assert "being rebuilt" in until_ready(running, ready=False)
        assert classify(running, "steady", BLUE).json()["predictions"][0]["label"] == "blue"
        if times_stuck < 3:
            assert health(running, "live")[0] == 200
            until_ready(running, ready=True)
    assert classify(running, "hanging", BLUE).status_code == 503
    status, text = health(running, "live")
    assert status == 503
    assert "the engine of hanging cannot be had again" in text
    assert classify(running, "steady", RED).json()["predictions"][0]["label"] == "red"
    assert running.log.count("the engine is back") == 2
    assert running.stop() == 0
