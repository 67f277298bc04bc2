"""The body of an Open Inference Protocol request as it comes: JSON, then tensors, which go straight to their places."""

from __future__ import annotations

from collections.abc import Callable

from app.api.tensors import ELEMENT_HEAD, FILES, HEADER, MAX_HEADER_BYTES, MAX_JSON_BYTES, InferenceRequest
from app.api.uploads import Uploads
from app.errors import LimitExceeded, MalformedRequest
from app.media.shared import UploadedRows

_NOT_WHOLE = "the body ends before its tensors do"


class TensorBody:
    """Takes a body in chunks of any size.

    Args:
        header_nbytes: of the JSON before the tensors; None where all of the body is JSON.
        parse: reads the JSON.
        row_shape: of the model.
        uploads: where files go.
        reserve: told how many rows or files there will be, before memory is taken for them; may refuse.

    Attributes:
        request: what the JSON says, once it is there.
        rows: the rows that came; None where files did. `close` gives their memory back.
    """

    def __init__(
        self,
        header_nbytes: int | None,
        parse: Callable[[bytes], InferenceRequest],
        row_shape: tuple[int, ...],
        uploads: Uploads,
        reserve: Callable[[int], object],
    ) -> None:
        self._header_nbytes = header_nbytes
        self._parse = parse
        self._row_shape = row_shape
        self._reserve = reserve
        self._uploads = uploads
        self._text = bytearray()
        self._binary_nbytes = 0
        self._element_head = bytearray()
        self._element_missing = 0
        self.request: InferenceRequest | None = None
        self.rows: UploadedRows | None = None

    def feed(self, chunk: bytes) -> None:
        """Raises MalformedRequest, LimitExceeded, and what `parse` and `reserve` raise."""
        rest = memoryview(chunk)
        if self.request is None:
            missing = len(rest) if self._header_nbytes is None else self._header_nbytes - len(self._text)
            self._text += rest[:missing]
            rest = rest[missing:]
            if self._header_nbytes is None:
                if len(self._text) > MAX_JSON_BYTES:
                    raise LimitExceeded(
                        f"tensors in JSON may have {MAX_JSON_BYTES:,} bytes of it; send more as binary data "
                        "(binary_data_size, and the header Inference-Header-Content-Length)"
                    )
            elif len(self._text) == self._header_nbytes:
                self._begin()
        if self.request is not None and rest:
            self._take(self.request, rest)

    def finish(self) -> InferenceRequest:
        """The request, which is complete. Raises MalformedRequest where the body ended too early."""
        if self.request is None and self._header_nbytes is None:
            self._begin()
        cut_off = self._element_missing or self._element_head
        if self.request is None or self._binary_nbytes != self.request.nbytes or cut_off:
            raise MalformedRequest(_NOT_WHOLE)
        if self.request.kind == FILES and len(self._uploads.files) != self.request.count:
            raise MalformedRequest(
                f"there are {len(self._uploads.files)} files, but the shape has {self.request.count}"
            )
        return self.request

    def close(self) -> None:
        """Give the rows' memory back, as far as no engine reads it still."""
        if self.rows is not None:
            self.rows.close()

    def _begin(self) -> None:
        self.request = request = self._parse(bytes(self._text))
        self._text.clear()
        if request.kind == FILES:
            self._uploads.check_count(request.count)
            self._uploads.check_total(request.nbytes - ELEMENT_HEAD.size * request.count)
        else:
            self._uploads.check_total(request.nbytes)
        self._reserve(request.count)
        if request.kind == FILES:
            return
        self.rows = UploadedRows((request.count, *self._row_shape))
        if request.rows is not None:
            self.rows.write(request.rows.data.cast("B"))

    def _take(self, request: InferenceRequest, chunk: memoryview) -> None:
        self._binary_nbytes += len(chunk)
        if self._binary_nbytes > request.nbytes:
            raise MalformedRequest("the body goes on behind its tensors")
        if self.rows is not None:
            self.rows.write(chunk)
            return
        while chunk:
            if not self._element_missing:
                missing = ELEMENT_HEAD.size - len(self._element_head)
                self._element_head += chunk[:missing]
                chunk = chunk[missing:]
                if len(self._element_head) == ELEMENT_HEAD.size:
                    if len(self._uploads.files) == request.count:
                        raise MalformedRequest(f"there are more files than the {request.count} of the shape")
                    (self._element_missing,) = ELEMENT_HEAD.unpack(self._element_head)
                    self._element_head.clear()
                    self._uploads.begin()
            part = chunk[: self._element_missing]
            if part:
                self._uploads.write(part)
                self._element_missing -= len(part)
                chunk = chunk[len(part) :]


def header_nbytes(value: bytes, content_length: int | None) -> int | None:
    """The length of the JSON that `Inference-Header-Content-Length` announces; None without that header, or an empty
    one.

    Raises:
        MalformedRequest: it is no number, or more than the body has.
        LimitExceeded: it is more than is read.
    """
    if not value:
        return None
    if not value.isdigit() or len(value) > 12:
        raise MalformedRequest(f"the {HEADER} header is not a number of bytes")
    size = int(value)
    if content_length is not None and size > content_length:
        raise MalformedRequest(f"the {HEADER} header says more bytes than the body has")
    if size > MAX_HEADER_BYTES:
        raise LimitExceeded(f"the JSON before binary tensors may have {MAX_HEADER_BYTES:,} bytes")
    return size
