"""Memory that runs out within a real VAE, of the host and without it: tiles, under keys of their own, and never mixed."""

import pytest
import torch
from wan_train.core.data.decode import read_frames
from wan_train.core.data.encode import cache_latents
from wan_train.core.data.scan import scan_folder
from wan_train.core.data.store import Store, latent_key
from wan_train.core.data.tiles import TILE, encode_in_tiles
from wan_train.core.encoders.vae import load_video_encoder
from wan_train.core.errors import RunError
from wan_train.core.settings.dataset import DatasetOptions
from wan_train.tools.shapes import draw_dataset

WIDTH, HEIGHT = 272, 16  # pixels: two tiles side by side
TOLERANCE = 1e-5  # between the host's VAE and ours, of the largest value
KINDS = ["host", "headless"]


class Memory:
    """Makes a VAE's encoder run out of memory, in the middle of a clip, where pictures have more pixels than `limit`.

    `spared`: so many shortages, and then there is enough.
    """

    def __init__(self, encoder, monkeypatch, inner, *, limit=TILE * HEIGHT, spared=10**9):
        self.encoder, self.limit, self.spared, self.shortages, self.calls = encoder, limit, spared, 0, 0
        forward = inner.forward

        def guarded(x, *args, **kwargs):
            self.calls += 1
            if x.shape[2] > 1 and x.shape[3] * x.shape[4] > self.limit and self.shortages < self.spared:
                self.shortages += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return forward(x, *args, **kwargs)

        monkeypatch.setattr(inner, "forward", guarded)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Two clips and an image of 272x16."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    draw_dataset(folder, clips=2, images=1, size=64, frames=5, seed=0)
    options = DatasetOptions(width=WIDTH, height=HEIGHT, num_frames=5, aspect_buckets=False, trigger_word="shp")
    return scan_folder(folder, options)


@pytest.fixture
def tight(host_side, host_vae, vae_path, monkeypatch):
    """Kind and options to an encoder that runs out of memory."""

    def make(kind, **options):
        if kind == "host":
            vae = host_vae(vae_path)
            return Memory(host_side.HostVideoEncoder(vae), monkeypatch, vae.first_stage_model.encoder, **options)
        encoder = load_video_encoder(vae_path, "cpu")
        return Memory(encoder, monkeypatch, encoder._model.encoder, **options)

    return make


def whole_keys(dataset, encoder, mode="full"):
    return [latent_key(sample, encoder.identity, mode) for sample in dataset.samples]


