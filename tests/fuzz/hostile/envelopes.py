"""Requests around the files: sound ones, and multipart, JSON, queries and headers that are spoilt in their own ways."""

from __future__ import annotations

import base64
import json
from random import Random
from urllib.parse import quote_from_bytes

from files import any_file, image_file, video_file
from mutation import blindly, number
from samples import images, videos

_TYPES = (
    "image/jpeg", "image/png", "image/*", "video/mp4", "video/x-matroska", "application/octet-stream", "text/plain",
    "application/json", "application/x-www-form-urlencoded", "multipart/form-data", "multipart/form-data; boundary=",
    'multipart/form-data; boundary="', "multipart/mixed; boundary=b", "multipart/form-data; boundary*=utf-8''b",
    "multipart/form-data; boundary*0=b; boundary*1=c", "multipart/form-data; boundary=b; boundary=c", ";", "/", "é",
    "image/jpeg; charset=\"", "application/json; charset=utf-16", "IMAGE/JPEG", " ", "a" * 300,
    "multipart/form-data; boundary*=nonsense'x'b",
)  # fmt: skip
_NAMES = ("model", "top_k", "timeout_ms", "clips", "crops", "topk", "Model", "", "a" * 50, "%00", "\xff", "file")
_VALUES = (
    "1", "5", "0", "-1", "1000", "1001", "3", "16", "17", "999999999", "9999999999", "1e3", "0x10", " 1", "1.0", "",
    "%D9%A3", "%FF", "%", "%0", "%00", "%0d%0aX: y", "..%2F..%2Fetc", "hiera_demo_objects", "hiera_demo_camera_motion",
    "a" * 200, "'", "<script>", "None", "nan", "true", "1;DROP", "+5", "\uff15",
)  # fmt: skip
_METHODS = ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "PROPFIND", "post")
_PATHS = (
    "/", "/classify/image", "/classify/video", "/classify/image/", "/classify", "/models", "/models/", "/metrics",
    "/models/hiera_demo_objects", "/models/%2e%2e%2fetc", "/models/" + "a" * 3000, "/models/%ff%fe", "/models/%00",
    "/health/live", "/health/ready", "/health/", "/docs", "/docs/docs.js", "/docs/../openapi.json", "//docs",
    "/docs/%2e%2e/%2e%2e/settings.py", "/openapi.json", "/favicon.ico", "/classify/image%3Ftop_k=1", "/*", "/%",
    "/models/hiera_demo_objects/1", "/models/{name}", "/\u00e9", "http://other.example/models", "*", "models",
    "/admin/models", "/admin/reload", "/admin/models/hiera_demo_objects", "/admin/models/..%2f..%2fetc",
)  # fmt: skip


def sound_upload(draw: Random, task: str, data: bytes) -> bytes:
    """A flawless request that carries one file, in any of the ways there are."""
    way = draw.choice(("raw", "multipart", "chunked") + (("json",) if task == "image" else ()))
    query = draw.choice(("", "", "?top_k=1")) if task == "image" else draw.choice(("", "", "?clips=2", "?crops=3"))
    path = f"/classify/{task}{query}"
    if way == "multipart":
        return post(path, "multipart/form-data; boundary=b", multipart(data))
    if way == "json":
        body = json.dumps({"images": [{"b64": base64.b64encode(data).decode()}]})
        return post(path, "application/json", body.encode())
    if way == "chunked":
        return post(path, f"{task}/x", _chunked(draw, data), "Transfer-Encoding: chunked")
    return post(path, "application/octet-stream", data)


def post(path: str, content_type: str | None, body: bytes, *headers: str, length: object = None) -> bytes:
    """A POST request; its length is right unless one is given, and none is said with Transfer-Encoding."""
    lines = [f"POST {path} HTTP/1.1", "Host: fuzz", "Connection: close"]
    if content_type is not None:
        lines.append(f"Content-Type: {content_type}")
    if not any(header.lower().startswith("transfer-encoding") for header in headers):
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, *headers, "", ""]).encode("utf-8", "surrogateescape") + body


def multipart(*files: bytes, boundary: bytes = b"b", name: bytes = b'"file"') -> bytes:
    head = b"--" + boundary + b"\r\nContent-Disposition: form-data; name=" + name + b'; filename="x.jpg"\r\n\r\n'
    return b"".join(head + data + b"\r\n" for data in files) + b"--" + boundary + b"--\r\n"


