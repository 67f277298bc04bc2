"""The folder in which engines keep what they compiled and measured."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from app.engines.plans import file_sha256

_log = logging.getLogger("hiera.engines")
_DIGESTS = "digests.json"
# What nobody has loaded for so long is of a version that is gone.
_UNUSED_S = 30 * 86400
_Compiled = TypeVar("_Compiled")


def usable_cache(folder: Path | None) -> Path | None:
    """`folder`, made if need be; None, with a warning, where nothing can be written: no cache must cost the models."""
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        _log.warning("nothing is kept for the next start, which will be slower: %s cannot be used (%s)", folder, error)
        return None
    return folder


def keep_compiled(root: Path, identity: str, compile_in: Callable[[Path | None], _Compiled]) -> _Compiled:
    """What `compile_in` makes, with the files that its library keeps for the next time.

    Libraries write such files in place and map them, and servers share the folder: what one of them maps, the start of
    another must not cut short, and what a disk has damaged must not be served. So they are written into a folder that
    nobody else reads, appear all at once with their digests, and are not used once they differ from these. What has not
    been used for 30 days goes when something new comes.

    Args:
        root: holds a folder for each identity; made if need be.
        identity: all that the files are valid for.
        compile_in: told where the library finds its files, or leaves them; None where nothing can be kept, or while
            another process compiles the same.

    Raises:
        What `compile_in` raises.
    """
    kept = root / hashlib.sha256(identity.encode()).hexdigest()[:24]
    if _is_intact(kept):
        with contextlib.suppress(OSError):  # a cache that may only be read
            (kept / _DIGESTS).touch()
        return compile_in(kept)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with kept.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unfinished = kept.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            try:
                compiled = compile_in(unfinished)
                _keep(unfinished, kept)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
            return compiled
    except BlockingIOError:
        pass
    except OSError as error:
        _log.warning("compiled models are not kept in %s (%s)", root, error)
    return compile_in(None)


def _keep(unfinished: Path, kept: Path) -> None:
    try:
        digests = {file.name: file_sha256(file) for file in unfinished.iterdir()}
        if not digests:  # the library found no room
            return
        (unfinished / _DIGESTS).write_text(json.dumps(digests), encoding="utf-8")
        shutil.rmtree(kept, ignore_errors=True)  # who has mapped the old files has them still
        unfinished.rename(kept)
        _drop_unused(kept.parent)
    except OSError as error:
        _log.warning("a compiled model is not kept for the next start (%s)", error)


def _drop_unused(root: Path) -> None:
    """Locks stay: who waits for one that is gone would not see who takes its successor."""
    for digests in root.glob(f"*/{_DIGESTS}"):
        with contextlib.suppress(FileNotFoundError):  # another process drops it
            if time.time() - digests.stat().st_mtime > _UNUSED_S:
                shutil.rmtree(digests.parent, ignore_errors=True)


def _is_intact(kept: Path) -> bool:
    try:
        digests = json.loads((kept / _DIGESTS).read_text(encoding="utf-8"))
        found = {file.name: file_sha256(file) for file in kept.iterdir() if file.name != _DIGESTS}
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        _log.warning("a compiled model cannot be read and is made again (%s)", error)
        return False
    if found != digests:
        _log.warning("the compiled model in %s has been damaged, or is of another graph, and is made again", kept)
    return bool(found == digests)
