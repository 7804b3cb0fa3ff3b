"""Pictures in place of a clip's first and last frame."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from wan_train.core.data.encode import cache_latents
from wan_train.core.data.pairs import data_spec
from wan_train.core.data.scan import scan_folder
from wan_train.core.data.store import Store
from wan_train.core.data.types import TextCache, TextEntry
from wan_train.core.errors import ConfigError, DatasetError
from wan_train.core.settings.dataset import DatasetOptions
from wan_train.core.train.batches import load_conditioning
from wan_train.tests.core.data.test_conditioning import FrameVision
from wan_train.tests.core.data.test_encode import PoolVAE

BOTH = "first and last frame"


def picture(path, level, size=(64, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), level, np.uint8)).save(path)


@pytest.fixture
def clips(folder, make):
    """a.mp4 and sub/b.mp4, with starts for both and an end for a."""
    (folder / "sub").mkdir()
    for name in ("a", "sub/b"):
        make.clip(folder / f"{name}.mp4", 9, size=(64, 64))
        (folder / f"{name}.txt").write_text(name)
    picture(folder / "starts" / "a.png", 200)
    picture(folder / "starts" / "sub" / "b.jpg", 220)
    picture(folder / "ends" / "a.png", 240)
    return folder


def scan(folder, **options):
    return scan_folder(folder, DatasetOptions(width=64, height=64, num_frames=9, **options))


def given(dataset):
    files = [(s.given.first, s.given.last) if s.given else (None, None) for s in dataset.samples]
    return {
        sample.file.name: tuple(file.name if file else None for file in pair)
        for sample, pair in zip(dataset.samples, files, strict=True)
    }


def test_pictures_of_a_folder_belong_to_the_clips_of_their_names(clips):
    dataset = scan(clips, first_frames="starts")
    assert given(dataset) == {"a.mp4": ("a.png", None), "sub/b.mp4": ("b.jpg", None)}
    left = [note.name for note in scan(clips).notes if note.action == "dropped"]
    assert "starts/a.png" in left  # without the option they are pictures of the dataset, here without captions
    assert [note.name for note in dataset.notes] == ["ends/a.png"]


def test_a_clip_without_its_picture_is_left_out_or_refused(clips):
    dataset = scan(clips, first_frames="starts", last_frames="ends")
    assert given(dataset) == {"a.mp4": ("a.png", "a.png")}
    assert list(map(str, dataset.notes)) == [
        "sub/b.mp4: skipped: no picture of its name is in last_frames (ends): of clip.mp4 that is clip.png"
    ]
    with pytest.raises(DatasetError, match=r"sub/b\.mp4 cannot be used: no picture of its name is in last_frames"):
        scan(clips, first_frames="starts", last_frames="ends", bad_files="refuse")


@pytest.mark.parametrize(
    ("clip", "start"),
    [
        ("Clip.MP4", "clip.PNG"),  # another case, as Windows does not tell apart
        ("Mu\u0308ller.mp4", "M\u00fcller.png"),  # as a Mac has it, and as others do
        ("take.final.mp4", "take.final.png"),
        ("take.mp4", "take.mp4.png"),
        ("sub/Clip.mp4", "clip.png"),  # directly in the folder
    ],
)
def test_pictures_are_found_by_names_as_people_write_them(folder, make, clip, start):
    (folder / clip).parent.mkdir(exist_ok=True)
    make.clip(folder / clip, 9, size=(64, 64))
    picture(folder / "Starts" / start, 200)
    dataset = scan(folder, first_frames="starts", default_caption="x")
    assert given(dataset) == {clip: (start, None)}
    assert not [note for note in dataset.notes if "name" in note.reason]
    line = {"file_name": clip.swapcase(), "first_frame": f"starts/{start}".swapcase()}
    (folder / "frames.jsonl").write_text(json.dumps(line))
    assert given(scan(folder, frames_file="frames.jsonl", default_caption="x")) == {clip: (start, None)}


def test_the_very_name_goes_before_one_that_is_alike(clips):
    picture(clips / "starts" / "A.png", 210)
    dataset = scan(clips, first_frames="starts")
    assert given(dataset)["a.mp4"] == ("a.png", None)
    assert "starts/A.png: note: not used: no file of the dataset is left for it" in "\n".join(map(str, dataset.notes))


def test_a_picture_of_no_clip_is_told_with_the_name_that_it_should_have(clips):
    (clips / "starts" / "sub" / "b.jpg").rename(clips / "starts" / "b2.png")
    told = [str(note) for note in scan(clips, first_frames="starts").notes if note.name != "ends/a.png"]
    assert told == [
        "sub/b.mp4: skipped: no picture of its name is in first_frames (starts): of clip.mp4 that is clip.png",
        "starts/b2.png: note: not used: no file of the dataset is left for it; a file of first_frames has the name of "
        "its clip or picture, such as sub/b.png for sub/b.mp4",
    ]


def test_a_list_names_clips_and_pictures(clips):
    lines = [{"file_name": "sub/b.mp4", "first_frame": "starts/a.png", "last_frame": "ends/a.png"}]
    (clips / "frames.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    (clips / "starts" / "sub" / "b.jpg").unlink()
    dataset = scan(clips, frames_file="frames.jsonl")
    assert given(dataset) == {"a.mp4": (None, None), "sub/b.mp4": ("a.png", "a.png")}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "line 1 of .* is no JSON"),
        ("[]", r"line 1 of .* is \[\]: write"),
        ('{"first_frame": "starts/a.png"}', "line 1 .*: write"),
        ('{"file_name": "a.mp4", "first_frame": 1}', "line 1 .*: write"),
        ('{"file_name": "a.mp4"}', "line 1 .* names no picture"),
        ('{"file_name": "a.mp4", "depth": "x"}', "has 'depth', which is not used"),
        ('{"file_name": "z.mp4", "first_frame": "starts/a.png"}', "names 'z.mp4', which is no file of the dataset"),
        ('{"file_name": "a.mp4", "first_frame": "../x.png"}', "names '../x.png', which is no file of the dataset"),
    ],
)
def test_lines_that_cannot_be_used_are_named(clips, line, sentence):
    (clips / "frames.jsonl").write_text(line)
    with pytest.raises(DatasetError, match=sentence):
        scan(clips, frames_file="frames.jsonl")


def test_what_is_not_there_is_named(clips):
    with pytest.raises(DatasetError, match="first_frames is 'none', but no such folder with pictures"):
        scan(clips, first_frames="none")
    with pytest.raises(DatasetError, match=r"frames_file .*none\.jsonl cannot be read"):
        scan(clips, frames_file="none.jsonl")


@pytest.mark.parametrize("path", ["/tmp/x", "../x", "a/../../x", "C:\\x"])
def test_a_name_outside_the_dataset_is_refused(path):
    with pytest.raises(ConfigError, match="give a name within the dataset folder"):
        DatasetOptions(first_frames=path)


def test_what_a_picture_cannot_begin_is_refused():
    with pytest.raises(ConfigError, match="with frame_sampling chunk a clip gives several samples"):
        DatasetOptions(first_frames="x", frame_sampling="chunk")
    with pytest.raises(ConfigError, match="crop motion cannot follow"):
        DatasetOptions(last_frames="x", crop="motion")


def test_the_model_is_given_the_pictures_and_learns_the_clip(clips, tmp_path):
    store, vae, vision = Store(tmp_path / "cache"), PoolVAE(), FrameVision()
    own, _ = cache_latents(scan(clips), vae, store, conditioning=BOTH, vision=vision)
    dataset = scan(clips, first_frames="starts", frames_file="")
    cache, _ = cache_latents(dataset, vae, store, conditioning=BOTH, vision=vision)
    for entry, mine in zip(cache.entries, own.entries, strict=True):
        assert entry.key == mine.key  # the clip is encoded once
        assert entry.known_key != mine.known_key
        assert entry.vision_key != mine.vision_key
    assert cache.digest != own.digest
    entry = cache.entries[0]
    known = store.load("latents", entry.known_key)["latents"]
    of_clip = store.load("latents", own.entries[0].known_key)["latents"]
    expected = torch.full((9, 64, 64, 3), 0.5)
    expected[0] = 200 / 255
    assert torch.allclose(known[:, 0], vae.encode(expected)[:, 0])
    assert torch.equal(known[:, 1:], of_clip[:, 1:])  # the last frame is the clip's own
    features = store.load("vision", entry.vision_key)["features"]
    assert features[0, 0] == 200
    assert features[-1, 0] == pytest.approx(10 + 5 * 8, abs=2)
    calls = (vae.calls, vision.calls)
    assert cache_latents(dataset, vae, store, conditioning=BOTH, vision=vision)[0] == cache
    assert (vae.calls, vision.calls) == calls


def test_another_picture_is_another_key_and_what_trains_reads_it(clips, tmp_path, await_tick):
    store = Store(tmp_path / "cache")
    torch.manual_seed(0)
    vae = PoolVAE()
    first, _ = cache_latents(scan(clips, first_frames="starts"), vae, store, conditioning="first frame")
    await_tick(clips / "starts" / "a.png")
    picture(clips / "starts" / "a.png", 30)
    second, _ = cache_latents(scan(clips, first_frames="starts"), vae, store, conditioning="first frame")
    keys = [[entry.known_key for entry in cache.entries] for cache in (first, second)]
    assert keys[0][0] != keys[1][0]
    assert keys[0][1] == keys[1][1]
    texts = tuple(TextEntry(path="t", key=text, caption=text, num_tokens=1) for text in ("a", "sub/b", ""))
    spec = data_spec(second, TextCache(entries=texts, encoder="e", dim=8))
    given_to_model = load_conditioning(spec.samples[0], "first frame")
    expected = torch.full((9, 64, 64, 3), 0.5)
    expected[0] = 30 / 255
    assert torch.allclose(given_to_model[4:], vae.encode(expected))
    assert (
        spec.samples[0].known_key != data_spec(first, TextCache(entries=texts, encoder="e", dim=8)).samples[0].known_key
    )


def test_they_are_cut_and_flipped_as_the_clip(folder, make, tmp_path):
    make.clip(folder / "a.mp4", 5, size=(64, 64))
    (folder / "a.txt").write_text("a")
    levels = np.zeros((32, 64, 3), np.uint8)  # twice as wide as high: dark, then light
    levels[:, 32:] = 255
    (folder / "starts").mkdir()
    Image.fromarray(levels).save(folder / "starts" / "a.png")
    options = DatasetOptions(width=64, height=64, num_frames=5, first_frames="starts", flip_x=True)
    dataset = scan_folder(folder, options)
    assert any("another aspect ratio" in note.reason for note in dataset.notes)
    store, vae = Store(tmp_path / "cache"), PoolVAE()
    cache, _ = cache_latents(dataset, vae, store, conditioning="first frame")
    plain, flipped = (store.load("latents", entry.known_key)["latents"][:, 0] for entry in cache.entries)
    assert torch.allclose(plain.flip(-1), flipped, atol=1e-5)
    assert not torch.allclose(plain, flipped, atol=1e-2)


@pytest.mark.parametrize(
    ("conditioning", "options", "vae", "sentence"),
    [
        ("none", {"first_frames": "starts"}, "wan2.1", "first frame .* condition_on is 'none': leave them out"),
        ("first frame", {"last_frames": "ends"}, "wan2.1", "last frame .* choose 'first and last frame'"),
        ("first frame", {"first_frames": "starts"}, "wan2.2", "TI2V-5B, which takes the clip's own first frame"),
    ],
)
def test_pictures_that_would_not_be_given_are_refused_before_anything_is_encoded(
    clips, tmp_path, conditioning, options, vae, sentence
):
    encoder = PoolVAE(vae)
    with pytest.raises(ConfigError, match=sentence):
        cache_latents(scan(clips, **options), encoder, Store(tmp_path / "cache"), conditioning=conditioning)
    assert encoder.calls == 0


def test_a_damaged_or_moving_picture_leaves_its_clip_out(clips, make):
    (clips / "starts" / "a.png").write_bytes(b"nothing")
    dataset = scan(clips, first_frames="starts")
    assert list(given(dataset)) == ["sub/b.mp4"]
    assert any(note.name == "a.mp4" and "its first frame a.png cannot be used" in note.reason for note in dataset.notes)
