"""The API key that a command sends to a server."""

from __future__ import annotations

import argparse


def api_key(text: str) -> str:
    """The value of `--api-key`, as it goes into a header: one character for each byte of its UTF-8, which servers read.

    Raises:
        argparse.ArgumentTypeError: no key has such characters, and a line break would end the header.
    """
    if not text.isprintable():
        raise argparse.ArgumentTypeError("a key has printable characters only")  # and is not shown
    return text.encode().decode("latin-1")
