"""A crop that follows the motion."""

import av
import numpy as np
import torch
from wan_train.core.data.decode import read_frames
from wan_train.core.data.motion import place_of_motion
from wan_train.core.data.scan import scan_folder
from wan_train.core.settings.dataset import DatasetOptions


def moving(num_frames, columns, size=(16, 32)):
    """Frames that flicker in these columns alone."""
    frames = np.full((num_frames, *size), 100, np.uint8)
    frames[1::2, :, columns] = 200
    return frames


def test_the_part_with_the_most_change():
    assert place_of_motion(moving(5, slice(24, 32)), (0.25, 1.0)) == (1.0, 0.5)
    assert place_of_motion(moving(5, slice(0, 8)), (0.25, 1.0)) == (0.0, 0.5)
    assert place_of_motion(moving(5, slice(4, 12)).transpose(0, 2, 1), (1.0, 0.25)) == (0.5, 4 / 24)


def test_the_middle_where_nothing_or_everything_moves():
    assert place_of_motion(moving(5, slice(0, 0)), (0.5, 1.0)) == (0.5, 0.5)
    assert place_of_motion(moving(5, slice(0, 32)), (0.5, 1.0)) == (0.5, 0.5)
    assert place_of_motion(moving(1, slice(0, 8)), (0.5, 1.0)) == (0.5, 0.5)


def write(path, left):
    """A clip of 192x64: a still half-grey picture, and something that flickers at `left`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 192, 64, "yuv420p"
        for index in range(9):
            pixels = np.full((64, 192, 3), 60, np.uint8)
            pixels[:, left : left + 32] = 240 if index % 2 else 120
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def test_a_clip_is_cut_where_it_moves(folder):
    write(folder / "a.mp4", 152)
    options = {"width": 64, "height": 64, "num_frames": 9, "aspect_buckets": False, "default_caption": "x"}
    (sample,) = scan_folder(folder, DatasetOptions(crop="motion", **options)).samples
    frames = read_frames(sample)
    assert (frames[1] > 200).float().mean() > 0.45  # the whole 32 columns of the 64
    assert torch.equal(frames, read_frames(sample))
    (centre,) = scan_folder(folder, DatasetOptions(**options)).samples
    assert (read_frames(centre)[1] > 200).float().mean() == 0
    assert centre.content_key != sample.content_key


def test_a_clip_that_fits_and_a_picture_are_read_as_ever(folder, make):
    make.clip(folder / "a.mp4", 9, size=(64, 64))
    make.image(folder / "b.png", (192, 64))
    options = {"width": 64, "height": 64, "num_frames": 9, "aspect_buckets": False, "default_caption": "x"}
    keys = [sample.content_key for sample in scan_folder(folder, DatasetOptions(**options)).samples]
    assert [s.content_key for s in scan_folder(folder, DatasetOptions(crop="motion", **options)).samples] == keys
