"""Control clips and reference pictures that go with the files of a dataset."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from wan_train.core.data.decode import read_frames, read_paired
from wan_train.core.data.encode import cache_latents
from wan_train.core.data.pairs import data_spec
from wan_train.core.data.scan import scan_folder
from wan_train.core.data.store import Store
from wan_train.core.data.types import TextCache, TextEntry
from wan_train.core.errors import ConfigError
from wan_train.core.settings.dataset import DatasetOptions
from wan_train.core.train.checks import check_data
from wan_train.core.wan.config import WanConfig
from wan_train.tests.core.data.test_encode import PoolVAE


def picture(path, level, size=(64, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), level, np.uint8)).save(path)


@pytest.fixture
def clips(folder, make):
    """a.mp4 and b.mp4 with a control clip and a reference picture each, and a picture p.png with a control picture."""
    (folder / "depth").mkdir()
    for name in ("a", "b"):
        make.clip(folder / f"{name}.mp4", 9, size=(96, 64))
        make.clip(folder / "depth" / f"{name}.mp4", 9, size=(48, 32))
        picture(folder / "faces" / f"{name}.png", 90, size=(96, 64))
    picture(folder / "p.png", 50, size=(96, 64))
    picture(folder / "depth" / "p.png", 70, size=(96, 64))
    picture(folder / "faces" / "p.png", 80, size=(96, 64))
    for name in ("a", "b", "p"):
        (folder / f"{name}.txt").write_text(name)
    return folder


def scan(folder, **options):
    return scan_folder(folder, DatasetOptions(width=64, height=64, num_frames=5, **options))


def spec_of(cache):
    texts = tuple(TextEntry(path="t", key=text, caption=text, num_tokens=1) for text in ("a", "b", "p", ""))
    return data_spec(cache, TextCache(entries=texts, encoder="e", dim=8))


def test_files_of_a_name_belong_together_and_are_not_trained_on(clips):
    dataset = scan(clips, control_clips="depth", reference_pictures="faces")
    found = {s.file.name: (s.given.control.name, s.given.reference.name) for s in dataset.samples}
    assert found == {"a.mp4": ("a.mp4", "a.png"), "b.mp4": ("b.mp4", "b.png"), "p.png": ("p.png", "p.png")}
    assert not [
        note for note in dataset.notes if note.action == "skipped" or "depth" in note.name or "faces" in note.name
    ]


def test_a_list_may_name_them(clips):
    lines = [{"file_name": "a.mp4", "control": "depth/b.mp4"}, {"file_name": "b.mp4", "reference": "faces/a.png"}]
    (clips / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    dataset = scan(clips, frames_file="pairs.jsonl")
    found = {
        s.file.name: s.given and {name: file.name for name, file in s.given.paired.items()} for s in dataset.samples
    }
    assert found["a.mp4"] == {"control": "b.mp4"}
    assert found["b.mp4"] == {"reference": "a.png"}


def test_every_window_has_its_frames_of_the_control_cut_as_its_own(clips):
    dataset = scan(clips, control_clips="depth", frame_sampling="chunk", flip_x=True, crop="random")
    assert len(dataset.samples) > 3
    for sample in dataset.samples:
        own, control = read_frames(sample), read_paired(sample, "control")
        assert own.shape == control.shape
        if sample.file.name != "p.png":  # drawn by the same hand at half the size
            assert (own.float() - control.float()).abs().mean() < 6


def test_latents_are_cached_with_the_others_and_once(clips, tmp_path):
    store, vae = Store(tmp_path / "cache"), PoolVAE()
    plain, _ = cache_latents(scan(clips, control_clips="depth"), vae, store)
    dataset = scan(clips, control_clips="depth", reference_pictures="faces")
    cache, _ = cache_latents(dataset, vae, store)
    for entry, sample, mine in zip(cache.entries, dataset.samples, plain.entries, strict=True):
        assert (entry.key, entry.control_key) == (mine.key, mine.control_key)
        kept = store.load("latents", entry.control_key)["latents"]
        assert torch.allclose(kept, vae.encode(read_paired(sample, "control")))
        assert store.load("latents", entry.reference_key)["latents"].shape == (16, 1, *entry.shape[2:])
    calls = vae.calls
    assert cache_latents(dataset, vae, store)[0] == cache
    assert vae.calls == calls
    sample = spec_of(cache).samples[0]
    assert sample.control_path.endswith(f"{sample.control_key}.safetensors")
    assert {sample.control_path, sample.reference_path} <= set(sample.paths)
    assert sample.later.keys() == {"control", "reference"}


def test_another_control_is_another_cache_and_another_run(clips, make, tmp_path):
    store, vae = Store(tmp_path / "cache"), PoolVAE()
    before = scan(clips, control_clips="depth")
    make.clip(clips / "depth" / "a.mp4", 9, size=(96, 64))
    after = scan(clips, control_clips="depth")
    one, two = (
        cache_latents(dataset, vae, store)[0] for dataset in (replace(before, samples=before.samples[1:]), after)
    )
    assert before.digest != after.digest
    assert one.entries[0].control_key == two.entries[1].control_key
    assert spec_of(two).samples[0].later != spec_of(one).samples[0].later


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda f, _: (f / "depth" / "a.mp4").unlink(), r"a\.mp4: skipped: no file of its name is in control_clips"),
        (
            lambda f, make: make.clip(f / "depth" / "a.mp4", 8, size=(96, 64)),
            "has 8 frames, and the clip has 9: give as many",
        ),
        (
            lambda f, make: make.clip(f / "depth" / "a.mp4", 9, size=(64, 64)),
            "64x64, another aspect ratio than 96x64: make",
        ),
        (lambda f, _: (f / "depth" / "a.mp4").write_bytes(b"x"), r"its control a\.mp4 cannot be used"),
    ],
)
def test_what_does_not_go_together_is_named(clips, make, change, reason):
    change(clips, make)
    dataset = scan(clips, control_clips="depth")
    (note,) = (note for note in dataset.notes if note.action == "skipped")
    assert re.search(reason, str(note)), note
    assert [s.file.name for s in dataset.samples] == ["b.mp4", "p.png"]


def test_a_model_that_is_given_none_refuses_them(clips, tmp_path):
    cache, _ = cache_latents(scan(clips, control_clips="depth"), PoolVAE(), Store(tmp_path / "cache"))
    info = SimpleNamespace(
        config=WanConfig(dim=64, ffn_dim=64, num_heads=2, num_layers=1, text_dim=8), path=tmp_path / "wan.safetensors"
    )
    with pytest.raises(
        ConfigError, match=r"a\.mp4.* has a control clip, but wan\.safetensors is given none: leave control"
    ):
        check_data(SimpleNamespace(data=spec_of(cache)), info)


def test_names_outside_the_dataset_are_refused():
    with pytest.raises(ConfigError, match=r"control_clips is '\.\./x': give a name within the dataset folder"):
        DatasetOptions(control_clips="../x")
