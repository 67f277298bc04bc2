"""The sound files that are spoilt: small, of every format that the README lists, made once and always the same."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import av
import numpy as np
import pillow_heif
from numpy.typing import NDArray
from PIL import Image
from priority import take_ordinary_priority

pillow_heif.register_heif_opener()

_WIDTH, _HEIGHT = 64, 48
_FRAMES = 12
_SIZES = {"h263": (128, 96), "dnxhd": (256, 120)}  # these know no smaller ones

_IMAGES: dict[str, tuple[str, str, dict[str, Any]]] = {  # Pillow's format, mode, options
    "jpeg": ("JPEG", "RGB", {}),
    "jpeg, progressive": ("JPEG", "RGB", {"progressive": True}),
    "jpeg, grey": ("JPEG", "L", {}),
    "jpeg, CMYK": ("JPEG", "CMYK", {}),
    "jpeg, restarts": ("JPEG", "RGB", {"restart_marker_rows": 1, "subsampling": "4:4:4"}),
    "png": ("PNG", "RGB", {}),
    "png, palette": ("PNG", "P", {"transparency": 3}),
    "png, transparent": ("PNG", "RGBA", {}),
    "png, 16 bits": ("PNG", "I;16", {}),
    "png, 1 bit": ("PNG", "1", {}),
    "png, animated": ("PNG", "RGB", {"save_all": True}),
    "webp": ("WEBP", "RGB", {}),
    "webp, lossless": ("WEBP", "RGBA", {"lossless": True}),
    "webp, transparent": ("WEBP", "RGBA", {}),
    "webp, animated": ("WEBP", "RGB", {"save_all": True}),
    "gif": ("GIF", "P", {}),
    "gif, animated": ("GIF", "P", {"save_all": True, "duration": 40, "loop": 0}),
    "bmp": ("BMP", "RGB", {}),
    "bmp, palette": ("BMP", "P", {}),
    "tiff": ("TIFF", "RGB", {}),
    "tiff, LZW": ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    "tiff, Deflate": ("TIFF", "RGB", {"compression": "tiff_adobe_deflate"}),
    "tiff, JPEG": ("TIFF", "RGB", {"compression": "jpeg"}),
    "tiff, fax": ("TIFF", "1", {"compression": "group4"}),
    "tiff, two pages": ("TIFF", "L", {"save_all": True}),
    "avif": ("AVIF", "RGB", {"speed": 10}),
    "avif, transparent": ("AVIF", "RGBA", {"speed": 10}),
    "heic": ("HEIF", "RGB", {}),
    "heic, tiles": ("HEIF", "RGB", {"tile_size": 32}),
    "heic, transparent": ("HEIF", "RGBA", {}),
}
_VIDEOS: dict[str, tuple[str, str, str, dict[str, str]]] = {  # libav's muxer, encoder, pixel format, muxer's options
    "mp4": ("mp4", "libx264", "yuv420p", {}),
    "mp4, fragments": ("mp4", "libx264", "yuv420p", {"movflags": "frag_keyframe+empty_moov"}),
    "mp4, H.265": ("mp4", "libx265", "yuv420p", {}),
    "mp4, MPEG-4": ("mp4", "mpeg4", "yuv420p", {}),
    "mov": ("mov", "mjpeg", "yuvj420p", {}),
    "mov, ProRes": ("mov", "prores_ks", "yuv422p10le", {}),
    "mov, DNxHD": ("mov", "dnxhd", "yuv422p", {}),
    "mkv": ("matroska", "libx264", "yuv420p", {}),
    "mkv, FFV1": ("matroska", "ffv1", "yuv420p", {}),
    "mkv, MPEG-1": ("matroska", "mpeg1video", "yuv420p", {}),
    "mkv, MPEG-2": ("matroska", "mpeg2video", "yuv420p", {}),
    "webm, VP8": ("webm", "libvpx", "yuv420p", {}),
    "webm, VP9": ("webm", "libvpx-vp9", "yuv420p", {}),
    "webm, AV1": ("webm", "libsvtav1", "yuv420p", {}),
    "avi": ("avi", "mpeg4", "yuv420p", {}),
    "avi, Motion JPEG": ("avi", "mjpeg", "yuvj420p", {}),
    "avi, raw": ("avi", "rawvideo", "yuv420p", {}),
    "avi, MS-MPEG-4": ("avi", "msmpeg4", "yuv420p", {}),
    "avi, MS-MPEG-4 v2": ("avi", "msmpeg4v2", "yuv420p", {}),
    "avi, H.263": ("avi", "h263", "yuv420p", {}),
    "gif, video": ("gif", "gif", "rgb8", {}),
}


def _picture(shift: int, width: int = _WIDTH, height: int = _HEIGHT) -> NDArray[np.uint8]:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([(4 * x + 9 * shift) % 256, (5 * y) % 256, (x + y + 20 * shift) % 256], axis=2).astype(np.uint8)


def _image(form: str, mode: str, options: dict[str, Any]) -> bytes:
    pages = [Image.fromarray(_picture(shift)) for shift in range(4 if options.get("save_all") else 1)]
    if mode == "I;16":
        pages = [Image.fromarray(np.asarray(page.convert("L")).astype(np.uint16) * 257) for page in pages]
    else:
        pages = [page.convert(mode) for page in pages]
    if form in ("JPEG", "PNG"):
        exif = Image.Exif()
        exif[0x0112] = 6
        options = {**options, "exif": exif}
    file = io.BytesIO()
    extra = {"append_images": pages[1:]} if pages[1:] else {}
    pages[0].save(file, form, **options, **extra)
    return file.getvalue()


def _video(container: str, codec: str, pixels: str, options: dict[str, str]) -> bytes:
    file = io.BytesIO()
    own = {"libx265": {"x265-params": "log-level=none"}, "dnxhd": {"profile": "dnxhr_sq"}}.get(codec, {})
    width, height = _SIZES.get(codec, (_WIDTH, _HEIGHT))
    with av.open(file, "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=24 if codec not in _SIZES else 30, options=own)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.codec_context.gop_size = 6
        for shift in range(_FRAMES):
            frame = av.VideoFrame.from_ndarray(_picture(shift, width, height), format="rgb24")
            output.mux(stream.encode(frame.reformat(format=pixels)))
        output.mux(stream.encode(None))
    take_ordinary_priority()
    return file.getvalue()


@cache
def images() -> dict[str, bytes]:
    """Sound images by what they are."""
    return {name: _image(*recipe) for name, recipe in _IMAGES.items()}


@cache
def videos() -> dict[str, bytes]:
    """Sound videos by what they are: those that this build of libav has an encoder for."""
    return {name: _video(*recipe) for name, recipe in _VIDEOS.items() if recipe[1] in av.codecs_available}
