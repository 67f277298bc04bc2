"""From a request's body to files in shared memory: raw, multipart or JSON, judged by the Content-Type header alone.

Bytes go from the socket straight into the memory that the media workers map. File names are ignored, and so is what a
part says of its own type: the decoder looks at the bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.api.body import Body
from app.api.json_images import JsonImages
from app.errors import LimitExceeded, MalformedRequest, UnsupportedMedia
from app.media.shared import SharedBytes
from app.serving.results import Task

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FILE_PART = "file"
_CURL_DEFAULT = b"application/x-www-form-urlencoded"  # what curl calls any body given with --data-binary
_IDENTITY = ("", "identity")
_PLAIN_TRANSFER = (b"", b"binary", b"8bit", b"7bit")
OVERHEAD_BYTES = 64 * 1024  # of boundaries, part headers, JSON's punctuation, lengths
_MAX_CONTENT_TYPE_BYTES = 1024  # reading it takes a microsecond a byte, before anybody was admitted


@dataclass(frozen=True)
class UploadLimits:
    """What one request may bring. `max_request_bytes` bounds all files of a request together."""

    max_file_bytes: int
    max_request_bytes: int
    max_files: int


class Uploads:
    """The files of one request, in the order sent; `close` gives all of their memory back.

    Args:
        limits: what may come.
        on_file, on_bytes: told of every file after the first, and of every chunk, before memory is taken for it; what
            they raise refuses the request.
    """

    def __init__(
        self,
        limits: UploadLimits,
        on_file: Callable[[], object] = lambda: None,
        on_bytes: Callable[[int], object] = lambda count: None,
    ) -> None:
        self.files: list[SharedBytes] = []
        self._limits = limits
        self._on_file = on_file
        self._on_bytes = on_bytes

    def check_count(self, files: int) -> None:
        """Raise LimitExceeded if so many files are too many."""
        most = self._limits.max_files
        if files > most:
            raise LimitExceeded(f"at most {most} file{'s' if most > 1 else ''} can be sent in one request")

    def check_total(self, nbytes: int) -> None:
        """Raise LimitExceeded if so many bytes are too many for one request."""
        if nbytes > self._limits.max_request_bytes:
            most = self._limits.max_request_bytes
            raise LimitExceeded(f"{nbytes:,} bytes were announced; at most {most:,} can be sent in one request")

    def begin(self) -> None:
        """Start the next file."""
        self.check_count(len(self.files) + 1)
        if self.files:
            self._on_file()
        self.files.append(SharedBytes())

    def write(self, chunk: bytes | memoryview) -> None:
        """Append to the last file."""
        file = self.files[-1]
        if file.size + len(chunk) > self._limits.max_file_bytes:
            raise LimitExceeded(f"a file is larger than the {self._limits.max_file_bytes:,} bytes that are accepted")
        self._on_bytes(len(chunk))
        file.write(chunk)

    def close(self) -> None:
        for file in self.files:
            file.close()


@dataclass(frozen=True)
class Envelope:
    """How the files of a request are wrapped: known from its headers, so that it can be refused before it is read."""

    kind: Literal["raw", "multipart", "json"]
    max_body_bytes: int
    boundary: bytes = b""


def envelope_of(body: Body, task: Task, limits: UploadLimits) -> Envelope:
    """Read the headers of a request.

    Raises:
        MalformedRequest: multipart without a boundary, or a content type of kilobytes.
        UnsupportedMedia: a content type or encoding that this route does not take.
        LimitExceeded: Content-Length says that the body is too large.
    """
    check_encoding(body)
    if len(body.content_type) > _MAX_CONTENT_TYPE_BYTES:
        raise MalformedRequest(f"the Content-Type header is longer than {_MAX_CONTENT_TYPE_BYTES:,} bytes")
    kind, options = parse_options_header(body.content_type)
    if kind == b"multipart/form-data":
        boundary = options.get(b"boundary", b"")
        if not boundary:
            raise MalformedRequest("the Content-Type header has no boundary; let your HTTP library write that header")
        envelope = Envelope("multipart", limits.max_request_bytes + OVERHEAD_BYTES, boundary)
    elif kind == b"application/json" and task == "image":
        envelope = Envelope("json", 4 * limits.max_request_bytes // 3 + OVERHEAD_BYTES)
    elif _is_raw(kind, task):
        envelope = Envelope("raw", limits.max_file_bytes)
    else:
        raise UnsupportedMedia(_unsupported(kind, task))
    body.check_length(envelope.max_body_bytes)
    return envelope


def check_encoding(body: Body) -> None:
    """Raise UnsupportedMedia for a body that would have to be unpacked."""
    if body.encoding not in _IDENTITY or body.transfer_encoding not in ("", "chunked"):
        raise UnsupportedMedia("compressed bodies are not read; send the file as it is, without Content-Encoding")


async def receive_files(body: Body, envelope: Envelope, uploads: Uploads, deadline: float) -> None:
    """Read the body into `uploads`, which holds at least one file afterwards, perhaps an empty one.

    Raises:
        MalformedRequest: no file, or an envelope that cannot be read.
        LimitExceeded: too many bytes or files.
        UploadTooSlow, DeadlineExceeded, RequestCancelled: see `Body.read`.
    """
    if envelope.kind == "multipart":
        parts = _Parts(uploads)
        await body.read(_feeder(envelope.boundary, parts), max_bytes=envelope.max_body_bytes, deadline=deadline)
        parts.check_complete()
    elif envelope.kind == "json":
        images = JsonImages(uploads.begin, uploads.write)
        await body.read(images.feed, max_bytes=envelope.max_body_bytes, deadline=deadline)
        images.check_complete()
    else:
        uploads.begin()
        await body.read(uploads.write, max_bytes=envelope.max_body_bytes, deadline=deadline)
    if not uploads.files:
        raise MalformedRequest(f"there is no file in the body; send it in a part named {FILE_PART!r}")


def _feeder(boundary: bytes, parts: _Parts) -> Callable[[bytes], None]:
    """What feeds python-multipart's parser. `parts` does not know the parser: a cycle of the two would be left to the
    garbage collector, request by request."""
    try:
        parser = MultipartParser(boundary, parts.callbacks())
    except FormParserError as error:
        raise MalformedRequest("the multipart boundary is too long") from error

    def feed(chunk: bytes) -> None:
        try:
            parser.write(chunk)
        except FormParserError as error:
            raise MalformedRequest("the multipart body cannot be read: it breaks RFC 7578's form") from error

    return feed


class _Parts:
    """Takes what python-multipart's parser finds."""

    def __init__(self, uploads: Uploads) -> None:
        self._uploads = uploads
        self._field = self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._ended = False

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": self._add_to_field,
            "on_header_value": self._add_to_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_file,
            "on_part_data": self._add_to_file,
            "on_end": self._end,
        }

    def check_complete(self) -> None:
        if not self._ended:
            raise MalformedRequest("the multipart body ends before its closing boundary")

    def _begin_part(self) -> None:
        self._headers = {}

    def _add_to_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field = self._value = b""

    def _begin_file(self) -> None:
        disposition, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if disposition != b"form-data" or name != FILE_PART:
            raise MalformedRequest(
                f"a part is named {name[:40]!r}; files go into parts named {FILE_PART!r}, options into the query string"
            )
        if self._headers.get(b"content-transfer-encoding", b"").strip().lower() not in _PLAIN_TRANSFER:
            raise MalformedRequest("a part has a Content-Transfer-Encoding; send its bytes as they are")
        self._uploads.begin()

    def _add_to_file(self, data: bytes, start: int, end: int) -> None:
        self._uploads.write(memoryview(data)[start:end])

    def _end(self) -> None:
        self._ended = True


def _is_raw(kind: bytes, task: Task) -> bool:
    if kind in (b"", b"application/octet-stream"):
        return True
    if task == "image":
        return kind.startswith(b"image/")
    # Some containers of videos are registered elsewhere.
    return kind.startswith(b"video/") or kind in (b"image/gif", b"application/mp4", b"application/x-matroska")


def _unsupported(kind: bytes, task: Task) -> str:
    other: Task = "video" if task == "image" else "image"
    if _is_raw(kind, other):
        return f"this address takes {task}s; send {other}s to /classify/{other}"
    raw = f"{task}/* or application/octet-stream"
    json = ', application/json ({"images": [{"b64": …}]})' if task == "image" else ""
    hint = "; curl wants -H 'Content-Type: application/octet-stream'" if kind == _CURL_DEFAULT else ""
    taken = f"send multipart/form-data{json}, {raw}{hint}"
    return f"the content type {kind.decode('latin-1')[:60]!r} is not read here; {taken}"