def several_files(draw: Random) -> bytes:
    """Good and spoilt images in one request: each has an outcome of its own."""
    sound = sorted(images().values())
    files = [image_file(draw)[1] if draw.random() < 0.6 else draw.choice(sound) for _ in range(draw.choice((2, 3, 17)))]
    if draw.random() < 0.5:
        return post("/classify/image", "multipart/form-data; boundary=b", multipart(*files))
    body = json.dumps({"images": [{"b64": base64.b64encode(data).decode()} for data in files]})
    return post("/classify/image", "application/json", body.encode())


def spoilt_multipart(draw: Random) -> bytes:
    """Boundaries, part headers, ends and nesting that are not as they should be."""
    sound = images()["jpeg"]
    path = draw.choice(("/classify/image", "/classify/image", "/classify/video"))
    content_type = "multipart/form-data; boundary=b"
    body = multipart(sound)
    match draw.randrange(10):
        case 0:
            body = body[: draw.randrange(len(body))]
        case 1:
            body = blindly(draw, body)
        case 2:
            boundary = draw.choice((b"b" * 70, b"b" * 257, b'"b', b"--", b"\xff", b" ", b"b\r"))
            body = multipart(sound, boundary=boundary)
            content_type = f"multipart/form-data; boundary={boundary.decode('latin-1').strip()}"
        case 3:
            name = draw.choice((b'"image"', b"", b'"file', b"file*=utf-8''file", b'"\xff"', b'"' + b"f" * 5000 + b'"'))
            body = multipart(sound, name=name)
        case 4:
            header = draw.choice((b"A: b\r\n" * 100, b"A" * 20_000 + b": b\r\n", b"A b\r\n", b": \r\n",
                                  b"\0: \xff\r\n"))  # fmt: skip
            body = b"--b\r\n" + header + body.partition(b"\r\n")[2]
        case 5:
            body = multipart(*[draw.choice((b"", b"x", sound))] * draw.choice((0, 2, 16, 17, 500)))
        case 6:
            body = multipart(multipart(sound, boundary=b"b2"))
        case 7:
            body = draw.choice((b"\r\n\r\n", b"preamble\r\n", b"\n")) + body + draw.choice((b"", b"epilogue", body))
        case 8:
            body = body.replace(b"\r\n", draw.choice((b"\n", b"\r", b"\r\r\n")))
        case _:
            content_type = draw.choice(_TYPES)
    return post(path, content_type, body)


def spoilt_json(draw: Random) -> bytes:
    """JSON of the wrong form, of the wrong depth, in the wrong encoding, or cut off."""
    encoded = base64.b64encode(images()["png"]).decode()
    good = json.dumps({"images": [{"b64": encoded}] * draw.choice((1, 3, 17))})
    no_text: object = draw.choice((None, 5, [], {}, True, "\ud800", "A", "AAA=", "=" * 9, " "))
    no_form: object = draw.choice(([], {}, None, "x", 1e308, {"images": {}}, {"images": [[]]}, {"images": [None]}))
    choices: tuple[bytes, ...] = (
        blindly(draw, good.encode()),
        good[: draw.randrange(len(good))].encode(),
        good.encode(draw.choice(("utf-16", "utf-32", "utf-8-sig"))),
        (draw.choice('[{"') * draw.choice((10, 1000, 60_000))).encode(),
        ('{"images":' * draw.choice((2, 300))).encode(),
        json.dumps({"images": [{"b64": no_text}]}).encode(),
        json.dumps(no_form).encode(),
        b'{"images": [{"b64": "' + encoded.encode() + b'", "b64": ""}], "images": []}',
        b'{"images": ' + str(10 ** draw.choice((1, 400, 4000))).encode() + b"}",
        b'{"images": [{"b64": NaN}]}',
        b'{"images": [{"b64": "\\u0000\\ud83d"}]}',
        draw.randbytes(draw.choice((0, 1, 200))),
    )
    path = draw.choice(("/classify/image", "/classify/image", "/classify/video"))
    return post(path, "application/json", draw.choice(choices))


def spoilt_query(draw: Random) -> bytes:
    """Parameters that are unknown, repeated, badly encoded or out of range, with a sound file behind them."""
    pairs = []
    for _ in range(draw.choice((1, 1, 2, 3, 40))):
        value = draw.choice(_VALUES) if draw.random() < 0.8 else quote_from_bytes(draw.randbytes(draw.randrange(30)))
        pairs.append(draw.choice(_NAMES) + draw.choice(("=", "=", "=", "", "==")) + value)
    query = draw.choice(("&", "&", ";", "&&", "?")).join(pairs).replace(" ", "%20")
    task = draw.choice(("image", "video"))
    data = images()["jpeg"] if task == "image" else videos()["mp4"]
    return post(f"/classify/{task}?{query}", "application/octet-stream", data)


