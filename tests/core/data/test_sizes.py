"""The same files at several sizes, and what a dataset makes of its samples."""

import pytest
from wan_train.core.data.scan import scan_folder
from wan_train.core.errors import ConfigError, DatasetError
from wan_train.core.settings.dataset import DatasetOptions
from wan_train.core.settings.dataset_frames import sizes_of


@pytest.fixture
def scan(folder, make):
    make.clip(folder / "wide.mp4", 20, size=(128, 32))
    make.image(folder / "square.png", (64, 64))
    for name, caption in (("wide", "a dog runs"), ("square", "a dog")):
        (folder / f"{name}.txt").write_text(caption)

    def scan(**options):
        return scan_folder(folder, DatasetOptions(**{"width": 64, "height": 64, "num_frames": 9, **options}))

    return scan


def test_a_sample_for_each_size_with_its_aspect_ratio(scan):
    dataset = scan(more_sizes="128, 64, 96x32")
    assert [(s.file.name, s.width, s.height) for s in dataset.samples] == [
        ("square.png", 64, 64),
        ("square.png", 128, 128),
        ("square.png", 48, 48),
        ("wide.mp4", 128, 32),
        ("wide.mp4", 256, 64),
        ("wide.mp4", 96, 32),
    ]
    assert len({s.name for s in dataset.samples}) == len({s.content_key for s in dataset.samples}) == 6
    assert dataset.samples[3].name == "wide.mp4[0:9] at 128x32"


def test_with_one_size_names_are_what_they_were(scan):
    for more in ("", "64", " 64 x 64 ,"):
        assert [s.name for s in scan(more_sizes=more).samples] == ["square.png", "wide.mp4[0:9]"]
        assert scan(more_sizes=more).digest == scan().digest


def test_windows_come_at_each_size(scan):
    dataset = scan(more_sizes="32", frame_sampling="chunk", aspect_buckets=False)
    assert [(s.frame_indices[:1], s.width) for s in dataset.samples if s.file.kind == "video"] == [
        ((0,), 64),
        ((0,), 32),
        ((9,), 64),
        ((9,), 32),
    ]


def test_a_size_that_is_the_same_for_a_small_file_is_left_out_and_told(scan):
    dataset = scan(upscale=False, aspect_buckets=False, more_sizes="32, 512, 1024")
    square = [s for s in dataset.samples if s.file.name == "square.png"]
    assert [(s.width, s.height) for s in square] == [(64, 64), (32, 32)]
    again = "it would be 64x64 again: that is left out"
    told = [note.reason for note in dataset.notes if note.name == "square.png" and note.action == "note"]
    assert told == [f"at 512x512 {again}", f"at 1024x1024 {again}"]


def test_a_divided_file_is_told_in_samples(scan):
    told = [str(note) for note in scan(more_sizes="32, 96", held_out=1).notes]
    assert "wide.mp4: note: its last sample is held out, of 3; the others are trained on" in told


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("512 768", "which is no size: write numbers with commas"),
        ("512x", "which is no size"),
        ("-512", "which is no size"),
        ("500", r"a side of more_sizes \(500\) is 500, but Wan needs a multiple of 16: use 496 or 512"),
        ("0", "multiple of 16"),
        ("64x99984", "16384 are the most"),
    ],
)
def test_sizes_that_are_none(text, message):
    with pytest.raises(ConfigError, match=message):
        DatasetOptions(more_sizes=text)


def test_sizes():
    options = DatasetOptions(width=512, height=512, more_sizes="768,1024X576, 512,768")
    assert sizes_of(options) == ((512, 512), (768, 768), (1024, 576))


def test_what_training_makes_of_samples(scan):
    for sample in scan(loss_weight=0.5, drop_captions=0.25).samples:
        assert (sample.treatment.loss_weight, sample.treatment.caption_dropout) == (0.5, 0.25)
        assert not sample.treatment.is_regularization


def test_a_regularization_set_has_no_trigger_word(scan, folder):
    dataset = scan(regularization=True, trigger_word="ohwx")
    assert dataset.captions == ("a dog", "a dog runs")
    assert scan(trigger_word="ohwx").captions == ("ohwx, a dog", "ohwx, a dog runs")
    assert dataset.trigger_words == ""
    assert all(sample.treatment.is_regularization for sample in dataset.samples)
    assert dataset.options.warnings() == ["trigger_word has no effect with regularization on."]
    (folder / "square.txt").write_text("[trigger] runs")
    with pytest.raises(DatasetError, match=r"square\.png contains \[trigger\].*a regularization set has none"):
        scan(regularization=True, trigger_word="ohwx")
    (folder / "square.txt").write_text("")
    dropped = scan(regularization=True, trigger_word="ohwx")
    assert "dropped" in [note.action for note in dropped.notes]  # the trigger word is no caption of it
    assert [sample.file.name for sample in dropped.samples] == ["wide.mp4"]


def test_a_trigger_word_that_is_its_own_placeholder_is_told():
    (sentence,) = DatasetOptions(trigger_word="[Trigger]").warnings()
    assert sentence.startswith("trigger_word is itself [trigger]")
    assert DatasetOptions(trigger_word="ohwx").warnings() == []
