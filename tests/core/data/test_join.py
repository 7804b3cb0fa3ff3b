"""Several datasets as one: each keeps its own options, and whatever is told says which it is of."""

import pytest
from wan_train.core.data.encode import cache_latents, cache_text
from wan_train.core.data.join import frame_rates, join, join_warnings, split
from wan_train.core.data.pairs import data_spec
from wan_train.core.data.report import describe_dataset
from wan_train.core.data.scan import scan_folder
from wan_train.core.data.store import Store
from wan_train.core.errors import ConfigError, DatasetError
from wan_train.core.settings.dataset import DatasetOptions
from wan_train.tests.core.data.test_encode import CharEncoder, PoolVAE

SMALL = {"width": 64, "height": 64, "num_frames": 9}


def options(**changes):
    return DatasetOptions(**{**SMALL, **changes})


def scan(folder, **changes):
    return scan_folder(folder, options(**changes))


@pytest.fixture
def folders(tmp_path, make):
    """Two folders with files of the same names: clips, then clips and pictures."""
    for name, captions in (("shots", "[trigger] walks"), ("others/shots", "somebody walks"), ("plain", "a person")):
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        for file in ("a.mp4", "b.mp4"):
            make.clip(folder / file, 12, size=(64, 64))
            (folder / file).with_suffix(".txt").write_text(captions)
    make.image(tmp_path / "plain" / "c.png", (64, 64))
    (tmp_path / "plain" / "c.txt").write_text("a person, still")
    return tmp_path


def test_names_tell_which_dataset_a_sample_is_of(folders):
    joined = join([scan(folders / "shots", trigger_word="ohwx"), scan(folders / "plain", repeats=3)])
    names = ["shots/a.mp4[0:9]", "shots/b.mp4[0:9]", "plain/a.mp4[0:9]", "plain/b.mp4[0:9]", "plain/c.png"]
    assert [sample.name for sample in joined.samples] == names
    assert [sample.repeats for sample in joined.samples] == [1, 1, 3, 3, 3]
    assert joined.captions == ("ohwx walks", "a person", "a person, still")
    assert [(part.name, len(samples)) for part, samples in split(joined)] == [("shots", 2), ("plain", 3)]
    assert joined.options_of(joined.samples[-1]).repeats == 3


def test_one_alone_stays_as_it_is(folders):
    alone = scan(folders / "plain")
    assert join([alone]) is alone
    assert alone.samples[0].name == "a.mp4[0:9]"


def test_the_same_folder_twice_and_folders_of_the_same_name(folders):
    one = folders / "shots"
    twice = join([scan(one, trigger_word="x"), scan(one, trigger_word="y", frame_sampling="chunk", num_frames=5)])
    names = ["a.mp4[0:9]", "b.mp4[0:9]", "a.mp4[0:5]", "a.mp4[5:10]", "b.mp4[0:5]", "b.mp4[5:10]"]
    assert [s.name for s in twice.samples] == [f"shots ({1 + (i > 1)})/{name}" for i, name in enumerate(names)]
    assert len({s.name for s in twice.samples}) == 6
    assert [s.file.caption for s in twice.samples[1:3]] == ["x walks", "y walks"]
    same = join([scan(one, trigger_word="x"), scan(folders / "others" / "shots")])
    assert [part.name for part in same.parts] == ["shots (1)", "shots (2)"]


def test_joined_ones_are_joined_again(folders):
    first = join([scan(folders / "shots", trigger_word="x"), scan(folders / "plain")])
    again = join([first, scan(folders / "plain", trigger_word="y")])
    assert [part.name for part in again.parts] == ["shots", "plain (1)", "plain (2)"]
    assert [s.name for s in again.samples][-4:] == [
        "plain (1)/c.png",
        "plain (2)/a.mp4[0:9]",
        "plain (2)/b.mp4[0:9]",
        "plain (2)/c.png",
    ]
    assert again.options_of(again.samples[-1]).trigger_word == "y"


def test_samples_are_held_out_of_each_dataset(folders):
    joined = join([scan(folders / "shots", trigger_word="x", held_out=1), scan(folders / "plain", held_out=2)])
    held = {part.name: sum(s.held_out for s in samples) for part, samples in split(joined)}
    assert held == {"shots": 1, "plain": 2}


def test_what_is_held_out_and_trained_on_all_the_same_is_told(folder, make):
    for name, frames in (("a", 12), ("b", 13)):
        make.clip(folder / f"{name}.mp4", frames, size=(64, 64))
    twice = [scan(folder, trigger_word="x", held_out=1), scan(folder, trigger_word="x", num_frames=5)]
    (held,) = [sample.name for sample in join(twice).samples if sample.held_out]
    name = held.partition("[")[0]
    (sentence,) = join_warnings(join(twice))
    assert f"{name} is held out, and trained on as {name.replace('(1)', '(2)')}: " in sentence
    same = [scan(folder, trigger_word="x", held_out=1, num_frames=frames) for frames in (9, 5)]
    assert join_warnings(join(same)) == []
    windows = scan(folder, trigger_word="x", held_out=3, num_frames=5, frame_sampling="chunk")
    assert join_warnings(windows) == []  # a note tells of it


def test_a_copy_of_what_is_held_out_is_told(folder, make):
    for name in ("a", "b", "c"):
        make.image(folder / f"{name}.png", (64, 64), colour=(1, 2, 3))
    (sentence,) = join_warnings(scan(folder, trigger_word="x", held_out=1))
    assert "b.png is held out, and trained on as a.png: " in sentence


