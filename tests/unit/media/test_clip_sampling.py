"""The sampling formulas of HIERA's protocol, by numbers worked out by hand or by an independent formula."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.media.sampling import sample_clips
from app.media.spec import SamplingMode, VideoSpec


def spec(frames: int = 16, stride: int = 4, target_fps: float = 30.0, mode: SamplingMode = "dense") -> VideoSpec:
    return VideoSpec(frames, stride, target_fps, mode, resize_short_side=256, height=224, width=224)


def test_a_clip_of_a_30_fps_file_reads_these_frames() -> None:
    first = sample_clips(spec(), frames=640, fps=30.0, clips=5)[0]
    assert first.frames == (0, 4, 8, 12, 16, 21, 25, 29, 33, 37, 42, 46, 50, 54, 58, 63)
    assert [first.start_s, first.end_s] == pytest.approx([0.0, 64 / 30])


def test_one_clip_is_taken_from_the_middle() -> None:
    (clip,) = sample_clips(spec(), frames=300, fps=30.0, clips=1)
    assert clip.frames == tuple(118 + index for index in (0, 4, 8, 12, 16, 21, 25, 29, 33, 37, 42, 46, 50, 54, 58, 63))
    assert [clip.start_s, clip.end_s] == pytest.approx([118 / 30, 182 / 30])


def test_several_clips_reach_from_the_first_frame_to_the_last() -> None:
    clips = sample_clips(spec(), frames=300, fps=30.0, clips=5)
    assert [clip.frames[0] for clip in clips] == [0, 59, 118, 177, 236]
    assert clips[-1].frames[-1] == 299


def test_a_faster_file_is_read_in_wider_steps() -> None:
    (clip,) = sample_clips(spec(), frames=600, fps=60.0, clips=1)
    assert np.diff(clip.frames).min() >= 8
    assert clip.end_s - clip.start_s == pytest.approx(64 / 30)


def test_a_video_shorter_than_a_clip_repeats_its_last_frame() -> None:
    (clip,) = sample_clips(spec(), frames=10, fps=30.0, clips=1)
    assert clip.frames == (0, 4, 8, *[9] * 13)
    assert clip.end_s == pytest.approx(10 / 30)
    assert sample_clips(spec(), frames=1, fps=30.0, clips=1)[0].frames == (0,) * 16


def test_uniform_sampling_takes_the_middle_of_each_part() -> None:
    (clip,) = sample_clips(spec(mode="uniform"), frames=160, fps=12.0, clips=1)
    assert clip.frames == tuple(range(5, 160, 10))
    assert [clip.start_s, clip.end_s] == pytest.approx([0.0, 160 / 12])


def test_several_clips_of_uniform_sampling_take_evenly_spread_places_of_each_part() -> None:
    clips = sample_clips(spec(mode="uniform"), frames=160, fps=12.0, clips=2)
    assert [clip.frames for clip in clips] == [tuple(range(2, 160, 10)), tuple(range(7, 160, 10))]


def test_a_clip_that_is_shorter_than_a_frame_of_a_slow_file_shows_one_whole() -> None:
    (clip,) = sample_clips(spec(frames=4, stride=1), frames=10, fps=5.0, clips=1)
    assert clip.frames == (4, 4, 4, 4)
    assert [clip.start_s, clip.end_s] == pytest.approx([0.9, 1.1])


def test_uniform_sampling_of_a_short_video_repeats_frames_in_order() -> None:
    (clip,) = sample_clips(spec(frames=8, mode="uniform"), frames=4, fps=12.0, clips=1)
    assert clip.frames == (0, 0, 1, 1, 2, 2, 3, 3)


@given(
    frames=st.integers(1, 500_000),
    fps=st.floats(1.0, 240.0),
    clips=st.integers(1, 10),
    length=st.integers(1, 64),
    mode=st.sampled_from(["dense", "uniform"]),
)
def test_every_sample_lies_in_the_video_and_runs_forward(
    frames: int, fps: float, clips: int, length: int, mode: SamplingMode
) -> None:
    samples = sample_clips(spec(frames=length, mode=mode), frames, fps, clips)
    assert len(samples) == clips
    for sample in samples:
        assert len(sample.frames) == length
        assert sample.frames[0] >= 0
        assert sample.frames[-1] < frames
        assert all(a <= b for a, b in zip(sample.frames, sample.frames[1:], strict=False))
        assert 0 <= sample.start_s <= sample.end_s <= frames / fps + 1e-6


def test_nonsense_is_refused() -> None:
    for frames, fps, clips in ((0, 30.0, 1), (10, 0.0, 1), (10, 30.0, 0)):
        with pytest.raises(ValueError, match="must be positive"):
            sample_clips(spec(), frames, fps, clips)
