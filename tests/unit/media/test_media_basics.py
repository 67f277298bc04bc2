"""Formats, limits, geometry, files in memory: the small parts that the decoders stand on."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import encode
from PIL import Image

from app.errors import LimitExceeded
from app.media import formats
from app.media.geometry import Orientation, center_crop, pillow_resizes_rows_first, resized
from app.media.heap import keep_freed_memory
from app.media.jpeg import exif_orientation, read_header, scaling_for
from app.media.limits import MediaLimits
from app.media.reader import MemoryFile
from app.media.spec import DecodeInfo, DecodeJob, ImageSpec, VideoSpec, View, row_shape, rows_of

IMAGE = ImageSpec(256, 224, 192)
VIDEO = VideoSpec(16, 4, 30.0, "dense", 256, 224, 192)


def test_what_is_at_a_limit_is_accepted_and_what_is_beyond_refused_whichever_side_is_the_longer() -> None:
    limits = MediaLimits(max_side_pixels=300, max_aspect_ratio=3.0, max_video_seconds=10.0)
    for check in (limits.check_image, limits.check_video_frame):
        for accepted in ((300, 100), (100, 300), (0, 0)):
            check(*accepted)
        for refused in ((301, 200), (200, 301), (300, 99), (99, 300)):
            with pytest.raises(LimitExceeded):
                check(*refused)
    limits.check_video_length(10.0, None)
    with pytest.raises(LimitExceeded, match="at most 10 s"):
        limits.check_video_length(10.1, None)


def test_rows_and_shapes_follow_from_the_job() -> None:
    assert row_shape(IMAGE) == (224, 192, 3)
    assert row_shape(VIDEO) == (16, 224, 192, 3)
    assert rows_of(DecodeJob(IMAGE, clips=5, crops=3)) == 1
    assert rows_of(DecodeJob(VIDEO, clips=5, crops=3)) == 15


def test_what_is_found_travels_between_processes() -> None:
    info = DecodeInfo(3, 2, "mp4", 10, 0.5, 20.0, (View(0, 1, 0.0, 0.5),))
    assert pickle.loads(pickle.dumps(info)) == info


def test_a_spec_that_cannot_be_met_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        ImageSpec(resize_short_side=200, height=224, width=224)
    with pytest.raises(ValueError, match="must be positive"):
        VideoSpec(0, 4, 30.0, "dense", 256, 224, 224)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF"])
def test_images_are_recognised_by_their_first_bytes(format: str) -> None:
    found = formats.sniff(encode(Image.new("RGB", (8, 8)), format))
    assert found is not None
    assert found.image == ("heic" if format == "HEIF" else format.lower())


def ftyp(*brands: bytes, after: bytes = b"") -> bytes:
    """The first box of an ISO base media file: its own brand, a version, and those that it is compatible with."""
    body = b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])
    return (4 + len(body)).to_bytes(4, "big") + body + after


@pytest.mark.parametrize(
    ("head", "image", "video"),
    [
        (b"GIF87a", "gif", "gif"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "webp", None),
        (b"RIFF\x10\0\0\0AVI LIST", None, "avi"),
        (b"RIFF\x10\0\0\0ACONanih", None, None),
        *((ftyp(brand), "avif", None) for brand in (b"avif", b"avis")),
        *((ftyp(b"mif1", b"miaf", brand), "avif", None) for brand in (b"avif", b"avis")),
        (ftyp(b"mif1", b"avif", b"miaf"), "avif", None),
        *(
            (ftyp(brand, b"miaf"), "heic", None)
            for brand in (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
        ),
        (ftyp(b"mif1", after=b"\0\0\0\x10avifavif"), "heic", None),  # that is another box
        (ftyp(b"isom", b"avif"), None, "mp4"),
        (ftyp(b"3gp4"), None, "mp4"),
        (ftyp(b"qt  "), None, "mov"),
        (ftyp(b"crx ", b"isom"), None, None),
        *((b"\0\0\0\x08" + box, None, "mov") for box in (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")),
        (b"\x1a\x45\xdf\xa3" + bytes(20) + b"\x42\x82\x84webm", None, "webm"),
        (b"\x1a\x45\xdf\xa3" + bytes(56) + b"webm", None, "webm"),
        (b"\x1a\x45\xdf\xa3" + bytes(20) + b"matroska" + bytes(200) + b"a webm of old", None, "matroska"),
        *((b"BM" + bytes(12) + bytes((size, 0, 0, 0)), "bmp", None) for size in (12, 16, 40, 52, 56, 64, 108, 124)),
        (b"BM" + bytes(12) + bytes((41, 0, 0, 0)), None, None),
    ],
)
def test_formats_are_told_by_what_their_standards_put_first(head: bytes, image: str | None, video: str | None) -> None:
    found = formats.sniff(head) or formats.MediaFormat()
    assert (found.image, found.video) == (image, video)


@pytest.mark.parametrize("boxes", [2, 900])
def test_a_file_of_many_boxes_is_looked_through_to_its_end(boxes: int) -> None:
    whole = (b"\0\0\0\x08free" * boxes) + b"\0\0\0\x10mdat" + bytes(8)
    assert not formats.ends_within_a_box(whole)
    assert formats.ends_within_a_box(whole[:-1])
    assert not formats.ends_within_a_box(whole + b"\0\0\0\x07free")  # less than its own header is damage


def test_a_gif_is_an_image_and_a_video() -> None:
    data = encode(Image.new("RGB", (8, 8)), "GIF")
    assert formats.require_image(data) == "gif"
    assert formats.require_video(data) == "gif"


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (37, 1000), (16383, 2)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_webps_size_is_read_from_its_header(size: tuple[int, int], lossless: bool, mode: str) -> None:
    data = encode(Image.new(mode, size), "WEBP", lossless=lossless)
    assert formats.webp_size(data) == size
    assert formats.webp_size(data[:29]) is None


def test_the_scale_that_a_lossy_webp_asks_its_viewer_for_is_no_part_of_its_size() -> None:
    data = bytearray(encode(Image.new("RGB", (37, 1000)), "WEBP"))
    for at, scale in ((27, 0x40), (29, 0x80)):
        data[at] |= scale
    assert formats.webp_size(data) == (37, 1000)


def test_a_file_without_a_table_of_items_lacks_no_codec() -> None:
    assert not formats.lacks_hevc(ftyp(b"heic", b"mif1"))


@given(st.binary(max_size=64))
def test_no_first_bytes_upset_the_sniffer(data: bytes) -> None:
    formats.sniff(data)
    formats.webp_size(data)
    formats.sniff(b"\0\0\0\xffftyp" + data)


@given(st.binary(max_size=200))
def test_no_header_upsets_the_jpeg_reader(data: bytes) -> None:
    read_header(b"\xff\xd8" + data)
    exif_orientation(data)
    exif_orientation(b"II*\0" + data)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_jpeg_reader_finds_what_pillow_finds(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    exif[0x0112] = orientation
    header = read_header(encode(Image.new("RGB", (37, 21)), "JPEG", exif=exif, comment=b"hello"))
    assert header is not None
    assert (header.width, header.height, header.orientation, header.plain) == (37, 21, orientation, True)


def test_grey_and_cmyk_jpegs_are_not_plain() -> None:
    for mode in ("L", "CMYK"):
        header = read_header(encode(Image.new(mode, (8, 8)), "JPEG"))
        assert header is not None
        assert not header.plain


def test_the_decoder_scales_only_where_there_is_margin() -> None:
    assert [scaling_for(side, 4 * side, 256) for side in (256, 1433, 1434, 2867, 2868, 5734, 5735)] == [
        1, 1, 2, 2, 4, 4, 8,
    ]  # fmt: skip


def test_sizes_round_as_torchvisions_do() -> None:
    assert resized(500, 331, 256) == (386, 256)
    assert resized(331, 500, 256) == (256, 386)
    assert resized(300, 300, 256) == (256, 256)


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 8))
def test_a_plan_stays_inside_of_the_image(width: int, height: int, orientation: int) -> None:
    crop = center_crop(width, height, 256, 224, 224, Orientation.from_exif(orientation))
    for axis, size in ((crop.columns, width), (crop.rows, height)):
        assert axis.source == size
        assert 0 <= axis.start < axis.stop <= size
        first, last = axis.reach(2.0)
        assert 0 <= first < last <= size
    for axis, size in ((crop.reduced(4).columns, width), (crop.reduced(4).rows, height)):
        assert 0 <= axis.start < axis.stop <= axis.source == -(-size // 4)


@pytest.mark.parametrize(
    ("size", "new_size"),
    [
        ((300, 301), (200, 100)), ((300, 300), (200, 100)), ((333, 500), (256, 384)), ((300, 901), (256, 768)),
        ((600, 400), (386, 256)), ((210, 122), (200, 100)), ((100, 300), (200, 600)), ((100, 102), (200, 100)),
        ((100, 100), (200, 200)),
    ],
)  # fmt: skip
def test_the_order_of_the_passes_is_that_of_the_pillow_installed(
    size: tuple[int, int], new_size: tuple[int, int]
) -> None:
    """At hard edges the order shows, so each order by itself tells which one Pillow took."""
    pixels = np.random.default_rng(0).integers(0, 2, (size[1], size[0]), dtype=np.uint8) * 255
    image = Image.fromarray(pixels)
    whole = np.asarray(image.resize(new_size))
    columns_first = np.asarray(image.resize((new_size[0], size[1])).resize(new_size))
    rows_first = np.asarray(image.resize((size[0], new_size[1])).resize(new_size))
    expected = rows_first if pillow_resizes_rows_first(*size, *new_size) else columns_first
    assert (whole == expected).all()


def test_nonsense_in_the_orientation_tag_means_upright() -> None:
    for value in (0, 9, -1, None, "6", (6,), 6.0, [6]):
        assert Orientation.from_exif(value) == Orientation()


@given(
    st.binary(max_size=50),
    st.lists(st.tuples(st.sampled_from(["read", "seek", "end", "here", "into"]), st.integers(0, 60))),
)
def test_a_memory_file_behaves_as_bytesio(data: bytes, steps: list[tuple[str, int]]) -> None:
    ours, reference = MemoryFile(data), io.BytesIO(data)
    for step, number in steps:
        if step == "read":
            assert ours.read(number) == reference.read(number)
        elif step == "seek":
            assert ours.seek(number) == reference.seek(number)
        elif step == "here":
            assert ours.seek(number, io.SEEK_CUR) == reference.seek(number, io.SEEK_CUR)
        elif step == "end":
            assert ours.seek(-min(number, len(data)), io.SEEK_END) == reference.seek(
                -min(number, len(data)), io.SEEK_END
            )
        else:
            here, there = bytearray(number), bytearray(number)
            assert ours.readinto(here) == reference.readinto(there)
            assert here == there
        assert ours.tell() == reference.tell()
    assert ours.read() == reference.read()


def test_a_memory_file_reads_on_from_where_it_stands() -> None:
    file = MemoryFile(b"0123456789")
    assert file.read(0) == b""
    assert (file.seek(3), file.seek(2, io.SEEK_CUR), file.seek(-1, io.SEEK_CUR)) == (3, 5, 4)
    assert file.read(None) == b"456789"
    for before_the_start in ((-1, io.SEEK_SET), (-11, io.SEEK_CUR), (-11, io.SEEK_END)):
        with pytest.raises(ValueError, match="negative seek position -1"):
            file.seek(*before_the_start)
    assert file.tell() == 10


def test_a_memory_file_is_of_bytes_whatever_the_memory_holds() -> None:
    file = MemoryFile(memoryview(b"\0\0\1\0\2\0\3\0").cast("H"))
    assert file.seek(0, io.SEEK_END) == 8
    file.seek(1)
    assert file.read(2) == b"\0\1"


def test_a_closed_memory_file_lets_go_of_its_data() -> None:
    data = bytearray(b"12345")
    file = MemoryFile(data)
    file.close()
    file.close()
    data.append(0)  # BufferError if a view were left


def test_freed_memory_can_be_kept_on_linux() -> None:
    assert keep_freed_memory() in (True, False)
    assert np.ones(1_000_000).sum() == 1_000_000
