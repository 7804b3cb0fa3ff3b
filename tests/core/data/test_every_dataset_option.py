"""Every option of a dataset reaches what is trained: changed alone, it changes the samples, or a sentence, or is refused.

A new option fails here until it says how it is seen.
"""

import json

import numpy as np
import pytest
from PIL import Image
from wan_train.core.data.scan import scan_folder
from wan_train.core.errors import WanTrainError
from wan_train.core.settings.dataset import DatasetOptions
from wan_train.core.settings.option import options_of
from wan_train.tests.core.data.test_given import picture

BASE = {"width": 64, "height": 64, "num_frames": 9, "default_caption": "a thing, small, round"}
TAGS = {"shuffle_tags": True, "trigger_word": "ohwx"}
MASKS = {"mask_folder": "masks"}
# Option -> its other value, and what else has to be chosen for it to have an effect.
CHANGES = {
    "width": (96, {}), "height": (96, {}), "num_frames": (5, {}), "fps": (8.0, {}), "frame_sampling": ("even", {}),
    "windows_per_clip": (2, {"frame_sampling": "uniform"}), "slide_stride": (4, {"frame_sampling": "slide"}),
    "aspect_buckets": (False, {}), "upscale": (False, {"width": 160, "height": 160}), "more_sizes": ("96", {}),
    "crop": ("top", {}), "crop_aspects": ("1:1", {}), "crop_aspect": ("random", {"crop_aspects": "1:1, 4:3, 3:4, 16:9"}),
    "flip_x": (True, {}), "flip_y": (True, {}), "flips": ("half", {"flip_x": True}),
    "repeats": (2, {}), "bad_files": ("refuse", {}), "short_clips": ("skip", {}), "held_out": (1, {}),
    "loss_weight": (0.5, {}), "regularization": (True, {}), "min_side": (100, {}), "max_side": (100, {}),
    "min_megapixels": (0.01, {}), "max_megapixels": (0.01, {}), "min_frames": (20, {}), "max_frames": (20, {}),
    "min_seconds": (1.0, {}), "max_seconds": (1.0, {}),
    "trigger_word": ("ohwx", {}), "default_caption": ("", {}), "caption_extension": (".caption", {}),
    "drop_captions": (0.5, {}), "caption_source": ("filename", {}),
    "metadata_file": ("other.jsonl", {"caption_source": "metadata"}), "caption_lines": ("separate", {}),
    "shuffle_tags": (True, {}), "tag_dropout": (0.5, {}), "keep_tags": (2, TAGS), "caption_variants": (2, TAGS),
    "tag_separator": (";", TAGS), "class_word": ("person", {"trigger_word": "ohwx"}),
    "mask_folder": ("masks", {}), "mask_suffix": ("-mask", {}), "alpha_mask": (True, {}), "mask_least": (0.1, MASKS),
    "mask_invert": (True, MASKS), "control_clips": ("controls", {}), "reference_pictures": ("starts", {}),
    "first_frames": ("starts", {}), "last_frames": ("starts", {}), "frames_file": ("frames.jsonl", {}),
}  # fmt: skip


@pytest.fixture(scope="module")
def everything(tmp_path_factory, make):
    """Clips of several lengths and rates, pictures of several shapes, and what may lie beside them."""
    folder = tmp_path_factory.mktemp("everything")
    make.clip(folder / "long.mp4", 30, size=(96, 64), rate=24)
    make.clip(folder / "short.mp4", 6, size=(96, 64))
    make.cut(make.clip(folder / "broken.mp4", 9), 0.3)
    make.image(folder / "wide.png", (192, 96))
    Image.fromarray(np.full((64, 96, 4), 90, np.uint8)).save(folder / "alpha.png")
    (folder / "long.txt").write_text("red, green, blue, ohwx, tall\na; second, line")
    (folder / "long.caption").write_text("another caption")
    for file, words in (("captions.jsonl", "one"), ("other.jsonl", "two")):
        (folder / file).write_text(json.dumps({"file_name": "long.mp4", "caption": words}))
    picture(folder / "wide-mask.png", 128, (192, 96))
    picture(folder / "masks" / "wide.png", 200, (192, 96))
    picture(folder / "starts" / "long.png", 200, (96, 64))
    (folder / "controls").mkdir()
    make.clip(folder / "controls" / "long.mp4", 30, size=(96, 64), rate=24)
    first = {"file_name": "long.mp4", "first_frame": "starts/long.png"}
    (folder / "frames.jsonl").write_text(json.dumps(first))
    return folder


def seen(folder, **options):
    """The digest of all that is trained, and what is told of files; or the sentence that refuses them."""
    try:
        found = scan_folder(folder, DatasetOptions(**{**BASE, **options}), index_path=folder.with_suffix(".index"))
    except WanTrainError as error:
        return str(error)
    return found.digest, [str(note) for note in found.notes]


def test_every_option_is_listed():
    assert CHANGES.keys() == {item.name for item in options_of(DatasetOptions)}


@pytest.mark.parametrize("name", CHANGES)
def test_an_option_that_is_changed_alone_is_seen(everything, name):
    value, others = CHANGES[name]
    declared = {item.name: item.default for item in options_of(DatasetOptions)}
    assert value != {**declared, **BASE, **others}[name]
    before, after = seen(everything, **others), seen(everything, **others, **{name: value})
    assert before == seen(everything, **others)
    assert not isinstance(before, str), before
    assert before != after


def test_options_that_decide_what_is_trained_change_its_digest(everything):
    """Not their notes alone. Others have an effect on notes, or refuse files."""
    told = {"bad_files", "default_caption"}
    for name, (value, others) in CHANGES.items():
        after = seen(everything, **others, **{name: value})
        if name not in told and not isinstance(after, str):
            assert seen(everything, **others)[0] != after[0], name
