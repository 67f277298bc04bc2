"""Decoded frames to RGB of another size, by libswscale.

Its newer interface, which PyAV has come to use, obeys marks of a frame that the older one does not know, which the
loaders that Hiera was trained with use:

- *Two fields.* A frame that is marked as interlaced would be shrunk field by field, and every edge would come out as a
  comb. It is taken as the picture that it is.
- *The matrix.* Some that a file may name are refused. They are read as the nearest that is known, else as if none were
  named (BT.601).
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation as ScalerFlags
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from app.media.spec import Interpolation

_SCALERS = {"bilinear": ScalerFlags.BILINEAR, "bicubic": ScalerFlags.BICUBIC}
# Numbers of ITU-T H.273, table 4.
_UNNAMED = 2
_KNOWN_MATRICES = frozenset({0, 1, _UNNAMED, 4, 5, 6, 7, 9})
_NEAREST_MATRIX = {10: 9}  # BT.2020 of constant luminance


class FrameScaler:
    """Scales the frames of one video; antialiased where it shrinks."""

    def __init__(self, interpolation: Interpolation) -> None:
        self._flags = _SCALERS[interpolation]
        self._scaler = VideoReformatter()
        self._unmark: Graph | None = None
        self._unmarked_shape: tuple[int, int, str] | None = None

    def scale(self, frame: VideoFrame, width: int, height: int) -> NDArray[np.uint8]:
        """A view uint8 [height, width, 3] of the frame's whole picture, as it is stored."""
        if frame.interlaced_frame:
            frame = self._as_one_picture(frame)
        if frame.colorspace not in _KNOWN_MATRICES:
            frame.colorspace = _NEAREST_MATRIX.get(frame.colorspace, _UNNAMED)
        scaled = self._scaler.reformat(frame, width, height, "rgb24", interpolation=self._flags, threads=1)
        plane = scaled.planes[0]
        lines = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
        return lines[:, : width * 3].reshape(height, width, 3)  # [h, line] -> [h, w, 3]

    def _as_one_picture(self, frame: VideoFrame) -> VideoFrame:
        """The same pixels without the mark, which a filter alone can take off."""
        shape = (frame.width, frame.height, frame.format.name)
        if self._unmark is None or self._unmarked_shape != shape:
            self._unmark, self._unmarked_shape = _unmarking(frame), shape
        self._unmark.push(frame)
        return self._unmark.vpull()


def _unmarking(frame: VideoFrame) -> Graph:
    graph = Graph()
    graph.threads = 1
    source = graph.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format,
        time_base=frame.time_base or Fraction(1, 1000),
    )
    unmark, sink = graph.add("setfield", "prog"), graph.add("buffersink")
    source.link_to(unmark)
    unmark.link_to(sink)
    graph.configure()
    return graph
