"""Drawn clips and pictures, read back."""

import av
import numpy as np
import pytest
from PIL import Image
from wan_train.tools.shapes import COLOURS, GROUNDS, MOTIONS, Scene, draw_dataset, draw_frame


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return draw_dataset(tmp_path_factory.mktemp("shapes"), clips=2, images=1, size=64, frames=9, fps=12, seed=3)


def read_clip(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return stream.codec_context.name, float(stream.average_rate), np.stack(frames)


def test_clips_have_the_frames_size_and_rate_asked_for(drawn):
    assert [path.suffix for path in drawn] == [".mp4", ".mp4", ".png"]
    for path in drawn[:2]:
        codec, rate, frames = read_clip(path)
        assert (codec, rate, frames.shape) == ("h264", 12.0, (9, 64, 64, 3))
    assert Image.open(drawn[2]).size == (64, 64)


def test_every_file_has_a_caption_that_names_what_is_seen(drawn):
    for path in drawn:
        caption = path.with_suffix(".txt").read_text(encoding="utf-8").strip()
        assert caption.startswith("[trigger] a ")
        assert any(colour in caption for colour in COLOURS)
        assert any(caption.endswith(f"on {ground} background") for ground in GROUNDS)


def test_same_seed_same_files_other_seed_others(drawn, tmp_path):
    again = draw_dataset(tmp_path / "again", clips=2, images=1, size=64, frames=9, fps=12, seed=3)
    other = draw_dataset(tmp_path / "other", clips=2, images=1, size=64, frames=9, fps=12, seed=4)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in drawn]
    assert [path.read_bytes() for path in other] != [path.read_bytes() for path in drawn]


@pytest.mark.parametrize("motion", MOTIONS)
def test_shape_moves_the_way_the_caption_says(motion):
    scene = Scene("circle", "blue", "a cream", motion, 0.2, 0.0)
    centres = []
    for time in (0.0, 1.0):
        frame = draw_frame(scene, time, 64).astype(int)
        is_shape = np.abs(frame - np.array(COLOURS["blue"])).sum(axis=-1) < 60
        rows, columns = np.nonzero(is_shape)
        centres.append(np.array([columns.mean(), rows.mean()]))
    way = centres[1] - centres[0]
    assert np.allclose(way, 32 * np.array(MOTIONS[motion]), atol=1.5)
