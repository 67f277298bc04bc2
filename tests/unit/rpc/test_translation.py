"""Every call is an HTTP request that says the same, and every answer is said back."""

from __future__ import annotations

import json
import struct
from typing import Any

import grpc
import pytest

from app.api.problems import _STATUS as PROBLEMS
from app.api.tensors import HEADER
from app.rpc.messages import MESSAGES
from app.rpc.translation import METHODS, HttpAnswer, HttpCall, Refused

INVALID = grpc.StatusCode.INVALID_ARGUMENT
MODEL_METHODS = ("ModelReady", "ModelMetadata", "ModelInfer")


def call(called: str, bears_s: float | None = None, /, **fields: Any) -> HttpCall:
    """The HTTP request for a call of the method; one of ModelInfer has a model and an input in any case."""
    method = METHODS[called]
    if called == "ModelInfer":
        fields = {"model_name": "m", "inputs": [rows()]} | fields
    return method.call(MESSAGES[method.request](**fields), bears_s)


def infer(bears_s: float | None = None, /, **fields: Any) -> dict[str, Any]:
    """The JSON of the request for a call of ModelInfer."""
    document: dict[str, Any] = json.loads(call("ModelInfer", bears_s, **fields).body[0])
    return document


def answer(name: str, document: object, *blobs: bytes, status: int = 200) -> Any:
    """The message for an HTTP answer."""
    text = json.dumps(document).encode()
    return METHODS[name].answer(HttpAnswer(status, {HEADER: str(len(text))}, b"".join([text, *blobs])))


def rows(**more: Any) -> dict[str, Any]:
    return {"name": "rows", "datatype": "UINT8", "shape": [1, 2]} | more


def parameters(count: int) -> dict[str, Any]:
    return {str(number): {"int64_param": number} for number in range(count)}


@pytest.mark.parametrize(
    ("name", "fields", "path"),
    [
        ("ServerLive", {}, "/v2/health/live"),
        ("ServerReady", {}, "/v2/health/ready"),
        ("ServerMetadata", {}, "/v2"),
        ("ModelReady", {"name": "m"}, "/v2/models/m/ready"),
        ("ModelReady", {"name": "m.x-1", "version": "12"}, "/v2/models/m.x-1/versions/12/ready"),
        ("ModelMetadata", {"name": "m"}, "/v2/models/m"),
        ("ModelMetadata", {"name": "m", "version": "3"}, "/v2/models/m/versions/3"),
        ("ModelInfer", {}, "/v2/models/m/infer"),
        ("ModelInfer", {"model_version": "3"}, "/v2/models/m/versions/3/infer"),
    ],
)
def test_each_method_has_its_request(name: str, fields: dict[str, Any], path: str) -> None:
    request = call(name, **fields)
    assert (request.method, request.path) == ("POST" if name == "ModelInfer" else "GET", path)
    if name != "ModelInfer":
        assert (request.headers, request.body) == ({}, [])


@pytest.mark.parametrize("method", MODEL_METHODS)
@pytest.mark.parametrize(
    ("name", "version"),
    [
        *((name, "") for name in ("", ".", "..", "../x", "a/b", "x?y", "x#y", "x%2fy", "x\n", " x", "ä", "m" * 129)),
        *(("m", version) for version in ("1/ready", "../1", "x", "-1", "1.0", " 1", "1\n", "1?x", "²")),
    ],
)
def test_what_is_no_name_or_version_becomes_no_part_of_a_path(method: str, name: str, version: str) -> None:
    before = "model_" if method == "ModelInfer" else ""
    with pytest.raises(Refused) as refused:
        call(method, **{f"{before}name": name, f"{before}version": version})
    assert refused.value.status is grpc.StatusCode.NOT_FOUND
    assert str(refused.value) == "there is no model of this name and version"


@pytest.mark.parametrize("data", [b"\x00\xff", b"x" * 5000, b""])
def test_raw_contents_stand_behind_the_json_whose_length_is_said(data: bytes) -> None:
    request = call("ModelInfer", id="7", raw_input_contents=[data])
    text, whole = request.body[0], b"".join(request.body)
    assert whole == text + data
    assert request.headers == {"content-length": str(len(whole)), HEADER: str(len(text))}
    assert json.loads(text) == {
        "id": "7",
        "parameters": {"binary_data_output": True},
        "inputs": [rows(parameters={"binary_data_size": len(data)})],
    }


