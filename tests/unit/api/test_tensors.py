"""An Open Inference Protocol request that is as it should be, and the answer: in JSON, as bytes, or mixed."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from inference_calls import MODEL, binary_rows, files, model_of, rows, wanted
from numpy.typing import NDArray

from app.api.tensors import InferenceRequest, Wish, encode_answer
from app.serving.results import Latency, Outputs


def test_rows_in_json_come_in_one_list_or_nested_by_their_shape() -> None:
    numbers = [number * 7 % 256 for number in range(24)]
    for data in (numbers, np.array(numbers).reshape(2, 2, 2, 3).tolist()):
        request = wanted(rows(data, count=2))
        assert (request.kind, request.count, request.nbytes) == ("rows", 2, 0)
        assert request.rows is not None
        assert (request.rows.dtype, request.rows.shape) == (np.dtype(np.uint8), (2, 2, 2, 3))
        assert request.rows.ravel().tolist() == numbers


def test_a_video_model_takes_rows_of_frames() -> None:
    request = wanted(binary_rows(nbytes=96, shape=[2, 4, 2, 2, 3]), model_of("video"))
    assert (request.count, request.nbytes) == (2, 96)


def test_rows_and_files_may_follow_as_bytes() -> None:
    request = wanted(binary_rows(5))
    assert (request.kind, request.count, request.nbytes, request.rows) == ("rows", 5, 60, None)
    for shape in ([3], [3, 1]):
        request = wanted(files(3, 1000, shape=shape))
        assert (request.kind, request.count, request.nbytes, request.rows) == ("files", 3, 1000, None)


def test_outputs_are_all_that_there_are_unless_some_are_named() -> None:
    assert wanted(rows()).wishes == (Wish("probabilities", False), Wish("features", False))
    assert wanted(rows(), outputs=[]).with_features
    plain = wanted(rows(), model_of(features=False))
    assert plain.wishes == (Wish("probabilities", False),)
    assert not plain.with_features
    chosen = wanted(rows(), outputs=[{"name": "features"}, {"name": "probabilities"}])
    assert chosen.wishes == (Wish("features", False), Wish("probabilities", False))
    assert not wanted(rows(), outputs=[{"name": "probabilities"}]).with_features


def test_each_output_says_whether_it_comes_as_bytes_or_else_the_request_does() -> None:
    binary, json_ = {"binary_data": True}, {"binary_data": False}
    all_of_them = {"binary_data_output": True}
    assert wanted(rows(), parameters=all_of_them).wishes == (Wish("probabilities", True), Wish("features", True))
    outputs = [{"name": "features", "parameters": binary}, {"name": "probabilities"}]
    assert wanted(rows(), outputs=outputs).wishes == (Wish("features", True), Wish("probabilities", False))
    outputs = [{"name": "features", "parameters": json_}, {"name": "probabilities"}]
    mixed = wanted(rows(), outputs=outputs, parameters=all_of_them)
    assert mixed.wishes == (Wish("features", False), Wish("probabilities", True))
    outputs = [{"name": "probabilities", "parameters": {"classification": 2}}]
    assert wanted(rows(), outputs=outputs).wishes == (Wish("probabilities", False, 2),)


PROBABILITIES = np.array([[0.1, 0.7, 0.2], [0.5, 0.25, 0.25]], np.float32)
FEATURES = np.array([[1.5, -2.0], [1e-30, 3e30]], np.float32)


def outputs(probabilities: NDArray[Any] = PROBABILITIES, features: NDArray[Any] | None = FEATURES) -> Outputs:
    """What a model gave for some rows."""
    return Outputs(MODEL.identity, probabilities, features, Latency(0, 0, 0, 0), 1)


def answered(request: InferenceRequest, *given: Outputs) -> tuple[dict[str, Any], bytes]:
    """The JSON of an answer, and the bytes behind it."""
    content, json_nbytes = encode_answer(request, MODEL, given or [outputs()])
    return json.loads(content[:json_nbytes]), content[json_nbytes:]


def floats(listed: list[float]) -> bytes:
    """Numbers from JSON as float32."""
    return np.array(listed, np.float32).tobytes()


def asked(*named: dict[str, Any], **more: Any) -> InferenceRequest:
    return wanted(rows(count=2), outputs=list(named), **more)


def named(name: str, **parameters: Any) -> dict[str, Any]:
    return {"name": name, "parameters": parameters}


def test_an_answer_in_json_has_each_output_row_after_row() -> None:
    document, behind = answered(asked(), outputs(features=FEATURES))
    assert list(document) == ["model_name", "model_version", "outputs"]
    assert (document["model_name"], document["model_version"]) == ("m", "3")
    probabilities, features = document["outputs"]
    assert list(probabilities) == ["name", "datatype", "shape", "data"]
    assert (probabilities["name"], probabilities["datatype"], probabilities["shape"]) == (
        "probabilities",
        "FP32",
        [2, 3],
    )
    assert (features["name"], features["datatype"], features["shape"]) == ("features", "FP32", [2, 2])
    assert floats(probabilities["data"]) == PROBABILITIES.tobytes()
    assert floats(features["data"]) == FEATURES.tobytes()
    assert behind == b""


def test_an_answer_as_bytes_has_little_endian_floats_behind_its_json() -> None:
    document, behind = answered(asked(parameters={"binary_data_output": True}))
    sizes = [output["parameters"] for output in document["outputs"]]
    assert sizes == [{"binary_data_size": 24}, {"binary_data_size": 16}]
    assert not any("data" in output for output in document["outputs"])
    assert np.frombuffer(behind, "<f4").tolist() == [*PROBABILITIES.ravel().tolist(), *FEATURES.ravel().tolist()]


def test_outputs_stand_in_the_order_asked_for_each_as_it_was_asked_for() -> None:
    request = asked(named("features", binary_data=True), named("probabilities"))
    document, behind = answered(request)
    features, probabilities = document["outputs"]
    assert (features["name"], probabilities["name"]) == ("features", "probabilities")
    assert features["parameters"] == {"binary_data_size": len(behind)}
    assert behind == FEATURES.astype("<f4").tobytes()
    assert floats(probabilities["data"]) == PROBABILITIES.tobytes()
    document, behind = answered(asked(named("probabilities", binary_data=True), named("features", binary_data=True)))
    assert [output["name"] for output in document["outputs"]] == ["probabilities", "features"]
    assert behind == PROBABILITIES.tobytes() + FEATURES.tobytes()


def test_an_output_that_was_not_asked_for_stays_away() -> None:
    document, behind = answered(asked(named("probabilities")), outputs(features=None))
    assert [output["name"] for output in document["outputs"]] == ["probabilities"]
    assert behind == b""


def test_the_answers_of_files_stand_together_in_their_order() -> None:
    request = wanted(files(2, 100), outputs=[named("features"), named("probabilities", binary_data=True)])
    each = [outputs(PROBABILITIES[index : index + 1], FEATURES[index : index + 1]) for index in (1, 0)]
    document, behind = answered(request, *each)
    assert [output["shape"] for output in document["outputs"]] == [[2, 2], [2, 3]]
    assert floats(document["outputs"][0]["data"]) == FEATURES[::-1].tobytes()
    assert behind == PROBABILITIES[::-1].tobytes()


def test_classes_are_named_as_triton_does_the_likeliest_first() -> None:
    document, _ = answered(asked(named("probabilities", classification=2)))
    (top,) = document["outputs"]
    assert (top["name"], top["datatype"], top["shape"]) == ("probabilities", "BYTES", [2, 2])
    assert top["data"] == ["0.700000:1:b: c", "0.200000:2:d", "0.500000:0:a", "0.250000:1:b: c"]


def test_more_classes_than_there_are_means_all() -> None:
    document, _ = answered(asked(named("probabilities", classification=1000)))
    assert document["outputs"][0]["shape"] == [2, 3]
    assert len(document["outputs"][0]["data"]) == 6


def test_named_classes_as_bytes_have_their_lengths_before_them() -> None:
    request = asked(named("probabilities", classification=1, binary_data=True), named("features", binary_data=True))
    document, behind = answered(request)
    top = document["outputs"][0]
    texts = [b"0.700000:1:b: c", b"0.500000:0:a"]
    expected = b"".join(struct.pack("<I", len(text)) + text for text in texts)
    assert (top["datatype"], top["shape"], top["parameters"]) == ("BYTES", [2, 1], {"binary_data_size": len(expected)})
    assert behind == expected + FEATURES.tobytes()


def test_the_caller_s_id_is_repeated() -> None:
    for name in ("42", "", 'ä"\n\x00', "x" * 256):
        document, _ = answered(asked(id=name))
        assert document["id"] == name
    assert "id" not in answered(asked())[0]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3))
def test_numbers_in_json_are_the_float32_to_the_last_bit(values: list[float]) -> None:
    row = np.array([values], np.float32)
    document, _ = answered(wanted(rows(), outputs=[named("probabilities")]), outputs(row, None))
    assert floats(document["outputs"][0]["data"]) == row.tobytes()
