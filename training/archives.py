"""The tar archives that the demo models' recipes read their pictures from."""

from __future__ import annotations

import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from app.errors import LimitExceeded
from app.media.limits import MediaLimits
from app.repository.manifest import check_regular

_LIMITS = MediaLimits()


class ArchiveError(Exception):
    """An archive that nothing can be learnt from. The message names it and says what is wrong with it."""


def read_pictures(archive: Path, wanted: Callable[[str], bool] = lambda _: True) -> Iterator[tuple[str, Image.Image]]:
    """Name and RGB pixels of the JPEG files in a tar archive, compressed or not, in the archive's order.

    Args:
        wanted: tells by its name whether a file is decoded.

    Raises:
        ArchiveError: it cannot be read, is no tar archive or cut short, or a picture in it is damaged or too large.
    """
    try:
        check_regular(archive)
        with tarfile.open(archive) as tar:
            for member in tqdm(tar, desc="reading", unit="file", mininterval=1.0, dynamic_ncols=True):
                if member.name.lower().endswith((".jpg", ".jpeg")) and member.isfile() and wanted(member.name):
                    yield member.name, _picture(archive, tar, member)
    except FileNotFoundError as error:
        raise ArchiveError(f"{archive}: no such file; --data names the folder that holds it") from error
    except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "no tar archive, or cut short"
        raise ArchiveError(f"{archive} cannot be read ({reason}): fetch or make it again") from error


def _picture(archive: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> Image.Image:
    try:
        _LIMITS.check_bytes(member.size)
    except LimitExceeded as error:
        raise ArchiveError(f"{archive}: {member.name}: {error}") from error
    file = tar.extractfile(member)
    data = b"" if file is None else file.read()
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except Exception as error:  # of a file that is none, Pillow lets through what zlib, struct and others say
        raise ArchiveError(f"{archive}: {member.name} is no JPEG picture, or damaged ({error})") from error
