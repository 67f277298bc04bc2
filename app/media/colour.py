"""Any mode that Pillow decodes to, as 8-bit RGB.

- Transparency is laid on white, as a page or a viewer would show it. (`convert("RGB")` alone would bring out whatever
  colour the hidden pixels happen to have.)
- 16-bit grey is scaled to 8 bits, where Pillow would clip it.
- CMYK is converted without a colour profile, as Pillow and libjpeg do it; Adobe's inverted CMYK is set right by Pillow.
- Colour profiles (ICC) are not applied: the pipelines that Hiera was trained and evaluated with do not apply them
  either.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.errors import UnsupportedMedia

CONVERT_IT = "convert it to 8 or 16 bits, grey or RGB"
LEVELS = np.arange(65536, dtype=np.uint32)  # of 16-bit grey
_WHITE = (255, 255, 255)
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_WITH_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")
_CONVERTIBLE = ("1", "L", "P", "CMYK", "YCbCr", "RGBX", "HSV")


def to_rgb(image: Image.Image) -> Image.Image:
    """`image` as mode RGB, itself if it is already.

    Raises:
        UnsupportedMedia: its pixels are 32-bit or floating-point numbers, or of a colour space without a conversion.
    """
    if "transparency" in image.info and image.mode in ("1", "L", "P", "RGB", *_SIXTEEN_BITS):
        if image.mode in _SIXTEEN_BITS:  # one grey level stands for transparent
            return _grey_on_white(image)
        return _on_white(image.convert("RGBA"))
    if image.mode == "RGB":
        return image
    if image.mode in _WITH_ALPHA:
        return _on_white(image)
    if image.mode in _SIXTEEN_BITS:
        return eight_bits(image).convert("RGB")
    if image.mode in _CONVERTIBLE:
        return image.convert("RGB")
    raise UnsupportedMedia(f"images whose pixels are of the kind {image.mode!r} are not read; {CONVERT_IT}")


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "RGBa":  # premultiplied
        image = image.convert("RGBA")
    elif image.mode == "La":
        image = image.convert("LA")
    canvas = Image.new("RGB", image.size, _WHITE)
    canvas.paste(image.convert("RGB"), mask=image.getchannel("A"))
    return canvas


def eight_bits(image: Image.Image, levels: NDArray[np.uint32] = LEVELS) -> Image.Image:
    """16-bit grey as 8-bit grey; `levels`, [65536], says what each value stands for, with 65,535 for white."""
    # A table, because arithmetic on a large image would need several copies of it.
    table = (levels * 255 + 32767) // 65535
    return Image.fromarray(table.astype(np.uint8)[np.asarray(image)])


def _grey_on_white(image: Image.Image) -> Image.Image:
    hidden = np.asarray(image) == image.info["transparency"]
    grey = np.asarray(eight_bits(image)).copy()
    grey[hidden] = 255
    return Image.fromarray(grey).convert("RGB")
