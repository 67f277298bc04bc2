"""Which time stamp a frame's number stands for, by numbers worked out by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from app.errors import BrokenMedia, UnsupportedMedia
from app.media.timeline import Timeline

# Three frames, of which the second stays long, in milliseconds from the fifth second on.
SHOWN = np.array([5000, 5500, 8000], np.int64)
TIMELINE = Timeline(
    times=SHOWN[[0, 2, 1]],
    decode_times=SHOWN,
    keys=np.array([True, False, False]),
    shown=SHOWN,
    time_base=0.001,
    frames=4,
    fps=1.0,
    duration_s=4.0,
    seen_s=4.0,
)


def test_a_number_means_what_is_on_screen_in_the_middle_of_its_slice() -> None:
    assert [TIMELINE.time_of(frame) for frame in range(4)] == [5500, 5500, 5500, 8000]  # at 0.5 s the second one begins
    quicker = dataclasses.replace(TIMELINE, fps=2.0, frames=8)
    assert [quicker.time_of(frame) for frame in range(8)] == [5000, *[5500] * 5, 8000, 8000]


@pytest.mark.parametrize(("fps", "ticks"), [(30.0, 500), (4.0, 500), (1.0, 2000), (0.5, 4000)])
def test_a_frame_may_be_stood_in_for_within_half_a_second_or_two_frames(fps: float, ticks: int) -> None:
    assert dataclasses.replace(TIMELINE, fps=fps).tolerance == ticks


def test_what_lies_beyond_the_end_of_the_file_is_not_made_up() -> None:
    cut = dataclasses.replace(TIMELINE, fps=10.0, frames=60, duration_s=6.0, seen_s=3.2)
    assert cut.time_of(36) == 8000  # 3.65 s, which the last frame stands in for
    with pytest.raises(BrokenMedia, match=r"breaks off after 3\.2 of 6\.0 s: the upload may be incomplete"):
        cut.time_of(37)
    with pytest.raises(UnsupportedMedia, match="no timing"):
        dataclasses.replace(cut, whole=True).time_of(37)
