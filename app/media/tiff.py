"""What a TIFF file means by its pixels, where Pillow leaves that to whoever reads it (TIFF 6.0, sections 3 and 8)."""

from __future__ import annotations

from io import BufferedReader

from PIL import Image, TiffImagePlugin

from app.errors import UnsupportedMedia
from app.media.colour import LEVELS, eight_bits
from app.media.reader import Data, MemoryFile

_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _PLANES = 256, 257, 258, 262, 284
_WHITE_IS_ZERO, _APART = 0, 2


def tells_size(data: Data) -> bool:
    """Whether the first directory tells a size: what cannot be opened then is of an unknown kind. Where it cannot be
    read, it raises what Pillow does."""
    with BufferedReader(MemoryFile(data)) as file:
        head = file.read(8)
        directory = TiffImagePlugin.ImageFileDirectory_v2(head + file.read(8) if head[2:3] == b"\x2b" else head)
        file.seek(directory.next)
        directory.load(file)
        return bool(directory.get(_WIDTH)) and bool(directory.get(_HEIGHT))


def check_planes(image: TiffImagePlugin.TiffImageFile) -> None:
    """Refuse planes of 16 bits one after the other, uncompressed: Pillow takes them for planes of 8.

    Raises:
        UnsupportedMedia: that is how its pixels are stored.
    """
    tags = image.tag_v2
    if tags.get(_PLANES) == _APART and 16 in tags.get(_BITS, ()) and any(tile[0] == "raw" for tile in image.tile):
        raise UnsupportedMedia(
            "the tiff image's planes of 16 bits are stored one after the other, which is not read; "
            "store its colours pixel by pixel"
        )


def usual_grey(image: TiffImagePlugin.TiffImageFile) -> Image.Image:
    """`image`, or its grey in 8 bits where it says it in 12, or in 16 the other way round."""
    if not image.mode.startswith("I;16"):
        return image
    tags = image.tag_v2
    white = 4095 if tags.get(_BITS) == (12,) else 65535
    negative = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    if white == 65535 and not negative:
        return image
    levels = LEVELS.clip(0, white) * 65535 // white
    return eight_bits(image, 65535 - levels if negative else levels)
