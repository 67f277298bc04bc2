"""Tells from a file's first bytes whether it can hold weights at all; `export.checkpoints` reads it. Needs no torch."""

from __future__ import annotations

from pathlib import Path, PurePath


def is_safetensors(name: str) -> bool:
    """Whether a file is to be read as safetensors, by its ending; every other one is of torch.save."""
    return PurePath(name).suffix.lower() == ".safetensors"


def wrong_start(path: Path, name: str) -> str | None:
    """What is wrong with the start of a file, in words; None where its ending and its first bytes agree.

    Args:
        name: what the file is called, or will be.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(12)
    if not start:
        return "the file is empty"
    safetensors = start[8:9] == b"{"  # JSON after its length, whose lowest byte may be any
    torch_save = not safetensors and start.startswith((b"PK\x03\x04", b"\x80"))  # a zip, or a bare pickle of old
    if safetensors if is_safetensors(name) else torch_save:
        return None
    if safetensors:
        return "this is a safetensors file: its name must end in .safetensors"
    if torch_save:
        return "this is no safetensors file but one of torch.save: its name must end in .pth"
    return f"this is no weights file, it starts with {start!r}"
