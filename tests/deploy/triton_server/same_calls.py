# mypy: ignore-errors
"""The same calls of NVIDIA's own client go to Triton and to this project's server, which speaks the Open Inference
Protocol too: what differs in what comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import tritonclient.http as http
from tritonclient.utils import InferenceServerException

from app.repository.store import Package

Client = http.InferenceServerClient
OUTPUTS = ("probabilities", "features")


def differences(triton: Client, ours: Client, package: Package, tolerance: float) -> list[str]:
    """What a caller would notice who moves from one server to the other; nothing, if all is well."""
    return [
        *_of_metadata(triton, ours, package),
        *_of_numbers(triton, ours, package, tolerance),
        *_of_classes(triton, ours, package, tolerance),
        *_of_errors(triton, ours, package),
    ]


def input_of(rows: np.ndarray, *, binary: bool = True, name: str = "rows", datatype: str = "UINT8") -> http.InferInput:
    tensor = http.InferInput(name, rows.shape, datatype)
    tensor.set_data_from_numpy(rows, binary_data=binary)
    return tensor


def _of_metadata(triton: Client, ours: Client, package: Package) -> Iterator[str]:
    name, version = package.manifest.name, str(package.manifest.version)
    for client in (triton, ours):
        states = (client.is_server_live(), client.is_server_ready(), client.is_model_ready(name, version))
        if states != (True, True, True) or client.is_model_ready("nothing"):
            yield f"readiness is {states}, or there is a model named nothing"
    theirs, mine = triton.get_model_metadata(name), ours.get_model_metadata(name, version)
    for part in ("name", "versions"):
        if theirs[part] != mine[part]:
            yield f"{part} is {mine[part]} instead of {theirs[part]}"
    if mine["inputs"] != theirs["inputs"]:
        yield f"inputs are {mine['inputs']} instead of {theirs['inputs']}"
    yield from (f"Triton gives no output {output}" for output in mine["outputs"] if output not in theirs["outputs"])
    if tuple(output["name"] for output in mine["outputs"]) != OUTPUTS:
        yield f"outputs are {mine['outputs']}"
    if not {"binary_tensor_data", "classification"} <= set(ours.get_server_metadata()["extensions"]):
        yield "the extensions are not announced"


def _of_numbers(triton: Client, ours: Client, package: Package, tolerance: float) -> Iterator[str]:
    """Over the golden sample: as bytes and in JSON, all outputs and some, one after the other and at once."""
    name, rows = package.manifest.name, package.golden.rows
    for binary in (True, False):
        sample = rows if binary else rows[: max(1, 200_000 // rows[0].size)]  # as text, both servers take but few
        named = [http.InferRequestedOutput(each, binary_data=binary) for each in reversed(OUTPUTS)]
        for outputs in (named, named[:1], None):
            call = {"outputs": outputs, "request_id": "42", "timeout": 50_000_000}
            theirs, mine = (client.infer(name, [input_of(sample, binary=binary)], **call) for client in (triton, ours))
            if (mine.get_response().get("id"), theirs.get_response().get("id")) != ("42", "42"):
                yield "the request's id is not repeated"
            for output in (each.name() for each in outputs) if outputs else OUTPUTS:
                yield from _number_differences(theirs, mine, output, tolerance)
    pending = [ours.async_infer(name, [input_of(rows[index : index + 1])]) for index in range(len(rows))]
    alone = np.concatenate([each.get_result().as_numpy("probabilities") for each in pending])
    together = triton.infer(name, [input_of(rows)]).as_numpy("probabilities")
    if np.abs(alone - together).max() > tolerance:
        yield "requests that come at once are answered otherwise"


def _number_differences(
    theirs: http.InferResult, mine: http.InferResult, output: str, tolerance: float
) -> Iterator[str]:
    told, given = (result.get_output(output) for result in (theirs, mine))
    for part in ("datatype", "shape"):
        if told[part] != given[part]:
            yield f"{part} of {output} is {given[part]} instead of {told[part]}"
            return
    expected, found = (result.as_numpy(output) for result in (theirs, mine))
    # Features are of any size, and the tolerance is that of probabilities.
    difference = float((np.abs(found - expected) / np.maximum(1, np.abs(expected))).max())
    if not difference <= tolerance:
        yield f"{output} differ by {difference:.1e}"


def _of_classes(triton: Client, ours: Client, package: Package, tolerance: float) -> Iterator[str]:
    for binary in (True, False):
        for count in (1, 3):
            wanted = http.InferRequestedOutput("probabilities", binary_data=binary, class_count=count)
            results = [
                client.infer(package.manifest.name, [input_of(package.golden.rows)], outputs=[wanted])
                for client in (triton, ours)
            ]
            told, given = (result.get_output("probabilities") for result in results)
            if (told["datatype"], told["shape"]) != (given["datatype"], given["shape"]):
                yield f"classes are {given} instead of {told}"
                continue
            theirs, mine = ([_class(each) for each in result.as_numpy("probabilities").ravel()] for result in results)
            if [each[1:] for each in theirs] != [each[1:] for each in mine]:
                yield f"classes are {mine} instead of {theirs}"
            if max(abs(a[0] - b[0]) for a, b in zip(theirs, mine, strict=True)) > tolerance:
                yield "the values of classes differ"


def _class(text: bytes | str) -> tuple[float, int, str]:
    value, index, label = (text.decode() if isinstance(text, bytes) else text).split(":", 2)
    return float(value), int(index), label


def _of_errors(triton: Client, ours: Client, package: Package) -> Iterator[str]:
    """Neither server does what cannot be done, and both say why where the client looks for it."""
    name, row = package.manifest.name, package.golden.rows[:1]
    wanted = [http.InferRequestedOutput("nothing")]
    calls: dict[str, Callable[[Client], object]] = {
        "an unknown model": lambda client: client.infer("nothing", [input_of(row)]),
        "an unknown version": lambda client: client.infer(name, [input_of(row)], model_version="999"),
        "metadata of an unknown model": lambda client: client.get_model_metadata("nothing"),
        "rows of another shape": lambda client: client.infer(name, [input_of(row[:, :1])]),
        "rows of another type": lambda client: client.infer(name, [input_of(row.astype(np.float32), datatype="FP32")]),
        "an input of another name": lambda client: client.infer(name, [input_of(row, name="pixels")]),
        "an output of another name": lambda client: client.infer(name, [input_of(row)], outputs=wanted),
    }
    for what, call in calls.items():
        for server, client in (("Triton", triton), ("our server", ours)):
            try:
                call(client)
            except InferenceServerException as error:
                if not error.message():
                    yield f"{server} does not say what is wrong with {what}"
            else:
                yield f"{server} takes {what}"
    try:
        ours.infer("nothing", [input_of(row)])
    except InferenceServerException as error:
        if error.message() != "there is no model named nothing; /models lists them.":
            yield f"our server says {error.message()!r} of an unknown model"