@pytest.mark.parametrize(
    ("datatype", "contents", "data"),
    [
        ("UINT8", {"uint_contents": [0, 7, 255]}, bytes([0, 7, 255])),
        ("BYTES", {"bytes_contents": [b"ab", b""]}, struct.pack("<I2sI", 2, b"ab", 0)),
        ("UINT8", {"bytes_contents": [b"ab"]}, b""),
        ("FP32", {}, b""),
    ],
)
def test_contents_of_a_tensor_become_raw_ones(datatype: str, contents: dict[str, Any], data: bytes) -> None:
    request = call("ModelInfer", inputs=[rows(datatype=datatype, contents=contents)])
    assert b"".join(request.body[1:]) == data
    assert json.loads(request.body[0])["inputs"][0]["parameters"] == {"binary_data_size": len(data)}
    assert int(request.headers["content-length"]) == len(request.body[0]) + len(data)


@pytest.mark.parametrize("number", [256, (1 << 32) - 1])
def test_numbers_above_255_are_refused(number: int) -> None:
    tensor = {"name": "n" * 1000, "datatype": "UINT8", "contents": {"uint_contents": [1, number]}}
    with pytest.raises(Refused, match="are not whole numbers from 0 to 255") as refused:
        infer(inputs=[tensor])
    assert refused.value.status is INVALID
    assert len(str(refused.value)) < 120


def test_parameters_of_each_kind_and_without_a_value_are_passed_on() -> None:
    given = {"b": {"bool_param": False}, "i": {"int64_param": -(1 << 62)}, "s": {"string_param": "ä"}, "n": {}}
    said = {"b": False, "i": -(1 << 62), "s": "ä", "n": None}
    outputs = [{"name": "probabilities", "parameters": given}, {"name": "features"}]
    document = infer(parameters=given, inputs=[rows(parameters=given)], outputs=outputs)
    assert said.items() <= document["parameters"].items()
    assert document["inputs"][0]["parameters"] == said | {"binary_data_size": 0}
    assert [output["name"] for output in document["outputs"]] == ["probabilities", "features"]
    assert said.items() <= document["outputs"][0]["parameters"].items()


def test_a_caller_cannot_say_another_size_than_there_is() -> None:
    tensor = rows(parameters={"binary_data_size": {"int64_param": 1 << 40}})
    assert infer(inputs=[tensor], raw_input_contents=[b"ab"])["inputs"][0]["parameters"] == {"binary_data_size": 2}


def test_outputs_come_as_bytes_whatever_else_is_asked_for() -> None:
    in_json = {"bool_param": False}
    outputs = [{"name": "features", "parameters": {"binary_data": in_json}}]
    document = infer(parameters={"binary_data_output": in_json}, outputs=outputs)
    assert document["parameters"] == {"binary_data_output": True}
    assert document["outputs"][0]["parameters"].get("binary_data", True) is True


@pytest.mark.parametrize(
    ("bears_s", "given", "said"),
    [
        (None, {}, None),
        (None, {"int64_param": 5}, 5),
        (2.0, {}, 2_000_000),
        (2.0, {"int64_param": 500}, 500),
        (2.0, {"int64_param": 3_000_000}, 2_000_000),
        (1e9, {"int64_param": 500}, 500),
        (0.0, {}, 1),
        (1e-9, {"int64_param": 5}, 1),
    ],
)
def test_a_deadline_shortens_the_time_limit_and_never_lengthens_it(
    bears_s: float | None, given: dict[str, Any], said: int | None
) -> None:
    assert infer(bears_s, parameters={"timeout": given} if given else {})["parameters"].get("timeout") == said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"string_param": "5"}, "5"),
        ({"bool_param": True}, True),
        ({"int64_param": 0}, 0),
        ({"int64_param": -5}, -5),
    ],
)
@pytest.mark.parametrize("bears_s", [None, 2.0])
def test_a_time_limit_that_is_none_is_for_the_http_form_to_refuse(
    bears_s: float | None, given: dict[str, Any], said: object
) -> None:
    timeout = infer(bears_s, parameters={"timeout": given})["parameters"]["timeout"]
    assert (timeout, type(timeout)) == (said, type(said))


def test_a_time_limit_without_a_value_is_the_deadline() -> None:
    assert infer(2.0, parameters={"timeout": {}})["parameters"]["timeout"] == 2_000_000


