"""Files that are small and unpack to gigabytes: 413 from their headers, by a server that takes no memory for them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import av
import httpx
import numpy as np
import pillow_heif
import pytest
from colours import RED, image_of, video_of
from PIL import Image
from running_server import RunningServer

from app.load.processes import peak_resident_bytes, process_tree

# Coarse: what one of these would take is a hundred times as much, and an allocator has its moods.
_GROWTH_BYTES = 48 << 20

pillow_heif.register_heif_opener()


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory, colour_repository: Path) -> Iterator[RunningServer]:
    """A server with its own limits whose workers have decoded a file each."""
    running = RunningServer(tmp_path_factory.mktemp("server"), colour_repository).wait_until_ready()
    for path, data in (("image", image_of(size=(1000, 800))), ("video", video_of(RED, size=(320, 240)))):
        assert httpx.post(f"{running.url}/classify/{path}", files={"file": data}, timeout=60).status_code == 200
    yield running
    assert running.stop() == 0, running.log


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of black and white whose pixels are packed as well as can be."""
    rows = zlib.compressobj(9)
    line = bytes(1 + (width + 7) // 8)
    packed = b"".join(rows.compress(line) for _ in range(min(height, 40_000))) + rows.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = ((b"IHDR", header), *chunks, (b"IDAT", packed), (b"IEND", b""))
    body = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def patched(data: bytes, marker: bytes, offset: int, new: bytes) -> bytes:
    at = data.index(marker) + offset
    return data[:at] + new + data[at + len(new) :]


def small(form: str, side: int = 16) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), RED).save(file, form)
    return file.getvalue()


def avi(width: int, height: int) -> bytes:
    """Two small frames whose header says that they are larger."""
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as output:
        stream = output.add_stream("rawvideo", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for _ in range(2):
            frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
            output.mux(stream.encode(frame.reformat(format="yuv420p")))
    return patched(file.getvalue(), b"strf", 12, struct.pack("<ii", width, height))


SIDE = 30_000
VIDEO = video_of(RED, seconds_each=0.2)
IMAGES = {
    "png": png(SIDE, SIDE),
    "jpeg": patched(small("JPEG"), b"\xff\xc0", 5, struct.pack(">HH", SIDE, SIDE)),
    "gif": patched(small("GIF"), b"GIF", 6, struct.pack("<HH", SIDE, SIDE)),
    "bmp": patched(small("BMP"), b"BM", 18, struct.pack("<ii", SIDE, SIDE)),
    "heic": patched(small("HEIF", 64), b"ispe", 8, struct.pack(">II", SIDE, SIDE)),
}
VIDEOS = {
    "large frames": avi(SIDE, SIDE),
    "29 hours": patched(VIDEO, b"stts", 16, struct.pack(">I", 1 << 28)),
}
# Headers that contradict another one, and notes beside the pixels: whatever is made of them, little memory is.
ODD_IMAGES = {
    "avif": patched(small("AVIF"), b"ispe", 8, struct.pack(">II", SIDE, SIDE)),
    "heic": patched(small("HEIF"), b"ispe", 8, struct.pack(">II", SIDE, SIDE)),  # shows 16 of them
    "text": png(64, 64, *[(b"zTXt", b"a\0\0" + zlib.compress(bytes(50 << 20), 9))] * 10),
    "profile": png(64, 64, (b"iCCP", b"a\0\0" + zlib.compress(bytes(50 << 20), 9))),
}
ODD_VIDEOS = {
    "large frames": patched(VIDEO, b"avc1", 28, struct.pack(">HH", 32_000, 32_000)),
    "2 billion frames": patched(VIDEO, b"stsz", 8, struct.pack(">II", 1, 0x7FFFFFFF)),
    "2 billion times": patched(VIDEO, b"stts", 12, struct.pack(">I", 0x7FFFFFFF)),
}


def growth_of(running: RunningServer, path: str, data: bytes) -> tuple[httpx.Response, int]:
    """The answer, and by how much the server or any of its workers needed more memory than ever before."""
    processes = set(process_tree(running.process.pid))
    before = {pid: peak_resident_bytes(pid) for pid in processes}
    answer = httpx.post(f"{running.url}{path}", files={"file": data}, timeout=60)
    assert set(process_tree(running.process.pid)) == processes
    return answer, max(peak_resident_bytes(pid) - before[pid] for pid in processes)


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_that_unpacks_to_gigabytes_is_refused_by_its_header(warm: RunningServer, name: str) -> None:
    answer, growth = growth_of(warm, "/classify/image", IMAGES[name])
    assert (answer.status_code, answer.json()["code"]) == (413, "limit_exceeded"), answer.text
    assert "pixels" in answer.json()["detail"]
    assert growth < _GROWTH_BYTES


@pytest.mark.parametrize("name", VIDEOS)
def test_so_is_a_video(warm: RunningServer, name: str) -> None:
    answer, growth = growth_of(warm, "/classify/video", VIDEOS[name])
    assert (answer.status_code, answer.json()["code"]) == (413, "limit_exceeded"), answer.text
    assert growth < _GROWTH_BYTES


@pytest.mark.parametrize(
    ("path", "data"),
    [
        *(("/classify/image", data) for data in ODD_IMAGES.values()),
        *(("/classify/video", data) for data in ODD_VIDEOS.values()),
    ],
    ids=[*ODD_IMAGES, *ODD_VIDEOS],
)
def test_what_a_header_claims_beside_the_size_takes_no_memory_either(
    warm: RunningServer, path: str, data: bytes
) -> None:
    answer, growth = growth_of(warm, path, data)
    assert answer.status_code in (200, 413, 422), answer.text
    assert growth < _GROWTH_BYTES


def test_streams_and_narrow_pictures_are_bounded_too(warm: RunningServer) -> None:
    narrow = image_of(size=(3000, 20), form="PNG")
    answer = httpx.post(f"{warm.url}/classify/image", files={"file": narrow}, timeout=60)
    assert (answer.status_code, "times the shorter" in answer.json()["detail"]) == (413, True)
    for count, words in ((33, "33 streams"), (40, "more than 32 streams")):
        answer = httpx.post(f"{warm.url}/classify/video", files={"file": with_tracks(count)}, timeout=60)
        assert (answer.status_code, words in answer.json()["detail"]) == (413, True), answer.text


def with_tracks(count: int) -> bytes:
    """The video with its one track so many times."""
    track = VIDEO[VIDEO.index(b"trak") - 4 :]
    track = track[: int.from_bytes(track[:4], "big")]
    many = VIDEO.replace(track, track * count)
    moov = many.index(b"moov") - 4
    grown = int.from_bytes(many[moov : moov + 4], "big") + (count - 1) * len(track)
    return many[:moov] + struct.pack(">I", grown) + many[moov + 4 :]


def test_a_body_that_is_announced_or_sent_too_large_is_not_kept(warm: RunningServer) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(200):
            yield b"x" * (1 << 20)

    before = peak_resident_bytes(warm.process.pid)
    with httpx.Client(timeout=60) as caller:
        announced = caller.post(
            f"{warm.url}/classify/image", content=bytes(200 << 20), headers={"content-type": "image/png"}
        )
    assert announced.status_code == 413
    try:
        sent = httpx.post(
            f"{warm.url}/classify/image", content=pieces(), headers={"content-type": "image/png"}, timeout=60
        )
    except httpx.WriteError:  # the server has answered and gone before all of it was sent
        pass
    else:
        assert sent.status_code == 413
    # Half of it would show: 32 MiB may come before it is too much, and lie in memory until then.
    assert peak_resident_bytes(warm.process.pid) - before < 2 * _GROWTH_BYTES
