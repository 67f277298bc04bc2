"""The Open Inference Protocol over HTTP, by hand, and what its answers must be."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

HEADER = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Call:
    """The body of a request, and its headers."""

    content: bytes
    headers: dict[str, str]


def rows_call(rows: NDArray[np.uint8], outputs: Iterable[dict[str, Any]] = (), **more: Any) -> Call:
    """Rows as bytes; all outputs come as bytes, unless they say otherwise."""
    parameters = {"binary_data_size": rows.nbytes}
    tensor = {"name": "rows", "shape": rows.shape, "datatype": "UINT8", "parameters": parameters}
    return _binary(tensor, rows.tobytes(), outputs, more)


def files_call(files: Iterable[bytes], outputs: Iterable[dict[str, Any]] = (), **more: Any) -> Call:
    """Files that have yet to be decoded."""
    elements = [struct.pack("<I", len(file)) + file for file in files]
    data = b"".join(elements)
    parameters = {"binary_data_size": len(data)}
    tensor = {"name": "files", "shape": [len(elements)], "datatype": "BYTES", "parameters": parameters}
    return _binary(tensor, data, outputs, more)


def json_call(rows: NDArray[np.uint8], *, flat: bool = False, **more: Any) -> Call:
    """Rows as numbers in JSON, nested by their shape or in one list; outputs in JSON, too."""
    data = (rows.ravel() if flat else rows).tolist()
    tensor = {"name": "rows", "shape": rows.shape, "datatype": "UINT8", "data": data}
    return Call(json.dumps({"inputs": [tensor], **more}).encode(), {"Content-Type": "application/json"})


def _binary(tensor: dict[str, Any], data: bytes, outputs: Iterable[dict[str, Any]], more: dict[str, Any]) -> Call:
    parameters = {"binary_data_output": True, **more.pop("parameters", {})}
    call = {"inputs": [tensor], "outputs": list(outputs), "parameters": parameters, **more}
    text = json.dumps(call).encode()
    return Call(text + data, {HEADER: str(len(text)), "Content-Type": "application/octet-stream"})


def post(client: httpx.Client, model: str, call: Call, **headers: str) -> httpx.Response:
    """Have a model run; `model` may have a version, as in "colours/versions/1"."""
    return client.post(f"/v2/models/{model}/infer", content=call.content, headers=call.headers | headers)


def tensors(response: httpx.Response) -> dict[str, NDArray[Any]]:
    """The outputs of an answer by name, in its order: float32, or texts."""
    assert response.status_code == 200, response.text
    size = int(response.headers.get(HEADER, len(response.content)))
    document, behind = json.loads(response.content[:size]), memoryview(response.content)[size:]
    found = {}
    for output in document["outputs"]:
        if "data" in output:
            values = output["data"]
        else:
            part = behind[: output["parameters"]["binary_data_size"]]
            behind = behind[len(part) :]
            values = np.frombuffer(part, "<f4") if output["datatype"] == "FP32" else list(_texts(part))
        kind = np.float32 if output["datatype"] == "FP32" else object
        found[output["name"]] = np.array(values, kind).reshape(output["shape"])
    assert not behind
    return found


def _texts(elements: memoryview) -> Iterator[str]:
    while elements:
        (length,) = struct.unpack_from("<I", elements)
        yield bytes(elements[4 : 4 + length]).decode()
        elements = elements[4 + length :]


def noise(n: int, task: str = "image") -> NDArray[np.uint8]:
    """Rows of the coloured packages: uint8 [n, *row_shape], always the same."""
    shape = (8, 8, 3) if task == "image" else (4, 8, 8, 3)
    return np.random.default_rng(n).integers(0, 256, (n, *shape), np.uint8)


def expected(repository: Path, model: str, rows: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """What ONNX Runtime itself gives for rows, of a model in `feature_repository`."""
    session = ort.InferenceSession(repository / model / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    names = ["probabilities", "features"] if model != "plain" else ["probabilities"]
    return dict(zip(names, session.run(names, {"rows": rows}), strict=True))


def check_same(given: dict[str, NDArray[Any]], wanted: dict[str, NDArray[Any]]) -> None:
    """The same outputs in the same order, but for the order of float32 sums."""
    assert list(given) == list(wanted)
    for name, values in wanted.items():
        np.testing.assert_allclose(given[name], values, rtol=1e-5, atol=1e-6)


def problem(response: httpx.Response, status: int, code: str) -> str:
    """The detail of a problem, where both kinds of clients look for it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert set(body) == {"type", "title", "status", "detail", "code", "request_id", "error"}
    assert (body["status"], body["code"], body["error"]) == (status, code, body["detail"])
    assert body["request_id"] == response.headers["x-request-id"]
    return str(body["detail"])


def metrics(url: str) -> dict[str, float]:
    """Every series, by its name as the exposition has it."""
    lines = httpx.get(f"{url}/metrics", timeout=60).text.splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def wait_until(true: Callable[[], bool]) -> None:
    """Look again and again, with patience."""
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)