MOST = {
    "outputs": {"outputs": [{"name": "o"}] * 2},
    "axes": {"inputs": [rows(shape=[1] * 8)]},
    "parameters": {"parameters": parameters(8)},
    "parameters of the input": {"inputs": [rows(parameters=parameters(8))]},
    "parameters of an output": {"outputs": [{}, {"parameters": parameters(8)}]},
    "numbers": {"inputs": [rows(contents={"uint_contents": [1] * (1 << 20)})]},
}
TOO_MUCH = {
    "no input": {"inputs": []},
    "inputs": {"inputs": [rows(), rows()]},
    "raw contents": {"raw_input_contents": [b"a", b"b"]},
    "outputs": {"outputs": [{"name": "o"}] * 3},
    "axes": {"inputs": [rows(shape=[1] * 9)]},
    "parameters": {"parameters": parameters(9)},
    "parameters of the input": {"inputs": [rows(parameters=parameters(9))]},
    "parameters of an output": {"outputs": [{}, {"parameters": parameters(9)}]},
    "numbers": {"inputs": [rows(contents={"uint_contents": [1] * ((1 << 20) + 1)})]},
    "files": {"inputs": [rows(datatype="BYTES", contents={"bytes_contents": [b""] * ((1 << 20) + 1)})]},
}


@pytest.mark.parametrize("fields", MOST.values(), ids=MOST)
def test_as_much_as_a_sound_request_may_have_is_passed_on(fields: dict[str, Any]) -> None:
    infer(**fields)


@pytest.mark.parametrize("fields", TOO_MUCH.values(), ids=TOO_MUCH)
def test_a_message_of_more_parts_is_refused_before_it_is_translated(fields: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        infer(**fields)
    assert refused.value.status is INVALID
    assert len(str(refused.value)) < 120


def test_outputs_are_said_back_in_their_order() -> None:
    first, second = struct.pack("<2f", 1.5, -2), struct.pack("<f", 0.25)
    names = struct.pack("<I6sI5s", 6, b"0.5:1:", 5, b"0.4:0")
    tensors = [
        {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(blob)}}
        for name, datatype, shape, blob in (
            ("features", "FP32", [1, 2], first),
            ("probabilities", "BYTES", [1, 2], names),
            ("more", "FP32", [1, 1], second),
        )
    ]
    document = {"model_name": "m", "model_version": "3", "id": "7", "outputs": tensors}
    message = answer("ModelInfer", document, first, names, second)
    assert (message.model_name, message.model_version, message.id) == ("m", "3", "7")
    assert [(each.name, each.datatype, list(each.shape)) for each in message.outputs] == [
        ("features", "FP32", [1, 2]),
        ("probabilities", "BYTES", [1, 2]),
        ("more", "FP32", [1, 1]),
    ]
    assert list(message.raw_output_contents) == [first, names, second]
    del document["id"]
    assert answer("ModelInfer", document, first, names, second).id == ""


def test_metadata_are_said_back() -> None:
    server = {"name": "s", "version": "1.0", "extensions": ["a", "b"]}
    assert answer("ServerMetadata", server) == MESSAGES["ServerMetadataResponse"](**server)
    model = {
        "name": "m",
        "versions": ["3"],
        "platform": "p",
        "inputs": [{"name": "rows", "datatype": "UINT8", "shape": [-1, 8, 8, 3]}],
        "outputs": [{"name": name, "datatype": "FP32", "shape": [-1, 2]} for name in ("probabilities", "features")],
    }
    assert answer("ModelMetadata", model) == MESSAGES["ModelMetadataResponse"](**model)


@pytest.mark.parametrize(("name", "field"), [("ServerLive", "live"), ("ServerReady", "ready"), ("ModelReady", "ready")])
def test_503_is_a_no_where_yes_or_no_is_asked(name: str, field: str) -> None:
    assert getattr(answer(name, {}), field) is True
    assert getattr(answer(name, {"detail": "later."}, status=503), field) is False
    with pytest.raises(Refused, match="who are you"):
        answer(name, {"detail": "who are you?"}, status=401)


STATUS = {
    400: INVALID,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    405: grpc.StatusCode.INTERNAL,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.INTERNAL,
    413: INVALID,
    415: INVALID,
    422: INVALID,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.INTERNAL,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


@pytest.mark.parametrize("name", ["ModelInfer", "ModelMetadata", "ServerMetadata"])
@pytest.mark.parametrize("status", STATUS)
def test_each_status_has_its_own(name: str, status: int) -> None:
    with pytest.raises(Refused) as refused:
        answer(name, {"detail": "the reason."}, status=status)
    assert (refused.value.status, str(refused.value)) == (STATUS[status], "the reason.")


def test_no_status_of_a_problem_is_left_out() -> None:
    assert {status for _, status in PROBLEMS} <= STATUS.keys()
