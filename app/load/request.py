"""Whole HTTP/1.1 requests as bytes, built once and sent many times."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Literal
from urllib.parse import urlencode

from app.load.target import Target

BOUNDARY = "hiera-load-7d4a6d158c9b4f0f"
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"}
)
VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts"})


def task_of(file: Path) -> Literal["image", "video"]:
    """ "video" or "image", by the file's suffix; the server itself judges by content."""
    return "video" if file.suffix.lower() in VIDEO_SUFFIXES else "image"


def shown(file: Path) -> str:
    """A path, which need not be UTF-8 and may hold line ends or a terminal's commands, as text for one line."""
    text = str(file).encode(errors="backslashreplace").decode()
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def raw_request(
    target: Target, path: str, body: bytes, *, content_type: str, headers: dict[str, str] | None = None
) -> bytes:
    """A POST with `body` as it is."""
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {target.host}:{target.port}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in (headers or {}).items()),
    ]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def multipart_request(
    target: Target,
    path: str,
    body: bytes,
    *,
    field: str = "file",
    filename: str = "photo.jpg",
    content_type: str = "application/octet-stream",
    headers: dict[str, str] | None = None,
) -> bytes:
    """A POST of one file, as `curl -F file=@photo.jpg` sends it."""
    part = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="{filename}"\r\n'
        f"Content-Type: {content_type}\r\n\r\n"
    )
    form = part.encode() + body + f"\r\n--{BOUNDARY}--\r\n".encode()
    return raw_request(target, path, form, content_type=f"multipart/form-data; boundary={BOUNDARY}", headers=headers)


def classify_request(
    target: Target,
    file: Path,
    *,
    model: str | None = None,
    multipart: bool = True,
    query: dict[str, str] | None = None,
    api_key: str | None = None,
) -> bytes:
    """The request that classifies one file on this project's server."""
    parameters = {**({"model": model} if model else {}), **(query or {})}
    path = f"/classify/{task_of(file)}" + (f"?{urlencode(parameters)}" if parameters else "")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else None
    body = file.read_bytes()
    if multipart:
        return multipart_request(target, path, body, headers=headers)  # a name need not be text, and nobody asks for it
    return raw_request(target, path, body, content_type="application/octet-stream", headers=headers)


def kserve_bytes_request(target: Target, model: str, tensor: str, body: bytes) -> bytes:
    """An Open Inference Protocol request with one BYTES element sent as binary data.

    Source: Triton's "binary tensor data extension": a JSON header of `Inference-Header-Content-Length` bytes, then the
    tensor; an element of BYTES is its length as a little-endian uint32 and its data.
    """
    element = struct.pack("<I", len(body)) + body
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": tensor,
                    "shape": [1, 1],
                    "datatype": "BYTES",
                    "parameters": {"binary_data_size": len(element)},
                }
            ]
        }
    ).encode()
    return raw_request(
        target,
        f"/v2/models/{model}/infer",
        header + element,
        content_type="application/octet-stream",
        headers={"Inference-Header-Content-Length": str(len(header))},
    )
