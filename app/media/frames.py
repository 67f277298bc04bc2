"""Decoding the frames that are wanted, and as little else as can be.

For each wanted frame decoding starts at the key frame before it and ends with its packet; what lies between is skipped
unread where it is far, and decoded without output where it is not. Frames that no other frame refers to are not
decoded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import av
import numpy as np
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from app.errors import BrokenMedia
from app.media.container import VideoFile, decoder_pixels, reraise_if_out_of_memory
from app.media.limits import MediaLimits
from app.media.timeline import Timeline, is_timed_by_decoding, packet_time

# Decoders that tell references from the rest and can leave out the rest, without a trace in other frames.
_SKIPPING_DECODERS = ("h264", "hevc")
_SEEK_PACKETS = 64  # fewer are read and thrown away instead
_LOST_AFTER_PACKETS = 4096  # a seek that does not bring up its key frame by then has missed it
_KEYS_BACK = (1, 2, 4, 8)
_REORDERED_FRAMES = 16  # a frame is shown at most so many places from where it is stored (H.264 and HEVC, annex A)


@dataclass(frozen=True)
class Run:
    """Packets `first` (a key frame) to `last`, which hold the frames shown at `wanted`, in order."""

    first: int
    last: int
    wanted: tuple[int, ...]


class FrameReader:
    """Reads frames of a file by the time that they are shown.

    Raises, while reading:
        BrokenMedia: neither a wanted frame nor one close to it can be decoded.
    """

    def __init__(self, file: VideoFile, timeline: Timeline, limits: MediaLimits, threads: int) -> None:
        self._file = file
        self._timeline = timeline
        self._max_pixels = decoder_pixels(limits)
        self._threads = 1 if is_timed_by_decoding(file) else threads  # there the order of output is the clock
        self._codec = self._decoder()
        self._can_skip = self._codec.codec.name in _SKIPPING_DECODERS and not is_timed_by_decoding(file)
        self._next_packet: int | None = None  # that the container will give; None where that is not known
        self._reordering: int | None = None

    def read(self, wanted: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Yield each of the times in `wanted` (in order, without repeats) with its frame, or the nearest to be had."""
        if is_timed_by_decoding(self._file):
            self._reordering = self._measure_reordering()
        for run in plan_runs(self._timeline, wanted, _REORDERED_FRAMES if is_timed_by_decoding(self._file) else 0):
            yield from self._match(run)

    def _match(self, run: Run) -> Iterator[tuple[int, VideoFrame]]:
        pending = deque(run.wanted)
        previous: tuple[int, VideoFrame] | None = None
        for time, frame in self._frames_from_key(run):
            while pending and time >= pending[0]:
                wanted = pending.popleft()
                use_previous = previous is not None and time != wanted and wanted - previous[0] <= time - wanted
                yield wanted, self._accept(wanted, *(previous if use_previous and previous else (time, frame)))
            if not pending:
                return
            previous = (time, frame)
        if previous is None:
            raise BrokenMedia("the video is damaged: none of the frames wanted can be decoded")
        for wanted in pending:
            yield wanted, self._accept(wanted, *previous)

    def _accept(self, wanted: int, time: int, frame: VideoFrame) -> VideoFrame:
        if abs(time - wanted) > self._timeline.tolerance:
            at_s = (wanted - int(self._timeline.shown[0])) * self._timeline.time_base
            raise BrokenMedia(f"the video is damaged: nothing near {at_s:.1f} s can be decoded")
        return frame

    def _frames_from_key(self, run: Run) -> Iterator[tuple[int, VideoFrame]]:
        """The frames of a run, from an earlier key frame if they come too late for the first one that is wanted."""
        frames: Iterator[tuple[int, VideoFrame]] = iter(())
        begin: tuple[int, VideoFrame] | None = None
        for each in self._from_key_to_key(run):
            frames = self._frames(each)
            begin = next(frames, None)
            if begin is not None and begin[0] <= run.wanted[0]:
                break
        if begin is not None:
            yield begin
        yield from frames

    def _from_key_to_key(self, run: Run) -> Iterator[Run]:
        """The run, and for H.264 those that begin further back.

        Where pictures are refreshed bit by bit (periodic intra refresh) a key frame is where that begins, and the
        decoder shows nothing until so many reference frames later: with B-frames, a few key frames later.
        """
        yield run
        if self._codec.codec.name == "h264":
            earlier = np.flatnonzero(self._timeline.keys[: run.first])[::-1]
            for back in sorted({min(back, len(earlier)) for back in _KEYS_BACK} - {0}):
                yield replace(run, first=int(earlier[back - 1]))

    def _frames(self, run: Run) -> Iterator[tuple[int, VideoFrame]]:
        """The frames of a run as they come out of the decoder, with the time that each is shown."""
        wanted = frozenset(run.wanted)
        self._codec.flush_buffers()
        clock: int | None = None
        for packet in self._packets(run):
            if self._can_skip:
                self._codec.skip_frame = "DEFAULT" if packet_time(self._file, packet) in wanted else "NONREF"
            for frame in self._decode(packet):
                clock = self._clock(frame, clock)
                yield clock, frame
        for frame in self._decode(None):
            clock = self._clock(frame, clock)
            yield clock, frame

    def _clock(self, frame: VideoFrame, previous: int | None) -> int:
        if self._reordering is not None and frame.dts is not None:
            return frame.dts - self._reordering
        if self._reordering is None and frame.pts is not None:
            return frame.pts
        return int(self._timeline.shown[0]) if previous is None else previous + 1

    def _decode(self, packet: Packet[VideoStream] | None) -> list[VideoFrame]:
        try:
            return self._codec.decode(packet)
        except av.FFmpegError as error:  # this packet is damaged; the next ones may not be
            reraise_if_out_of_memory(error)
            return []

    def _packets(self, run: Run) -> Iterator[Packet[VideoStream]]:
        at = self._next_packet
        if at is None or at > run.first or run.first - at > _SEEK_PACKETS:
            packets, at = self._seek(run.first)
        else:
            packets = self._file.packets()
        self._next_packet = None
        for packet in packets:
            if at >= run.first:
                self._next_packet = at + 1
                yield packet
                if at >= run.last:
                    return
            at += 1

    def _seek(self, first: int) -> tuple[Iterator[Packet[VideoStream]], int]:
        """Packets from number `first` or before, and the number of the first of them."""
        if first > 0:
            wanted = int(self._timeline.times[first])
            try:
                self._file.container.seek(int(self._timeline.decode_times[first]), stream=self._file.stream)
            except av.FFmpegError as error:
                reraise_if_out_of_memory(error)
            else:
                packets = self._file.packets()
                for count, packet in enumerate(packets):
                    if packet.is_keyframe and packet_time(self._file, packet) == wanted:
                        return _chain(packet, packets), first
                    if count > _LOST_AFTER_PACKETS:
                        break
        self._file.reopen()
        self._codec = self._decoder()
        return self._file.packets(), 0

    def _decoder(self) -> VideoCodecContext:
        codec = self._file.stream.codec_context
        codec.thread_count = self._threads
        codec.thread_type = "AUTO" if self._threads > 1 else "NONE"
        codec.options = {"max_pixels": str(self._max_pixels)}
        return codec

    def _measure_reordering(self) -> int:
        """By how many packets the decoder's output lags behind its input (AVI says no more than the order)."""
        start = int(self._timeline.times[0])
        run = Run(0, min(len(self._timeline.times) - 1, _REORDERED_FRAMES), ())
        self._codec.flush_buffers()
        for packet in self._packets(run):
            for frame in self._decode(packet):
                return 0 if frame.dts is None else frame.dts - start
        return 0


def plan_runs(timeline: Timeline, wanted: Sequence[int], slack: int) -> list[Run]:
    """Group the `wanted` times into runs of packets that are decoded without a break.

    `slack`: by how many packets a frame may be stored before or after where its time says.
    """
    order = np.argsort(timeline.times, kind="stable")
    ordered = timeline.times[order]
    keys = np.flatnonzero(timeline.keys)
    runs: list[Run] = []
    for time in wanted:
        packet = int(order[np.searchsorted(ordered, time)])
        key = int(np.searchsorted(keys, max(0, packet - slack), side="right")) - 1
        # A frame stored after a key frame but shown before it needs the key frame before that one.
        while key > 0 and timeline.times[keys[key]] > time:
            key -= 1
        first, last = int(keys[max(key, 0)]), min(packet + slack, len(ordered) - 1)
        if runs and first <= runs[-1].last + 1:
            before = runs[-1]
            runs[-1] = Run(min(before.first, first), max(before.last, last), (*before.wanted, time))
        else:
            runs.append(Run(first, last, (time,)))
    return runs


def _chain(first: Packet[VideoStream], rest: Iterator[Packet[VideoStream]]) -> Iterator[Packet[VideoStream]]:
    yield first
    yield from rest
