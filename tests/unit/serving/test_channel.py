"""Frames and descriptors over a real socket pair."""

from __future__ import annotations

import array
import asyncio
import os
import socket
from collections.abc import Callable

import pytest
from processes import open_descriptors
from scarcity import descriptors_left
from serving_fakes import PATIENCE_S

from app.serving import channel
from app.serving.channel import LOST, NONE, Channel


class Line:
    """A channel, and what came out at its other end."""

    def __init__(self) -> None:
        self.here, self.there = socket.socketpair()
        self.arrived: list[tuple[int, bytes, str]] = []
        self.ends: list[str] = []
        self.sender = Channel(self.here, lambda *frame: None, lambda: self.ends.append("sender"))
        self.receiver = Channel(self.there, self.take, lambda: self.ends.append("receiver"))

    def take(self, kind: int, payload: bytes, descriptor: int) -> None:
        what = {NONE: "none", LOST: "lost"}.get(descriptor) or os.pread(descriptor, 9, 0).decode()
        if descriptor >= 0:
            os.close(descriptor)
        self.arrived.append((kind, payload, what))

    def send_file(self, content: str) -> None:
        file = os.memfd_create(content)
        os.write(file, content.encode())
        self.sender.send(7, content.encode(), file)

    async def until(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.arrived) < count:
                await asyncio.sleep(0.001)

    def contents(self) -> list[tuple[str, str]]:
        """What each file was to hold, and what it held."""
        return [(payload.decode(), what) for kind, payload, what in self.arrived if kind == 7]

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()


def on_a_line(scene: Callable[[Line], object]) -> None:
    async def scenario() -> None:
        before = open_descriptors()
        line = Line()
        try:
            await scene(line)  # type: ignore[misc]
        finally:
            line.close()
        assert open_descriptors() == before

    asyncio.run(scenario())


def test_descriptors_come_with_their_frames_in_whatever_pieces_they_travel() -> None:
    async def scene(line: Line) -> None:
        for number in range(200):
            line.send_file(str(number))
            line.sender.send(1, bytes(number * 97))
        await line.until(400)
        assert line.contents() == [(str(number), str(number)) for number in range(200)]
        assert [len(payload) for kind, payload, _ in line.arrived if kind == 1] == [n * 97 for n in range(200)]

    on_a_line(scene)


def test_what_a_process_has_no_descriptor_for_is_lost_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(line: Line) -> None:
        for name in ("first", "second", "third"):
            line.send_file(name)
        line.sender.send(1, b"no file")
        line.sender._flush()  # now, as another process would: what has left is closed here
        with descriptors_left(1):
            await line.until(1)
        await line.until(4)
        line.send_file("fourth")
        await line.until(5)
        assert line.contents() == [("first", "first"), ("second", "lost"), ("third", "lost"), ("fourth", "fourth")]
        for name in ("fifth", "sixth"):
            line.send_file(name)
            line.sender._flush()
            with descriptors_left(0):
                await line.until(len(line.arrived) + 1)
        assert line.contents()[-2:] == [("fifth", "lost"), ("sixth", "lost")]
        line.send_file("seventh")
        await line.until(8)
        assert line.contents()[-1] == ("seventh", "seventh")
        assert line.ends == []

    on_a_line(scene)
    assert [record.message for record in caplog.records] == [
        "this process is out of descriptors: connections or files that were sent to it are lost"
    ]


def test_descriptors_that_no_frame_asks_for_end_the_channel() -> None:
    async def scene(line: Line) -> None:
        files = array.array("i", [os.memfd_create("a"), os.memfd_create("b")])
        frame = channel._HEADER.pack(0, 7, 1)
        line.here.sendmsg([frame], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
        for file in files:
            os.close(file)
        async with asyncio.timeout(PATIENCE_S):
            while not line.ends:
                await asyncio.sleep(0.001)
        assert "receiver" in line.ends
        assert line.arrived == []

    on_a_line(scene)
