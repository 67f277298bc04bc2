"""The Open Inference Protocol over gRPC, by hand: what generated stubs do, and frames that no library sends."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.rpc.messages import MESSAGES, SERVICE


def method(channel: Any, name: str) -> Any:
    """A method of the service, as a stub has it; instead of a message it takes bytes, too."""
    return channel.unary_unary(
        f"/{SERVICE}/{name}",
        request_serializer=lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
        response_deserializer=MESSAGES[f"{name}Response"].FromString,
    )


def message(name: str, /, **fields: Any) -> Any:
    """The request of a method."""
    return MESSAGES[f"{name}Request"](**fields)


def rows_message(rows: NDArray[np.uint8], model: str = "colours", outputs: Iterable[str] = (), **more: Any) -> Any:
    """A request for rows."""
    tensor = {"name": "rows", "datatype": "UINT8", "shape": rows.shape}
    wanted = [{"name": name} for name in outputs]
    data = rows.tobytes()
    return message("ModelInfer", model_name=model, inputs=[tensor], outputs=wanted, raw_input_contents=[data], **more)


def files_message(files: Iterable[bytes], model: str = "colours", **more: Any) -> Any:
    """A request for files, in the tensor's own field."""
    contents = list(files)
    tensor = {"name": "files", "datatype": "BYTES", "shape": [len(contents)], "contents": {"bytes_contents": contents}}
    return message("ModelInfer", model_name=model, inputs=[tensor], **more)


def tensors(answer: Any) -> dict[str, NDArray[Any]]:
    """The outputs of an answer by name, in its order: float32, or texts."""
    found: dict[str, NDArray[Any]] = {}
    for output, data in zip(answer.outputs, answer.raw_output_contents, strict=True):
        values: Any = np.frombuffer(data, "<f4") if output.datatype == "FP32" else np.array(_texts(data), object)
        found[output.name] = values.reshape(output.shape)
    return found


def _texts(data: bytes) -> list[str]:
    texts = []
    while data:
        (length,) = struct.unpack_from("<I", data)
        texts.append(data[4 : 4 + length].decode())
        data = data[4 + length :]
    return texts


@contextlib.contextmanager
def frames_to(address: tuple[str, int], window: int = 65_535) -> Iterator[socket.socket]:
    """An HTTP/2 connection for frames by hand; of each answer the server may send `window` bytes."""
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, struct.pack(">HI", 4, window)))
        yield connection


def call_frames(stream: int, path: bytes, message: bytes | None = b"", *headers: tuple[bytes, bytes]) -> bytes:
    """A call with its one message, or without it and without an end, on a stream of an odd number."""
    given = {b":method": b"POST", b":scheme": b"http", b":path": path, b":authority": b"test", b"te": b"trailers"}
    listed = [*given.items(), (b"content-type", b"application/grpc"), *headers]
    block = b"".join(b"\0" + _text(name) + _text(value) for name, value in listed)  # in no table (RFC 7541, 6.2.2)
    head = _frame(1, 4, stream, block)
    if message is None:
        return head
    return head + _frame(0, 1, stream, struct.pack(">BI", 0, len(message)) + message)


def read_stream(connection: socket.socket, stream: int) -> bytes:
    """What comes on a stream until its end, the heads of its frames left out; what the connection has to say is
    passed over. Raises ConnectionError: the connection ends first."""
    content = b""
    with connection.makefile("rb") as incoming:
        while head := incoming.read(9):
            payload = incoming.read(int.from_bytes(head[:3], "big"))
            if int.from_bytes(head[5:], "big") == stream and head[3] in (0, 1):
                content += payload
                if head[4] & 1:
                    return content
    raise ConnectionError("the server hung up")


def _text(text: bytes) -> bytes:
    assert len(text) < 127
    return bytes([len(text)]) + text


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload
