import numpy as np
import pytest
import torch
from PIL import Image
from wan_train.core.data.decode import read_frames
from wan_train.core.data.scan import scan_folder
from wan_train.core.errors import DatasetError
from wan_train.core.settings.dataset import DatasetOptions


def samples(folder, **options):
    return scan_folder(folder, DatasetOptions(default_caption="x", **options)).samples


def grey(frames):
    return [round(float(frame.float().mean())) for frame in frames]


def test_frames_are_uint8_rgb_of_the_bucket(folder, make):
    make.clip(folder / "a.mp4", 20)
    (sample,) = samples(folder, width=96, height=64, num_frames=9)
    frames = read_frames(sample)
    assert frames.dtype == torch.uint8
    assert frames.shape == (9, sample.height, sample.width, 3)
    assert np.abs(np.array(grey(frames)) - [make.level(i) for i in range(9)]).max() <= 1


@pytest.mark.parametrize(
    ("rate", "expected"), [(60, [0, 4, 7, 11, 15]), (8, [0, 0, 1, 1, 2]), (16, [0, 1, 2, 3, 4]), (32, [0, 2, 4, 6, 8])]
)
def test_motion_keeps_its_speed(folder, make, rate, expected):
    make.clip(folder / "a.mp4", 40, rate=rate)
    (sample,) = samples(folder, width=64, height=48, num_frames=5)
    assert sample.frame_indices == tuple(expected)
    assert np.abs(np.array(grey(read_frames(sample))) - [make.level(i) for i in expected]).max() <= 1


def test_every_window_of_a_clip_holds_its_own_frames(folder, make):
    make.clip(folder / "a.mkv", 45, gop=12)
    found = samples(folder, width=64, height=48, num_frames=9, frame_sampling="chunk")
    assert len(found) == 5
    for number, sample in enumerate(found):
        expected = [make.level(9 * number + i) for i in range(9)]
        assert np.abs(np.array(grey(read_frames(sample))) - expected).max() <= 1


def test_a_gif_is_read_like_a_clip(folder, make):
    make.animation(folder / "a.gif", 10, delay_ms=120)
    (sample,) = samples(folder, width=32, height=32, num_frames=9)
    assert grey(read_frames(sample)) == [make.level(i) for i in (0, 1, 1, 2, 2, 3, 3, 4, 4)]


def test_the_crop_is_centred_and_nothing_is_stretched(folder):
    pixels = np.zeros((64, 192, 3), np.uint8)
    pixels[:, 64:128] = 255  # exactly the middle third
    Image.fromarray(pixels).save(folder / "a.png")
    (sample,) = samples(folder, width=64, height=64, aspect_buckets=False)
    assert (read_frames(sample)[0, :, 1:-1] == 255).all()
    assert read_frames(sample).shape == (1, 64, 64, 3)


def test_scaling_down_is_antialiased(folder):
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(folder / "a.png")
    (sample,) = samples(folder, width=32, height=32)
    frames = read_frames(sample).float()
    assert abs(frames.mean() - 127.5) < 2
    assert frames[:, :, 2:-2].std() < 2  # without a filter the stripes would alias to black or white


def test_rotated_clips_stand_upright_in_their_bucket(folder, make):
    upright = np.full((96, 64, 3), 30, np.uint8)
    upright[:32] = 230
    stored = np.ascontiguousarray(np.rot90(upright, -1))
    make.clip(folder / "a.mp4", 5, size=(96, 64), picture=stored, rotation=90)
    (sample,) = samples(folder, width=96, height=64, num_frames=5)
    assert (sample.width, sample.height) == (64, 96)
    frames = read_frames(sample).float()
    assert frames[:, :28].mean() > 220
    assert frames[:, 36:].mean() < 40


def test_pixels_that_are_not_square_are_scaled_to_the_displayed_shape(folder, make):
    picture = np.full((64, 64, 3), 30, np.uint8)
    picture[:, :32] = 230
    make.clip(folder / "a.mp4", 5, size=(64, 64), picture=picture, aspect=2)
    (sample,) = samples(folder, width=128, height=64, num_frames=5)
    assert (sample.width, sample.height) == (128, 64)
    frames = read_frames(sample).float()
    assert frames[:, :, :60].mean() > 220
    assert frames[:, :, 68:].mean() < 40


def test_reading_is_deterministic(folder, make):
    make.clip(folder / "a.mp4", 9)
    (sample,) = samples(folder, width=48, height=48, num_frames=9)
    assert torch.equal(read_frames(sample), read_frames(sample))


@pytest.mark.parametrize("damage", ["gone", "shorter", "cut"])
def test_a_file_that_changed_for_the_worse_is_named(folder, make, damage):
    path = make.clip(folder / "a.mp4", 20, container={"movflags": "faststart"})
    (sample,) = samples(folder, width=64, height=48, num_frames=17)
    if damage == "gone":
        path.unlink()
    elif damage == "shorter":
        make.clip(path, 10)
    else:
        make.cut(path, 0.5)
    with pytest.raises(DatasetError, match=r"a\.mp4 cannot be used: .*scan the folder again"):
        read_frames(sample)


def test_a_file_that_is_another_by_now_is_not_kept_under_the_old_hash(folder, make):
    path = make.image(folder / "a.png", colour=(9, 9, 9))
    (sample,) = samples(folder, width=64, height=48, num_frames=1)
    make.image(path, colour=(200, 9, 9))
    with pytest.raises(DatasetError, match=r"a\.png cannot be used: it was changed since the folder was scanned"):
        read_frames(sample)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "CMYK", "YCbCr", "I;16", "F"])
def test_pictures_of_every_mode_give_rgb(folder, mode):
    suffix = "tiff" if mode in ("CMYK", "YCbCr", "F") else "png"
    picture = Image.new("L", (33, 17), 200).convert(mode) if mode != "I;16" else Image.new("I;16", (33, 17), 200 * 256)
    picture.save(folder / "a.png", suffix)
    (sample,) = samples(folder, width=32, height=16, num_frames=1)
    assert read_frames(sample).shape == (1, 16, 32, 3)