def test_notes_say_their_dataset(folders, make):
    make.clip(folders / "shots" / "c.mp4", 6, size=(64, 64))
    (folders / "shots" / "c.txt").write_text("x")
    joined = join([scan(folders / "plain"), scan(folders / "shots", trigger_word="x")])
    (note,) = [note for note in joined.notes if note.action == "shortened"]
    assert str(note).startswith("shots/c.mp4: shortened: 6 frames at 16 fps, fewer than num_frames 9")


def test_trigger_words_and_frame_rates_of_all(folders, tmp_path):
    parts = [
        scan(folders / "shots", trigger_word="ohwx", fps=24),
        scan(folders / "others" / "shots", trigger_word="zkw", fps=16, repeats=2),
        scan(folders / "plain", trigger_word="nobody", regularization=True, fps=24),
    ]
    joined = join(parts)
    assert joined.trigger_words == "ohwx, zkw"  # a regularization set has none
    assert frame_rates(joined) == (24, 16)  # four samples an epoch each: the first that is met
    assert frame_rates(join(parts[:2])) == (16, 24)
    (sentence,) = join_warnings(joined)
    assert "shots (1) has 24, shots (2) has 16, plain has 24" in sentence
    cache, _ = cache_latents(joined, PoolVAE(), Store(tmp_path / "cache"))
    text, _ = cache_text(joined.captions, CharEncoder(), Store(tmp_path / "cache"))
    data = data_spec(cache, text)
    assert (data.fps, data.more_fps, cache.trigger_word) == (24, (16,), "ohwx, zkw")
    assert [sample.is_regularization for sample in data.samples] == [False] * 4 + [True] * 3


def test_pictures_have_no_frame_rate_to_warn_of(folders, make):
    for file in ("a.mp4", "b.mp4"):
        (folders / "plain" / file).unlink()
    joined = join([scan(folders / "shots", trigger_word="x", fps=16), scan(folders / "plain", fps=24)])
    assert frame_rates(joined) == (16,)
    assert join_warnings(joined) == []
    both = join([scan(folders / "plain", fps=24), scan(folders / "plain", fps=30)])
    assert frame_rates(both) == (24,)


@pytest.mark.parametrize(("first", "second"), [("skip", "refuse"), ("refuse", "skip")])
def test_bad_files_are_what_their_own_dataset_says(folders, tmp_path, first, second):
    joined = join(
        [scan(folders / "shots", trigger_word="x", bad_files=first), scan(folders / "plain", bad_files=second)]
    )
    (folders / "plain" / "c.png").unlink()
    if second == "refuse":
        with pytest.raises(DatasetError, match=r"c\.png"):
            cache_latents(joined, PoolVAE(), Store(tmp_path / "cache"))
        return
    cache, notes = cache_latents(joined, PoolVAE(), Store(tmp_path / "cache"))
    assert [note.name for note in notes] == ["plain/c.png"]
    assert len(cache.entries) == 4


def test_the_digest_is_of_the_content_and_of_what_training_makes_of_it(folders):
    def digest(**changes):
        return join([scan(folders / "shots", trigger_word="x"), scan(folders / "plain", **changes)]).digest

    changed = [{}, {"loss_weight": 0.5}, {"drop_captions": 0.1}, {"regularization": True}, {"repeats": 2}]
    assert len({digest(**changes) for changes in changed}) == 5


def test_too_many_samples_together_are_refused(folders):
    many = [scan(folders / "shots", trigger_word="x", repeats=300_000) for _ in range(2)]
    with pytest.raises(ConfigError, match=r"the joined dataset \(shots \(1\), shots \(2\)\) comes to 1200000 samples"):
        join(many)


def test_the_report_has_a_line_for_each_and_the_sum(folders):
    joined = join(
        [
            scan(folders / "shots", trigger_word="ohwx", repeats=2),
            scan(folders / "plain", loss_weight=0.5, regularization=True, held_out=1, slide_stride=9, trigger_word="y"),
        ]
    )
    assert describe_dataset(joined).splitlines() == [
        "shots: 2 clips, 0 images: 4 samples an epoch; buckets 64x64x9 (2); loss weight 1; trigger word ohwx",
        "plain: 2 clips, 1 image: 2 samples an epoch, 1 held out; buckets 64x64x1 (1), 64x64x9 (2); loss weight 0.5; "
        "keeps what the model knows",
        "together: 4 clips, 1 image: 6 samples an epoch, 1 held out",
        "buckets: 64x64x1 (1), 64x64x9 (4)",
        "an epoch uses each sample once, times its repeats: 6 steps with batch_size 1",
        "- plain: slide_stride has no effect with frame_sampling head; it belongs to slide.",
        "- plain: trigger_word has no effect with regularization on.",
        "- plain/b.mp4 is held out, and trained on as shots/a.mp4: the held-out loss then tells of clips that are learnt by "
        "heart; hold out the same files of both, or leave them out of one.",
        "- 4 files: cropped: 3 of 12 frames at the end are in no window: shots/a.mp4, shots/b.mp4, ... and 2 more",
    ]


def test_regularization_alone_is_told(folders):
    told = "regularization is on for all that is trained on, so that nothing shows the concept"
    plain = scan(folders / "plain", regularization=True)
    assert told in describe_dataset(plain)
    assert told not in describe_dataset(join([scan(folders / "shots", trigger_word="ohwx"), plain]))
