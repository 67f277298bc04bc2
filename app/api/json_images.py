"""`{"images": [{"b64": "…"}, …]}` read as it comes: no more of it is held than the files that it brings.

A parser would need the whole text first, hold the event loop while it reads it, and hold each image twice.
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Callable

from app.errors import MalformedRequest

_TOKEN = re.compile(rb"[^ \t\r\n]")  # RFC 8259, section 2
_LETTERS, _END = "the letters of an image", "the end"
# What may come in each state, and the state that follows. Nothing but this form is taken, so no key can stand twice.
_FORM: dict[str, dict[bytes, str]] = {
    "start": {b"{": "images"},
    "images": {b'"images"': "colon"},
    "colon": {b":": "list"},
    "list": {b"[": "image"},
    "image": {b"{": "b64"},
    "b64": {b'"b64"': "colon of b64"},
    "colon of b64": {b":": "string"},
    "string": {b'"': _LETTERS},
    "after the letters": {b"}": "after an image"},
    "after an image": {b",": "image", b"]": "after the list"},
    "after the list": {b"}": _END},
    _END: {},
}
_LONGEST = max(len(token) for tokens in _FORM.values() for token in tokens)
_WANTED = 'the JSON body must be {"images": [{"b64": "…"}, …]}'
_NOT_BASE64 = "b64 is not standard base64 with padding (no data: prefix, no line breaks, no URL-safe letters)"


class JsonImages:
    """Takes a body in chunks of any size, and gives the files in it piece by piece.

    Args:
        begin: called at the start of each image.
        write: called with its next bytes.
    """

    def __init__(self, begin: Callable[[], object], write: Callable[[bytes], object]) -> None:
        self._begin = begin
        self._write = write
        self._state = "start"
        self._kept = b""  # what is not yet a whole token, or a whole group of base64
        self._received = 0
        self._padded = False

    def feed(self, chunk: bytes) -> None:
        """Raises MalformedRequest at the first byte that is not of the form, and what `begin` and `write` raise."""
        self._received += len(chunk)
        text = self._kept + chunk
        self._kept = b""
        at = 0
        while at < len(text):
            at = self._take_letters(text, at) if self._state == _LETTERS else self._take_token(text, at)

    def check_complete(self) -> None:
        """Raise MalformedRequest if the body ended too early."""
        if self._state != _END:
            raise MalformedRequest(f"the body ends before its JSON does; {_WANTED}")

    def _take_token(self, text: bytes, at: int) -> int:
        """Read on at `at`; where to go on."""
        found = _TOKEN.search(text, at)
        if found is None:
            return len(text)
        at = found.start()
        rest = text[at : at + _LONGEST]
        for token, following in _FORM[self._state].items():
            if rest.startswith(token):
                self._state = following
                if following == _LETTERS:
                    self._begin()
                    self._padded = False
                return at + len(token)
            if token.startswith(rest):
                self._kept = rest
                return len(text)
        if self._state == "image" and rest.startswith(b"]"):
            raise MalformedRequest(f"an image is missing before the list ends; {_WANTED}")
        raise MalformedRequest(f"{_WANTED}, and it is not from byte {self._received - len(text) + at} on")

    def _take_letters(self, text: bytes, at: int) -> int:
        quote = text.find(b'"', at)
        letters, cut_off = _unescaped(text[at:] if quote < 0 else text[at:quote])
        whole = len(letters) // 4 * 4
        self._decode(letters[:whole])
        rest = letters[whole:] + cut_off
        if quote < 0:
            self._kept = rest
            return len(text)
        if rest:
            raise MalformedRequest(_NOT_BASE64)
        self._state = "after the letters"
        return quote + 1

    def _decode(self, groups: bytes) -> None:
        """Write what groups of four letters stand for; only the last one of a string may be padded."""
        if not groups:
            return
        try:
            data = binascii.a2b_base64(groups, strict_mode=True)
        except ValueError as error:
            raise MalformedRequest(_NOT_BASE64) from error
        padding = 3 * len(groups) // 4 - len(data)
        # Strict as it is, Python takes padding behind whole groups of four.
        if self._padded or padding > 2:
            raise MalformedRequest(_NOT_BASE64)
        self._padded = padding > 0
        self._write(data)


def _unescaped(letters: bytes) -> tuple[bytes, bytes]:
    r"""The letters without JSON's escapes, as some libraries write `\/` and `\u002B`, and an escape that is cut off."""
    if b"\\" not in letters:
        return letters, b""
    last = letters.rfind(b"\\", -5)
    cut_off = last >= 0 and (letters[last + 1 :] == b"" or letters[last + 1 :].startswith(b"u"))
    end = last if cut_off else len(letters)
    try:
        text: str = json.loads(f'"{letters[:end].decode("ascii")}"')
        return text.encode("ascii"), letters[end:]
    except ValueError as error:
        raise MalformedRequest(_NOT_BASE64) from error
