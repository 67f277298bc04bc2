"""Files that show less, or more, than the frames that they hold: edit lists and AVI's frames without bytes."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from clips import Clip, indexed_first, read_number, write

from app.errors import BrokenMedia
from app.media.limits import MediaLimits
from app.media.spec import DecodeInfo, VideoSpec
from app.media.video import decode_video

SPEC = VideoSpec(16, 4, 30.0, "dense", resize_short_side=160, height=160, width=160)
CONTAINERS = {b"moov", b"trak", b"edts"}


def decode(data: bytes) -> tuple[list[int], DecodeInfo]:
    out = np.zeros((1, 16, 160, 160, 3), np.uint8)
    info = decode_video(data, SPEC, MediaLimits(), out, 1, 1, 1)
    return [read_number(frame) for frame in out[0]], info


def boxes(data: bytes | bytearray, start: int = 0, end: int | None = None) -> dict[bytes, int]:
    """Where the body of each box lies, by its type (ISO 14496-12, 4.2)."""
    found: dict[bytes, int] = {}
    end = len(data) if end is None else end
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        found[kind] = start + 8
        if kind in CONTAINERS:
            found |= boxes(data, start + 8, start + size)
        start += size
    return found


def trimmed(data: bytes, start_s: float, seconds: float) -> bytes:
    """The same frames, of which the edit list shows `seconds` from `start_s` on, as a trim without loss leaves them."""
    file = bytearray(data)
    at = boxes(file)
    (ticks,) = struct.unpack_from(">I", file, at[b"mvhd"] + 12)
    media_ticks, length = struct.unpack_from(">iI", file, at[b"elst"] + 12), int(seconds * ticks)
    first = media_ticks[0] + int(start_s * 15360)
    struct.pack_into(">Ii", file, at[b"elst"] + 8, length, first)
    struct.pack_into(">I", file, at[b"mvhd"] + 16, length)
    struct.pack_into(">I", file, at[b"tkhd"] + 20, length)
    return bytes(file)


@pytest.mark.parametrize(
    ("start_s", "seconds", "frames", "first", "last"),
    [(0, 10, 300, 118, 181), (0, 5, 150, 43, 106), (0, 9.5, 285, 110, 173), (3, 3, 90, 103, 166), (8, 2, 60, 240, 299)],
)
def test_what_an_edit_list_leaves_is_the_video(
    start_s: float, seconds: float, frames: int, first: int, last: int
) -> None:
    data = write(Clip(frames=300, gop=30, max_b_frames=0))
    numbers, info = decode(trimmed(data, start_s, seconds))
    assert info.frames == frames
    assert info.duration_s == pytest.approx(seconds)
    assert (numbers[0], numbers[-1]) == (first, last)


def test_a_trimmed_video_that_breaks_off_is_still_found_out(tmp_path: Path) -> None:
    data = indexed_first(write(Clip(frames=300, gop=30, max_b_frames=0)), tmp_path / "fast.mp4")
    with pytest.raises(BrokenMedia, match=r"breaks off after [12]\.\d of 8\.0 s"):
        decode(trimmed(data, 0, 8)[: int(len(data) * 0.3)])


def still_at_the_end(data: bytes, dropped: int) -> bytes:
    """An AVI whose last picture stays for so many frames more, which have no bytes of their own."""
    file = bytearray(data)
    movi = file.index(b"movi")
    (size,) = struct.unpack_from("<I", file, movi - 4)
    end = movi - 4 + 4 + size
    chunk = b"00dc" + bytes(4)
    (index_size,) = struct.unpack_from("<I", file, end + 4)
    assert file[end : end + 4] == b"idx1"
    entries = b"".join(struct.pack("<4sIII", b"00dc", 0, size + 8 * n, 0) for n in range(dropped))
    frames_at = {file.index(b"avih") + 8 + 16, file.index(b"strh") + 8 + 32}
    file[end + 8 + index_size : end + 8 + index_size] = entries
    struct.pack_into("<I", file, end + 4, index_size + len(entries))
    file[end:end] = chunk * dropped
    struct.pack_into("<I", file, movi - 4, size + 8 * dropped)
    for at in frames_at:
        (frames,) = struct.unpack_from("<I", file, at)
        struct.pack_into("<I", file, at, frames + dropped)
    struct.pack_into("<I", file, 4, len(file) - 8)
    return bytes(file)


def late_to_begin(data: bytes, dropped: int) -> bytes:
    """An AVI whose first so many frames have no bytes of their own, as of a recorder that waits for its camera."""
    file = bytearray(data)
    movi = file.index(b"movi")
    (size,) = struct.unpack_from("<I", file, movi - 4)
    index = movi - 4 + 4 + size
    (index_size,) = struct.unpack_from("<I", file, index + 4)
    for at in range(index + 8, index + 8 + index_size, 16):
        (offset,) = struct.unpack_from("<I", file, at + 8)
        struct.pack_into("<I", file, at + 8, offset + 8 * dropped)
    file[index + 8 : index + 8] = b"".join(struct.pack("<4sIII", b"00dc", 0, 4 + 8 * n, 0) for n in range(dropped))
    struct.pack_into("<I", file, index + 4, index_size + 16 * dropped)
    file[movi + 4 : movi + 4] = (b"00dc" + bytes(4)) * dropped
    struct.pack_into("<I", file, movi - 4, size + 8 * dropped)
    for at in (file.index(b"avih") + 8 + 16, file.index(b"strh") + 8 + 32):
        (frames,) = struct.unpack_from("<I", file, at)
        struct.pack_into("<I", file, at, frames + dropped)
    struct.pack_into("<I", file, 4, len(file) - 8)
    return bytes(file)


def test_an_avi_that_begins_in_frames_without_bytes_begins_with_its_first_picture() -> None:
    data = write(Clip("avi", "mpeg4", frames=150, gop=24, max_b_frames=2))
    numbers, info = decode(late_to_begin(data, 40))
    assert numbers == decode(data)[0]
    assert info.frames == 150


def test_an_avi_that_ends_in_frames_without_bytes_holds_its_last_picture() -> None:
    data = still_at_the_end(write(Clip("avi", "mpeg4", frames=150, gop=24)), 150)
    numbers, info = decode(data)
    assert info.frames == 300
    assert info.duration_s == pytest.approx(10)
    assert numbers == [118, 122, 126, 130, 134, 139, 143, 147] + [149] * 8
    with pytest.raises(BrokenMedia, match="breaks off after"):
        decode(data[: int(len(data) * 0.3)])
