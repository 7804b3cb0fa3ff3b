"""Filters, crops and flips: what they choose, what they tell, and that without them nothing changes."""

import numpy as np
import pytest
import torch
from PIL import Image
from wan_train.core.data.decode import read_frames
from wan_train.core.data.scan import scan_folder
from wan_train.core.errors import ConfigError
from wan_train.core.serial import digest
from wan_train.core.settings.dataset import DatasetOptions
from wan_train.core.settings.dataset_frames import aspect_ratios


def scan(folder, **options):
    shared = {"width": 64, "height": 64, "num_frames": 5, "default_caption": "x", "aspect_buckets": False}
    return scan_folder(folder, DatasetOptions(**{**shared, **options}))


def told(dataset, action=None):
    return [str(note) for note in dataset.notes if action in (None, note.action)]


def stripes(path, colours=((255, 0, 0), (0, 255, 0), (0, 0, 255)), upright=False):
    """A picture of three squares of 64 pixels, side by side or one above the other."""
    pixels = np.concatenate([np.full((64, 64, 3), colour, np.uint8) for colour in colours], 0 if upright else 1)
    Image.fromarray(pixels).save(path)


def middle(frames):
    """The colour in the middle of the first frame."""
    return frames[0, frames.shape[1] // 2, frames.shape[2] // 2].tolist()


@pytest.mark.parametrize(
    ("options", "kept", "why"),
    [
        ({"min_side": 49}, "ac", "b.mp4: skipped: its shorter side has 48 of 64x48 pixels, and min_side is 49"),
        ({"max_side": 100}, "bc", "a.mp4: skipped: its longer side has 128 of 128x96 pixels, and max_side is 100"),
        (
            {"min_megapixels": 0.005},
            "ac",
            "b.mp4: skipped: it is 64x48 pixels, 0.00307 million, and min_megapixels is 0.005",
        ),
        (
            {"max_megapixels": 0.01},
            "bc",
            "a.mp4: skipped: it is 128x96 pixels, 0.0123 million, and max_megapixels is 0.01",
        ),
        ({"min_frames": 13}, "bc", "a.mp4: skipped: it has 12 frames, and min_frames is 13"),
        ({"max_frames": 12}, "ac", "b.mp4: skipped: it has 20 frames, and max_frames is 12"),
        ({"min_seconds": 1.0}, "bc", "a.mp4: skipped: it is 0.75 seconds long, and min_seconds is 1"),
        ({"max_seconds": 1.0}, "ac", "b.mp4: skipped: it is 1.25 seconds long, and max_seconds is 1"),
    ],
)
def test_files_beyond_a_limit_are_left_out_and_told(folder, make, options, kept, why):
    make.clip(folder / "a.mp4", 12, size=(128, 96))
    make.clip(folder / "b.mp4", 20, size=(64, 48))
    make.image(folder / "c.png", (80, 80))  # has neither frames nor seconds to be limited
    dataset = scan(folder, **options)
    assert "".join(sample.file.name[0] for sample in dataset.samples) == kept
    assert told(dataset, "skipped") == [why]


def test_a_file_at_a_limit_is_used(folder, make):
    make.clip(folder / "a.mp4", 16, size=(64, 48))
    limits = {
        "min_side": 48,
        "max_side": 64,
        "min_frames": 16,
        "max_frames": 16,
        "min_seconds": 1.0,
        "max_seconds": 1.0,
    }
    assert len(scan(folder, **limits).samples) == 1


def test_a_filter_speaks_before_short_clips_are_refused(folder, make):
    make.clip(folder / "a.mp4", 16)
    make.clip(folder / "b.mp4", 3)
    assert len(scan(folder, min_frames=5, short_clips="refuse").samples) == 1


def test_limits_that_leave_nothing_are_refused():
    with pytest.raises(ConfigError, match=r"min_frames is 9, above max_frames, which is 8: no file would be left"):
        DatasetOptions(min_frames=9, max_frames=8)
    assert DatasetOptions(min_frames=9).max_frames == 0


def test_scaling_up_is_told_by_how_much(folder, make):
    make.image(folder / "a.png", (32, 32))
    make.image(folder / "b.png", (128, 128))
    assert told(scan(folder)) == ["a.png: note: it is scaled up 2.00 times (32x32 to 64x64)"]
    assert told(scan(folder, upscale=False)) == []


@pytest.mark.parametrize(("crop", "index"), [("center", 1), ("left", 0), ("right", 2), ("top", 1), ("bottom", 1)])
def test_the_edge_that_is_kept(folder, crop, index):
    stripes(folder / "a.png")
    (sample,) = scan(folder, crop=crop).samples
    assert middle(read_frames(sample)) == np.eye(3, dtype=int)[index].dot(255).tolist()
    (plain,) = scan(folder).samples
    assert (sample.content_key == plain.content_key) == (index == 1)  # the same pixels, the same key


@pytest.mark.parametrize(("crop", "index"), [("top", 0), ("bottom", 2), ("left", 1)])
def test_the_edge_that_is_kept_of_an_upright_one(folder, crop, index):
    stripes(folder / "a.png", upright=True)
    (sample,) = scan(folder, crop=crop).samples
    assert middle(read_frames(sample)) == np.eye(3, dtype=int)[index].dot(255).tolist()


def test_random_crops_differ_by_content_and_stay(folder):
    for index in range(12):
        stripes(folder / f"{index}.png", colours=((255, index, 0), (0, 255, 0), (0, 0, 255)))
    dataset = scan(folder, crop="random")
    places = [sample.crop[0] for sample in dataset.samples]
    assert len(set(places)) == 12
    assert min(places) < 0.3 < 0.7 < max(places)
    assert {sample.crop[1] for sample in dataset.samples} == {0.5}  # nothing is cut off there
    (folder / "5.png").rename(folder / "99.png")
    again = {sample.file.sha256: sample.crop[0] for sample in scan(folder, crop="random").samples}
    assert sorted(again.values()) == sorted(places)


def test_each_window_of_a_clip_is_cut_at_its_own_random_place(folder, make):
    make.clip(folder / "a.mp4", 20, size=(128, 64))
    places = [sample.crop[0] for sample in scan(folder, crop="random", frame_sampling="chunk").samples]
    assert len(set(places)) == len(places) == 4


def test_files_are_cut_to_the_closest_of_the_aspects(folder, make):
    for name, size in (("a.png", (192, 108)), ("b.png", (120, 100)), ("c.png", (100, 200))):
        make.image(folder / name, size)
    options = {"aspect_buckets": True, "width": 128, "height": 128}
    sizes = [(s.width, s.height) for s in scan(folder, crop_aspects="16:9, 1:1, 9:16", **options).samples]
    assert sizes == [(160, 96), (128, 128), (96, 160)]  # of the sizes with that area the nearest to 16:9 and 9:16
    squares = scan(folder, crop_aspects="square", **options).samples
    assert {(s.width, s.height) for s in squares} == {(128, 128)}


def test_random_aspects_are_drawn_by_content(folder):
    for index in range(12):
        Image.new("RGB", (100, 100), (index, 0, 0)).save(folder / f"{index}.png")
    options = {"aspect_buckets": True, "crop_aspects": "2:1, 1:2", "crop_aspect": "random"}
    sizes = [(s.width, s.height) for s in scan(folder, **options).samples]
    assert len(set(sizes)) == 2
    assert sizes == [(s.width, s.height) for s in scan(folder, **options).samples]


@pytest.mark.parametrize("text", ["0:1", "x", "1:0", "9:1", "1:9", "-1", "1:1:1", "1e3"])
def test_aspects_that_are_none(text):
    with pytest.raises(ConfigError, match="crop_aspects has"):
        DatasetOptions(crop_aspects=text)


def test_ways_to_write_aspects():
    assert aspect_ratios("16:9, square,3x4 , 1.5,") == (16 / 9, 1.0, 0.75, 1.5)


def quarters(path):
    """Four colours: top left, top right, bottom left, bottom right."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:32, :32], pixels[:32, 32:], pixels[32:, :32] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    Image.fromarray(pixels).save(path)


def test_flips_as_further_samples(folder):
    quarters(folder / "a.png")
    dataset = scan(folder, flip_x=True, flip_y=True)
    assert [sample.flip for sample in dataset.samples] == ["", "x", "y", "xy"]
    plain, mirrored, turned, both = (read_frames(sample) for sample in dataset.samples)
    assert torch.equal(mirrored, plain.flip(2))
    assert torch.equal(turned, plain.flip(1))
    assert torch.equal(both, plain.flip(1, 2))
    assert len({sample.content_key for sample in dataset.samples}) == 4
    assert [sample.name for sample in dataset.samples] == [
        "a.png",
        "a.png flipped x",
        "a.png flipped y",
        "a.png flipped xy",
    ]
    assert dataset.samples[0].content_key == scan(folder).samples[0].content_key


def test_half_of_the_samples_are_flipped_by_their_content(folder):
    for index in range(40):
        Image.new("RGB", (64, 64), (index, 0, 0)).save(folder / f"{index}.png")
    flips = [sample.flip for sample in scan(folder, flip_x=True, flips="half").samples]
    assert len(flips) == 40
    assert 10 < flips.count("x") < 30
    assert flips == [sample.flip for sample in scan(folder, flip_x=True, flips="half").samples]


@pytest.mark.parametrize("flips", ["add", "half"])
def test_what_is_held_out_is_never_flipped(folder, flips):
    for index in range(12):
        Image.new("RGB", (64, 64), (index, 0, 0)).save(folder / f"{index}.png")
    dataset = scan(folder, flip_x=True, flips=flips, held_out=3)
    held = [sample for sample in dataset.samples if sample.held_out]
    assert [sample.flip for sample in held] == ["", "", ""]
    files = {sample.file.name for sample in held}
    assert not files & {sample.file.name for sample in dataset.samples if not sample.held_out}


def test_a_caption_that_says_left_or_right_is_told_of_its_mirror(folder):
    for name, caption in (("a", "a dog turns LEFT"), ("b", "the rightmost house"), ("c", "a bright day")):
        quarters(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(caption)
    assert told(scan(folder, flip_x=True)) == [
        "a.png: note: it is flipped left to right, and its caption says 'LEFT'",
        "b.png: note: it is flipped left to right, and its caption says 'right'",
    ]
    assert told(scan(folder, flip_y=True)) == []


def test_options_without_effect_are_told():
    warnings = DatasetOptions(flips="half", mask_least=0.1, mask_invert=True, crop_aspect="random").warnings()
    assert [sentence.split(" has")[0] for sentence in warnings] == ["crop_aspect", "flips", "mask_least", "mask_invert"]
    used = {"flips": "half", "flip_y": True, "mask_least": 0.1, "alpha_mask": True, "crop_aspects": "1:1"}
    assert DatasetOptions(crop_aspect="random", **used).warnings() == []


def test_without_all_this_the_key_of_a_sample_is_what_it_was(folder, make):
    make.clip(folder / "a.mp4", 5, size=(64, 48))
    (sample,) = scan(folder, height=48).samples
    assert sample.content_key == digest([sample.file.sha256, "video", [0, 1, 2, 3, 4], 64, 48], 32)