def spoilt_headers(draw: Random) -> bytes:
    """Sound bodies under headers that are doubled, contradictory, too long, or made to be quoted back."""
    data, task = (images()["jpeg"], "image") if draw.random() < 0.8 else (videos()["mp4"], "video")
    content_type: str | None = "application/octet-stream"
    extra: list[str] = []
    length: object = None
    for _ in range(draw.choice((1, 1, 2, 3))):
        match draw.randrange(9):
            case 0:
                value = draw.choice(
                    ("a" * 128, "a" * 129, "", " ", "\t", "x\x7fy", "é", "a b", "..", "{}", "%0d", "\x01")
                )
                extra.append(f"X-Request-ID: {value}")
            case 1:
                value = draw.choice(("gzip", "identity", "br", "deflate, gzip", "", "x" * 1000, "\xff"))
                extra.append(f"Content-Encoding: {value}")
            case 2:
                key = draw.choice(("", "a", "x" * 5000, "é", "alice:first"))
                extra.append(draw.choice(("X-API-Key: ", "Authorization: Bearer ", "Authorization: ")) + key)
            case 3:
                content_type = draw.choice((*_TYPES, None))
            case 4:
                lies = (len(data) - 1, 0, "", "+5", "-1", "1e3", "5, 5", number(draw, 8), "9" * 30, "0x10")
                length = draw.choice(lies)
            case 5:
                extra.append(draw.choice(("Expect: 100-continue", "Expect: 200-ok", "Expect: " + "x" * 100)))
            case 6:
                extra.append(draw.choice(("Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13",
                                          "Upgrade: h2c", "TE: trailers", "Range: bytes=0-",
                                          "Cookie: " + "a=b;" * 500)))  # fmt: skip
            case 7:
                extra.append(
                    draw.choice(
                        (
                            f"Content-Length: {len(data)}",
                            "Content-Type: image/png",
                            "Host: other",
                            "Origin: https://evil.example",
                            "Forwarded: for=1.2.3.4",
                            "X-Forwarded-For: 1.2.3.4, ::1",
                            "Content-Length: 7",
                        )
                    )
                )
            case _:
                extra.append(
                    draw.choice(
                        (
                            "X: " + "y" * 40_000,
                            "X-1: y",
                            "X\x00: y",
                            "X : y",
                            " folded",
                            ": nameless",
                            "X: \x00",
                            "X: a\rb",
                        )
                    )
                )
    return post(f"/classify/{task}", content_type, data, *extra, length=length)


def spoilt_target(draw: Random) -> bytes:
    """Methods and addresses, also such as lead out of the house."""
    path = draw.choice(_PATHS)
    if draw.random() < 0.3:
        path += "?" + quote_from_bytes(draw.randbytes(10))
    accept = draw.choice(("", "Accept: text/html\r\n", "Accept: application/openmetrics-text\r\n", "Accept: \xff\r\n"))
    head = f"{draw.choice(_METHODS)} {path} HTTP/1.1\r\nHost: fuzz\r\nConnection: close\r\n{accept}\r\n"
    return head.encode("utf-8", "surrogateescape")


def _chunked(draw: Random, data: bytes) -> bytes:
    parts: list[bytes] = []
    at = 0
    while at < len(data):
        size = draw.choice((1, 7, 100, 4096, 65_536)) if len(parts) < 50 else len(data)
        piece = data[at : at + size]
        parts.append(b"%x\r\n" % len(piece) + piece + b"\r\n")
        at += size
    return b"".join([*parts, b"0\r\n\r\n"])


def spoilt_chunks(draw: Random) -> bytes:
    """Chunk sizes that lie, extensions, trailers, and lengths beside them."""
    body = _chunked(draw, images()["jpeg"])
    first, _, rest = body.partition(b"\r\n")
    extended = first + b";" + b"x" * 5000
    new = draw.choice((b"0", b"f" * 16, b"-1", b"", b"1 ", extended, b"0x1", b"\xff", b"7fffffff"))
    choices = (
        new + b"\r\n" + rest,
        blindly(draw, body),
        body[:-5],
        body[:-2] + b"X-Request-ID: smuggled\r\nContent-Length: 5\r\n\r\n",
        body + body,
    )
    coding = draw.choice(("chunked", "chunked", "chunked, chunked", "gzip, chunked", "identity", "xchunked"))
    headers = [f"Transfer-Encoding: {coding}"]
    if draw.random() < 0.2:
        headers.append("Content-Length: 5")
    return post("/classify/image", "image/jpeg", draw.choice(choices), *headers)


def any_upload(draw: Random) -> bytes:
    """A sound request with whatever file."""
    task, make = draw.choice((("image", image_file), ("video", video_file)))
    return sound_upload(draw, task, make(draw)[1] if draw.random() < 0.8 else any_file(draw))
