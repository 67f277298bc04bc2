"""The messages as tritonclient 2.73.0 writes them: what stands here as bytes, its generated classes have encoded."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import descriptor_pool

from app.rpc.messages import MESSAGES, SERVICE
from app.rpc.translation import METHODS

INT64 = 1 << 40  # needs more than 32 bits
UINT32 = (1 << 32) - 1

# By message, all of its fields, and the bytes; of those that are inside others, "name.field" is what they are given in.
EMPTY = ("ServerLiveRequest", "ServerReadyRequest", "ServerMetadataRequest")
ENCODED: list[tuple[str, dict[str, Any], str]] = [
    *((name, {}, "") for name in EMPTY),
    ("ServerLiveResponse", {"live": True}, "0801"),
    ("ServerReadyResponse", {"ready": True}, "0801"),
    ("ModelReadyRequest", {"name": "m", "version": "1"}, "0a016d 120131"),
    ("ModelReadyResponse", {"ready": True}, "0801"),
    ("ServerMetadataResponse", {"name": "s", "version": "2", "extensions": ["a", "b"]}, "0a0173 120132 1a0161 1a0162"),
    ("ModelMetadataRequest", {"name": "m", "version": "1"}, "0a016d 120131"),
    (
        "TensorMetadata",
        {"name": "rows", "datatype": "UINT8", "shape": [-1, 3]},
        "0a04726f7773 12055549 4e5438 1a0bffffffffffffffffff0103",
    ),
    (
        "ModelMetadataResponse",
        {
            "name": "m",
            "versions": ["1", "2"],
            "platform": "p",
            "inputs": [{"name": "rows", "datatype": "UINT8", "shape": [-1, 3]}],
            "outputs": [{"name": "o"}],
        },
        "0a016d 120131 120132 1a0170 221a 0a04726f7773120555494e54381a0bffffffffffffffffff0103 2a03 0a016f",
    ),
    ("InferParameter", {"bool_param": True}, "0801"),
    ("InferParameter", {"int64_param": -5}, "10fbffffffffffffffff01"),
    ("InferParameter", {"int64_param": INT64}, "10808080808020"),
    ("InferParameter", {"string_param": "x"}, "1a0178"),
    (
        "InferTensorContents",
        {"uint_contents": [1, 300, UINT32], "bytes_contents": [b"\xff", b""]},
        "2208 01ac02ffffffff0f 4201ff 4200",
    ),
    (
        "InferInputTensor",
        {
            "name": "rows",
            "datatype": "UINT8",
            "shape": [2, INT64],
            "parameters": {"k": {"int64_param": 1}},
            "contents": {"uint_contents": [7]},
        },
        "0a04726f7773 120555494e5438 1a0702808080808020 2207 0a016b12021001 2a03 220107",
    ),
    (
        "InferRequestedOutputTensor",
        {"name": "f", "parameters": {"k": {"bool_param": True}}},
        "0a0166 1207 0a016b 1202 0801",
    ),
    (
        "ModelInferRequest",
        {
            "model_name": "m",
            "model_version": "1",
            "id": "7",
            "parameters": {"t": {"string_param": "x"}},
            "inputs": [{"name": "rows", "shape": [2]}, {"datatype": "BYTES"}],
            "outputs": [{"name": "f"}],
            "raw_input_contents": [b"\x00\xff", b""],
        },
        "0a016d 120131 1a0137 2208 0a01741203 1a0178 2a09 0a04726f77731a0102 2a07 12054259544553 3203 0a0166 "
        "3a0200ff 3a00",
    ),
    (
        "InferOutputTensor",
        {"name": "f", "datatype": "FP32", "shape": [1, 2], "parameters": {"k": {"bool_param": False}}},
        "0a0166 120446503332 1a020102 2207 0a016b 1202 0800",
    ),
    (
        "ModelInferResponse",
        {
            "model_name": "m",
            "model_version": "1",
            "id": "7",
            "outputs": [{"name": "f", "datatype": "FP32", "shape": [1, 2]}],
            "raw_output_contents": [b"\x00\xff"],
        },
        "0a016d 120131 1a0137 2a0d 0a0166 120446503332 1a020102 320200ff",
    ),
]
CASES = pytest.mark.parametrize(("name", "fields", "encoded"), ENCODED)


@CASES
def test_what_is_said_is_what_others_read(name: str, fields: dict[str, Any], encoded: str) -> None:
    assert MESSAGES[name](**fields).SerializeToString(deterministic=True) == bytes.fromhex(encoded)


@CASES
def test_what_others_say_is_read(name: str, fields: dict[str, Any], encoded: str) -> None:
    assert MESSAGES[name].FromString(bytes.fromhex(encoded)) == MESSAGES[name](**fields)


def test_each_field_of_each_message_is_among_them() -> None:
    said = {(name, field) for name, fields, _ in ENCODED for field in fields}
    fields = {(name, field.name) for name, message in MESSAGES.items() for field in message.DESCRIPTOR.fields}
    assert said == fields
    assert {name for name, _, _ in ENCODED} == MESSAGES.keys()


def test_a_parameter_has_one_value_or_none() -> None:
    parameter = MESSAGES["InferParameter"]
    assert parameter().WhichOneof("parameter_choice") is None
    assert parameter(bool_param=False).WhichOneof("parameter_choice") == "bool_param"
    last_wins = parameter.FromString(bytes.fromhex("0801 1005 1a0178"))
    assert (last_wins.WhichOneof("parameter_choice"), last_wins.bool_param) == ("string_param", False)


@pytest.mark.parametrize("packed", ["2202 0708", "2007 2008"])
def test_numbers_are_read_packed_or_each_by_itself(packed: str) -> None:
    assert list(MESSAGES["InferTensorContents"].FromString(bytes.fromhex(packed)).uint_contents) == [7, 8]


# A parameter of double, fp32 and int64 contents: fields of Triton's that are no part of the table.
BEYOND_CALL = (
    "0a016d 220e 0a016b 1209 21000000000000f83f 2a1a 0a04726f7773 120446503332 2a0c 1a0105 220109 32040000803f"
)
BEYOND_ANSWER = "0a016d 220e 0a016b 1209 21000000000000f83f 2a0b 0a0166 2a0632040000803f"


def test_fields_that_are_not_known_are_passed_over() -> None:
    call = MESSAGES["ModelInferRequest"].FromString(bytes.fromhex(BEYOND_CALL))
    (tensor,) = call.inputs
    assert (call.model_name, tensor.name, tensor.datatype) == ("m", "rows", "FP32")
    assert list(tensor.contents.uint_contents) == [9]
    assert [parameter.WhichOneof("parameter_choice") for parameter in call.parameters.values()] == [None]
    answer = MESSAGES["ModelInferResponse"].FromString(bytes.fromhex(BEYOND_ANSWER))
    assert (answer.model_name, [tensor.name for tensor in answer.outputs]) == ("m", ["f"])


def test_the_service_and_its_methods_have_their_messages() -> None:
    assert SERVICE == "inference.GRPCInferenceService"
    for name in ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer"):
        assert (METHODS[name].request, METHODS[name].response) == (f"{name}Request", f"{name}Response")


def test_a_generated_module_may_stand_beside_the_table() -> None:
    with pytest.raises(KeyError):  # two of one name in the same pool would not be taken
        descriptor_pool.Default().FindMessageTypeByName("inference.ModelInferRequest")
