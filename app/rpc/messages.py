"""The messages of the Open Inference Protocol's `inference.GRPCInferenceService`, as far as they are spoken here.

Source: KServe's and Triton's description of the service; numbers and types are the wire format. They are a table and no
generated module, which would tie this package to the release of protobuf that generated it. What a caller sends beyond
the table is kept by protobuf as an unknown field, and has no effect.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "inference.GRPCInferenceService"

_F = descriptor_pb2.FieldDescriptorProto
_BOOL, _INT64, _UINT32, _STRING, _BYTES = _F.TYPE_BOOL, _F.TYPE_INT64, _F.TYPE_UINT32, _F.TYPE_STRING, _F.TYPE_BYTES

# By message: its fields with their number and type; a list says that it repeats, "{}" that it is a map from strings.
_Field = int | str
_TENSOR: dict[str, tuple[int, _Field | list[_Field]]] = {
    "name": (1, _STRING),
    "datatype": (2, _STRING),
    "shape": (3, [_INT64]),
}
_MESSAGES: dict[str, dict[str, tuple[int, _Field | list[_Field]]]] = {
    "ServerLiveRequest": {},
    "ServerLiveResponse": {"live": (1, _BOOL)},
    "ServerReadyRequest": {},
    "ServerReadyResponse": {"ready": (1, _BOOL)},
    "ModelReadyRequest": {"name": (1, _STRING), "version": (2, _STRING)},
    "ModelReadyResponse": {"ready": (1, _BOOL)},
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {"name": (1, _STRING), "version": (2, _STRING), "extensions": (3, [_STRING])},
    "ModelMetadataRequest": {"name": (1, _STRING), "version": (2, _STRING)},
    "TensorMetadata": _TENSOR,
    "ModelMetadataResponse": {
        "name": (1, _STRING),
        "versions": (2, [_STRING]),
        "platform": (3, _STRING),
        "inputs": (4, ["TensorMetadata"]),
        "outputs": (5, ["TensorMetadata"]),
    },
    "InferParameter": {"bool_param": (1, _BOOL), "int64_param": (2, _INT64), "string_param": (3, _STRING)},
    "InferTensorContents": {"uint_contents": (4, [_UINT32]), "bytes_contents": (8, [_BYTES])},
    "InferInputTensor": {**_TENSOR, "parameters": (4, "{}"), "contents": (5, "InferTensorContents")},
    "InferRequestedOutputTensor": {"name": (1, _STRING), "parameters": (2, "{}")},
    "ModelInferRequest": {
        "model_name": (1, _STRING),
        "model_version": (2, _STRING),
        "id": (3, _STRING),
        "parameters": (4, "{}"),
        "inputs": (5, ["InferInputTensor"]),
        "outputs": (6, ["InferRequestedOutputTensor"]),
        "raw_input_contents": (7, [_BYTES]),
    },
    "InferOutputTensor": {**_TENSOR, "parameters": (4, "{}")},
    "ModelInferResponse": {
        "model_name": (1, _STRING),
        "model_version": (2, _STRING),
        "id": (3, _STRING),
        "outputs": (5, ["InferOutputTensor"]),
        "raw_output_contents": (6, [_BYTES]),
    },
}
_CHOICES = {"InferParameter": "parameter_choice"}


def _build() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="open_inference.proto", package="inference", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        if name in _CHOICES:
            message.oneof_decl.add(name=_CHOICES[name])
        for field, (number, kind) in fields.items():
            _add_field(message, field, number, kind)
            if name in _CHOICES:
                message.field[-1].oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"inference.{name}")) for name in _MESSAGES
    }


def _add_field(message: descriptor_pb2.DescriptorProto, name: str, number: int, kind: _Field | list[_Field]) -> None:
    field = message.field.add(name=name, number=number, label=_F.LABEL_OPTIONAL)
    if isinstance(kind, list):
        field.label, kind = _F.LABEL_REPEATED, kind[0]
    if kind == "{}":
        entry = message.nested_type.add(name=f"{name.capitalize()}Entry")
        entry.options.map_entry = True
        _add_field(entry, "key", 1, _STRING)
        _add_field(entry, "value", 2, "InferParameter")
        field.label, kind = _F.LABEL_REPEATED, f"{message.name}.{entry.name}"
    if isinstance(kind, str):
        field.type, field.type_name = _F.TYPE_MESSAGE, f".inference.{kind}"
    else:
        field.type = kind


MESSAGES: dict[str, Any] = _build()
"""The classes of the messages, by name."""
