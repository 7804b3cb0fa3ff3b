"""What a model is shown."""

import pytest
from wan_train.core.captioning.frames import shown_frames, spread
from wan_train.core.data.media import BadMediaError
from wan_train.tests.core.data.conftest import level, write_clip


def test_frames_are_evenly_spread_and_none_is_shown_twice():
    assert spread(20, 4) == (2, 7, 12, 17)
    assert spread(3, 8) == (0, 1, 2)
    assert spread(1, 1) == (0,)


def test_a_clip_gives_the_frames_in_order(tmp_path):
    frames, is_clip = shown_frames(write_clip(tmp_path / "a.mp4", 20), 4, 512)
    assert is_clip
    assert tuple(frames.shape) == (4, 48, 64, 3)
    assert [round(float(frame.float().mean())) for frame in frames] == pytest.approx(
        [level(index) for index in (2, 7, 12, 17)], abs=1
    )


def test_large_ones_are_scaled_down_with_their_aspect_ratio(tmp_path):
    frames, _ = shown_frames(write_clip(tmp_path / "a.mp4", 5, size=(256, 128)), 1, 64)
    assert tuple(frames.shape) == (1, 45, 91, 3)


def test_a_damaged_file_is_told(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(BadMediaError, match="not an image"):
        shown_frames(tmp_path / "a.png", 4, 512)