def load(store, entry):
    return store.load("latents", entry.key)["latents"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_size_too_large_is_tiled_under_its_own_key(dataset, tight, video, error, tmp_path, kind):
    store, memory = Store(tmp_path), tight(kind)
    cache, notes = cache_latents(dataset, memory.encoder, store)
    assert memory.shortages == 2  # both at the first clip; the second is not even tried whole
    whole = whole_keys(dataset, video)
    assert [entry.key == key for entry, key in zip(cache.entries, whole, strict=True)] == [False, False, True]
    assert {path.stem for path in tmp_path.rglob("*.safetensors")} == {entry.key for entry in cache.entries}
    assert [(note.name, note.action) for note in notes] == [(e.name, "note") for e in cache.entries[:2]]
    assert f"too small for 5 frames of {WIDTH}x{HEIGHT}: encoded in tiles of {TILE} pixels" in notes[0].reason
    assert notes[0].reason.endswith(f"delete {cache.entries[0].path}")
    for sample, entry in zip(dataset.samples[:2], cache.entries, strict=False):
        frames, latents = read_frames(sample), load(store, entry)
        assert error(latents, encode_in_tiles(video.encode, frames, 8)) < TOLERANCE
        assert 0.001 < error(latents, video.encode(frames)) < 0.5  # a little, and more than rounding
        assert store.metadata("latents", entry.key)["tile"] == str(TILE)


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_run_finds_tiles_again_whatever_its_memory_and_program(dataset, tight, video, tmp_path, kind):
    store = Store(tmp_path)
    made = cache_latents(dataset, tight(kind).encoder, store)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    again = tight(kind)
    assert cache_latents(dataset, again.encoder, store) == made
    assert again.calls == 0
    assert cache_latents(dataset, video, store) == made
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == stamps
    # With the file deleted and memory there, as the note says, it is encoded whole; the other keeps its tiles.
    store.path("latents", made[0].entries[0].key).unlink()
    better, notes = cache_latents(dataset, video, store)
    assert better.entries[0].key == whole_keys(dataset, video)[0]
    assert better.entries[1:] == made[0].entries[1:]
    assert [note.name for note in notes] == [made[0].entries[1].name]
    assert better.digest != made[0].digest


@pytest.mark.parametrize("kind", KINDS)
def test_whole_latents_are_preferred_and_kept(dataset, tight, video, tmp_path, kind):
    store = Store(tmp_path)
    whole, _ = cache_latents(dataset, video, store)
    memory = tight(kind)
    assert cache_latents(dataset, memory.encoder, store) == (whole, [])
    assert memory.calls == 0


@pytest.mark.parametrize("kind", KINDS)
def test_freed_memory_may_be_enough(dataset, tight, video, error, tmp_path, kind):
    store, memory = Store(tmp_path), tight(kind, spared=1)
    cache, notes = cache_latents(dataset, memory.encoder, store)
    assert memory.shortages == 1
    assert notes == []
    assert [entry.key for entry in cache.entries] == whole_keys(dataset, video)
    expected, _ = cache_latents(dataset, video, Store(tmp_path / "other"))
    for entry in cache.entries:
        assert error(load(store, entry), load(Store(tmp_path / "other"), entry)) < TOLERANCE
    assert expected.digest == cache.digest


@pytest.mark.parametrize("kind", KINDS)
def test_without_memory_for_tiles_a_sentence_says_so(dataset, tight, video, tmp_path, kind):
    store, memory = Store(tmp_path), tight(kind, limit=64)
    with pytest.raises(RunError, match=rf"5 frames of {WIDTH}x{HEIGHT}, even in tiles of {TILE} pixels: close other"):
        cache_latents(dataset, memory.encoder, store)
    assert not list(tmp_path.rglob("*.safetensors"))
    # Nothing is left in the model of what was broken off.
    memory.limit = 10**9
    cache_latents(dataset, memory.encoder, store)
    assert (
        cache_latents(dataset, video, store)[0].digest == cache_latents(dataset, video, Store(tmp_path / "o"))[0].digest
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_known_frames_of_image_to_video_are_tiled_likewise(dataset, tight, video, tmp_path, kind):
    store, memory = Store(tmp_path), tight(kind)
    cache, notes = cache_latents(dataset, memory.encoder, store, conditioning="first frame")
    assert memory.shortages == 2
    keys = {key for entry in cache.entries for key in (entry.key, entry.known_key)}
    assert len(keys) == 4
    assert not keys & {*whole_keys(dataset, video), *whole_keys(dataset, video, "first frame")}
    assert [note.action for note in notes] == ["note", "note", "skipped"]
    assert notes[0].reason.endswith(f"{cache.entries[0].path} and {cache.entries[0].known_path}")
    assert cache_latents(dataset, video, store, conditioning="first frame") == (cache, notes)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_cpu_is_the_last_resort(dataset, vae_path, video, monkeypatch, tmp_path, error):
    """A GPU without memory even for tiles: everything from there on goes through the CPU, in the same precision."""
    encoder = load_video_encoder(vae_path, "cuda", torch.float32)
    inner = encoder._model.encoder
    forward = inner.forward

    def guarded(x, *args, **kwargs):
        if x.device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(x, *args, **kwargs)

    monkeypatch.setattr(inner, "forward", guarded)
    store = Store(tmp_path)
    cache, notes = cache_latents(dataset, encoder, store)
    assert [note.action for note in notes] == ["note", "note"]  # the clips, whose size is known not to fit
    assert cache.entries[2].key == whole_keys(dataset, video)[2]
    for sample, entry in zip(dataset.samples, cache.entries, strict=True):
        encode = video.encode if entry is cache.entries[2] else lambda frames: encode_in_tiles(video.encode, frames, 8)
        assert error(load(store, entry), encode(read_frames(sample))) < TOLERANCE
