import dataclasses
import threading
from pathlib import Path

import pytest
import torch
from torch import nn
from wan_train.core.data import pictures
from wan_train.core.data.encode import CAPTIONS_AT_ONCE, cache_latents, cache_text
from wan_train.core.data.scan import scan_folder
from wan_train.core.data.store import Store
from wan_train.core.errors import DatasetError, ModelFileError, RunError
from wan_train.core.settings.dataset import DatasetOptions


class PoolVAE(nn.Module):
    """A causal VAE in miniature: average pooling, then a fixed projection to the latent channels."""

    def __init__(self, latent_format="wan2.1", identity="pool"):
        super().__init__()
        self.identity, self.latent_format, self.calls = identity, latent_format, 0
        self.scale = {"wan2.1": 8, "wan2.2": 16}[latent_format]
        self.project = nn.Linear(3, {"wan2.1": 16, "wan2.2": 48}[latent_format])

    def encode(self, frames):
        self.calls += 1
        levels = frames.float() / 255 if frames.dtype == torch.uint8 else frames
        pooled = nn.functional.avg_pool2d(levels.permute(0, 3, 1, 2), self.scale)  # [F, 3, h, w]
        first, rest = pooled[:1], pooled[1:]
        steps = torch.cat([first, rest.unflatten(0, (-1, 4)).mean(1)]) if len(rest) else first
        return self.project(steps.movedim(1, -1)).movedim(-1, 0)  # [C, F, H, W]


class CharEncoder(nn.Module):
    """One token per character and an end token, at most 512."""

    def __init__(self, identity="chars", dim=8):
        super().__init__()
        self.identity, self.dim, self.seen = identity, dim, []
        self.table = nn.Embedding(128, dim)

    def encode(self, caption):
        self.seen.append(caption)
        tokens = [*caption.encode("ascii"), 1]
        return self.table(torch.tensor(tokens[:512])), len(tokens) > 512

    def encode_batch(self, captions):
        return [self.encode(caption) for caption in captions]


@pytest.fixture
def dataset(folder, make):
    def scan(**options):
        return scan_folder(folder, DatasetOptions(**{"width": 64, "height": 64, "num_frames": 9, **options}))

    for i in range(3):
        make.clip(folder / f"{i}.mp4", 9 + 4 * i, size=(64, 64))
        (folder / f"{i}.txt").write_text(f"caption {i}")
    make.image(folder / "3.png", (64, 64))
    (folder / "3.txt").write_text("caption 3")
    return scan


@pytest.mark.parametrize(("latent_format", "shape"), [("wan2.1", (16, 3, 8, 8)), ("wan2.2", (48, 3, 4, 4))])
def test_latents_land_in_the_store(dataset, tmp_path, latent_format, shape):
    store, vae = Store(tmp_path / "cache"), PoolVAE(latent_format)
    seen = []
    cache, notes = cache_latents(dataset(held_out=1), vae, store, on_item=lambda *args: seen.append(args))
    assert notes == []
    assert [e.shape for e in cache.entries] == [shape] * 3 + [(shape[0], 1, *shape[2:])]
    assert [e.name for e in cache.entries] == ["0.mp4[0:9]", "1.mp4[0:9]", "2.mp4[0:9]", "3.png"]
    assert [e.held_out for e in cache.entries] == [False, False, True, False]
    assert (cache.latent_format, cache.encoder, cache.fps) == (latent_format, "pool", 16.0)
    assert seen[0] == (1, 4, "0.mp4[0:9]")
    assert seen[-1] == (4, 4, "3.png")
    for entry in cache.entries:
        latents = store.load("latents", entry.key)["latents"]
        assert latents.dtype == torch.float32
        assert tuple(latents.shape) == entry.shape
        assert str(store.path("latents", entry.key)) == entry.path


def test_nothing_is_encoded_twice_and_a_changed_clip_alone_is_encoded_again(dataset, folder, tmp_path, make):
    store, vae = Store(tmp_path / "cache"), PoolVAE()
    first, _ = cache_latents(dataset(), vae, store)
    assert vae.calls == 4
    assert cache_latents(dataset(), vae, store)[0] == first
    assert vae.calls == 4
    make.clip(folder / "1.mp4", 9, size=(64, 64), rate=15, codec="mpeg4")
    second, _ = cache_latents(dataset(), vae, store)
    assert vae.calls == 5
    assert [a.key == b.key for a, b in zip(first.entries, second.entries, strict=True)] == [True, False, True, True]
    cache_latents(dataset(), PoolVAE(identity="another"), store)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 9


def test_a_changed_caption_alone_is_encoded_again(dataset, folder, tmp_path):
    store, vae, text = Store(tmp_path / "cache"), PoolVAE(), CharEncoder()
    cache_latents(dataset(), vae, store)
    cache_text(dataset().captions, text, store)
    assert text.seen == ["caption 0", "caption 1", "caption 2", "caption 3", ""]
    (folder / "2.txt").write_text("new words")
    cache, _ = cache_latents(dataset(), vae, store)
    cache_text(dataset().captions, text, store)
    assert vae.calls == 4
    assert text.seen[5:] == ["new words"]
    assert cache.entries[2].caption == "new words"


def test_damaged_latents_are_made_anew(dataset, tmp_path):
    store, vae = Store(tmp_path / "cache"), PoolVAE()
    cache, _ = cache_latents(dataset(), vae, store)
    for position in (-1, -200):
        path = store.path("latents", cache.entries[0].key)
        data = bytearray(path.read_bytes())
        data[position] ^= 0xFF
        path.write_bytes(data)
        before = vae.calls
        cache_latents(dataset(), vae, store)
        assert vae.calls == before + 1
        assert store.load("latents", cache.entries[0].key) is not None


def test_an_abort_keeps_what_is_done(dataset, tmp_path):
    store, vae = Store(tmp_path / "cache"), PoolVAE()

    def stop(done, total, name):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache_latents(dataset(), vae, store, on_item=stop)
    assert vae.calls == 2
    cache_latents(dataset(), vae, store)
    assert vae.calls == 4


@pytest.mark.parametrize("ahead", [0, 4])
def test_a_stop_acts_in_the_middle_of_a_file(folder, make, tmp_path, monkeypatch, ahead):
    make.animation(folder / "a.gif", 2000)
    found = scan_folder(folder, DatasetOptions(num_frames=5, frame_sampling="even", default_caption="x"))
    shown, asked, real = [], threading.Event(), pictures._show

    def show(image, index, work):
        shown.append(index)
        if threading.current_thread() is not threading.main_thread():
            asked.wait(60)  # the first frame is not done before `check` was called
        real(image, index, work)

    def check():
        if shown:
            asked.set()
            raise KeyboardInterrupt

    monkeypatch.setattr(pictures, "_show", show)

    with pytest.raises(KeyboardInterrupt):
        cache_latents(found, PoolVAE(), Store(tmp_path / "cache"), check=check, ahead=ahead)
    assert 0 < len(shown) < 2000


def test_a_file_that_fails_later_is_skipped_or_refused(dataset, folder, tmp_path):
    store, vae = Store(tmp_path / "cache"), PoolVAE()
    skip, refuse = dataset(), dataset(bad_files="refuse")
    (folder / "1.mp4").unlink()
    cache, notes = cache_latents(skip, vae, store)
    assert [e.name for e in cache.entries] == ["0.mp4[0:9]", "2.mp4[0:9]", "3.png"]
    assert [(n.name, n.action) for n in notes] == [("1.mp4[0:9]", "skipped")]
    with pytest.raises(DatasetError, match=r"1\.mp4 cannot be used"):
        cache_latents(refuse, vae, store)
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match=r"No sample of .* is left to train on; the first: 0\.mp4"):
        cache_latents(skip, vae, Store(tmp_path / "other"))


@pytest.mark.parametrize(
    ("latent_format", "told"), [("wan2.1", "wan2.1 latents are"), ("wan2.2", "wan2.2 latents are")]
)
def test_a_vae_of_the_wrong_family_is_refused(dataset, tmp_path, latent_format, told):
    other = "wan2.2" if latent_format == "wan2.1" else "wan2.1"
    vae = PoolVAE(other)
    vae.latent_format = latent_format
    with pytest.raises(ModelFileError, match=rf"The VAE does not fit: for 0\.mp4.*{told}"):
        cache_latents(dataset(), vae, Store(tmp_path / "cache"))
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_latents_that_are_not_finite_are_refused(dataset, tmp_path):
    vae = PoolVAE()
    vae.project.weight.data[0, 0] = float("nan")
    with pytest.raises(ModelFileError, match=r"not finite for 0\.mp4"):
        cache_latents(dataset(), vae, Store(tmp_path / "cache"))


def test_wan22_sizes_are_cut_to_multiples_of_32(folder, tmp_path, make):
    make.image(folder / "a.png", (80, 64))
    make.image(folder / "b.png", (16, 16))
    options = DatasetOptions(width=80, height=64, default_caption="x", upscale=False)
    cache, notes = cache_latents(scan_folder(folder, options), PoolVAE("wan2.2"), Store(tmp_path / "cache"))
    assert [e.shape for e in cache.entries] == [(48, 1, 4, 4)]
    assert str(notes[0]) == "a.png: cropped: 80x64 becomes 64x64: wan2.2 needs multiples of 32"
    assert notes[1].action == "skipped"
    assert "16x16 is smaller than 32 pixels" in notes[1].reason


def test_equal_files_share_their_latents(folder, tmp_path, make):
    make.image(folder / "a.png", (64, 64))
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes())
    dataset = scan_folder(folder, DatasetOptions(width=64, height=64, default_caption="x"))
    vae = PoolVAE()
    cache, _ = cache_latents(dataset, vae, Store(tmp_path / "cache"))
    assert vae.calls == 1
    assert len(cache.entries) == 2
    assert len({e.key for e in cache.entries}) == 1


def test_reading_ahead_changes_nothing(dataset, folder, tmp_path, make):
    """Latents bit for bit, entries, notes and progress, with a broken clip, a cut picture and equal files among them."""
    (folder / "4.png").write_bytes((folder / "3.png").read_bytes())
    (folder / "4.txt").write_text("twice")
    make.image(folder / "5.png", (48, 48))
    (folder / "5.txt").write_text("cut")
    broken = dataset(upscale=False)
    (folder / "1.mp4").unlink()
    vae, results = PoolVAE("wan2.2"), {}
    for ahead in (0, 1, 4):
        seen, store = [], Store(tmp_path / str(ahead))
        vae.calls = 0
        cache, notes = cache_latents(broken, vae, store, on_item=lambda *args, s=seen: s.append(args), ahead=ahead)
        keys = [path.stem for path in store.root.rglob("*.safetensors")]
        # Not the bytes: safetensors writes metadata in an order that changes from call to call.
        files = {key: (store.metadata("latents", key), store.load("latents", key)["latents"].tolist()) for key in keys}
        entries = [dataclasses.replace(entry, path="") for entry in cache.entries]
        results[ahead] = (entries, notes, seen, files, vae.calls)
    assert results[0] == results[1] == results[4]
    entries, notes, seen, files, calls = results[4]
    assert [note.action for note in notes] == ["skipped", "cropped"]
    assert len(entries) == len(seen) - 1 == 5
    assert len(files) == calls == 4


def test_samples_are_read_and_written_beside_the_encoder(dataset, tmp_path):
    names = {}

    class Watched(Store):
        def save(self, *args):
            names.setdefault("write", threading.current_thread().name)
            super().save(*args)

        def look(self, *args):
            names.setdefault("read", threading.current_thread().name)
            return super().look(*args)

    class Counting(PoolVAE):
        def encode(self, frames):
            names.setdefault("encode", threading.current_thread().name)
            return super().encode(frames)

    before = set(threading.enumerate())
    cache_latents(dataset(), Counting(), Watched(tmp_path / "cache"))
    assert names["encode"] == threading.current_thread().name
    assert names["read"].startswith("read-ahead")
    assert names["write"].startswith("write-behind")
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("ahead", [0, 4])
def test_a_full_disk_ends_it_and_nothing_is_half_written(dataset, small_disk, ahead):
    """Something else takes the room while the first sample is encoded."""

    class Greedy(PoolVAE):
        def encode(self, frames):
            (small_disk / "filler").write_bytes(bytes(1_020_000))
            return super().encode(frames)

    before = set(threading.enumerate())
    with pytest.raises(RunError, match=r"is full.*what was cached so far is kept"):
        cache_latents(dataset(), Greedy(), Store(small_disk / "cache"), ahead=ahead)
    assert set(threading.enumerate()) <= before
    assert all(
        path.suffix == ".safetensors" for path in small_disk.rglob("*") if path.is_file() and path.name != "filler"
    )


def test_latents_that_cannot_fit_are_refused_before_anything_is_encoded(dataset, small_disk):
    class Never(PoolVAE):
        def encode(self, _frames):
            raise AssertionError

    (small_disk / "filler").write_bytes(bytes(1_020_000))
    with pytest.raises(RunError, match=r"the latents of \d+ samples would take 0.041 MB, and 0.0\d+ MB are free"):
        cache_latents(dataset(), Never(), Store(small_disk / "cache"))


def test_latents_that_take_more_than_half_of_what_is_free_are_told(dataset, small_disk):
    (small_disk / "filler").write_bytes(bytes(2**20 - 72 * 2**10))
    store = Store(small_disk / "cache")
    _, notes = cache_latents(dataset(), PoolVAE(), store)
    assert any("more than half of it" in note.reason for note in notes)
    _, notes = cache_latents(dataset(), PoolVAE(), store)  # all is there
    assert not any("more than half of it" in note.reason for note in notes)


def test_captions_are_encoded_several_at_once(tmp_path):
    class Batches(CharEncoder):
        sizes = ()

        def encode_batch(self, captions):
            self.sizes = (*self.sizes, len(captions))
            return super().encode_batch(captions)

    text, seen = Batches(), []
    captions = [f"caption {number}" for number in range(20)]
    cache, _ = cache_text(captions, text, Store(tmp_path), on_item=lambda *args: seen.append(args))
    assert text.sizes == (CAPTIONS_AT_ONCE, 21 - CAPTIONS_AT_ONCE)
    assert [entry.caption for entry in cache.entries] == [*captions, ""]
    assert [done for done, _, _ in seen] == list(range(1, 22))
    assert {total for _, total, _ in seen} == {21}
    assert cache_text([*captions, "new"], text, Store(tmp_path))[0].entries[:20] == cache.entries[:20]
    assert text.sizes[2:] == (1,)


def test_captions_are_written_beside_the_encoding_of_the_next(tmp_path):
    next_ones = threading.Event()

    class Waiting(Store):
        def save(self, *args):
            assert next_ones.wait(60)
            super().save(*args)

    class Noting(CharEncoder):
        def encode_batch(self, captions):
            if "caption 19" in captions:
                next_ones.set()
            return super().encode_batch(captions)

    cache, _ = cache_text([f"caption {number}" for number in range(20)], Noting(), Waiting(tmp_path))
    assert all(Path(entry.path).exists() for entry in cache.entries)


def test_a_text_encoder_without_memory_is_told_in_a_sentence(tmp_path):
    class Full(CharEncoder):
        def encode_batch(self, captions):
            raise torch.OutOfMemoryError(f"CUDA out of memory for {captions}")

    with pytest.raises(RunError, match="text encoder ran out of memory: close other programs"):
        cache_text(["a"], Full(), Store(tmp_path))


def test_text_always_holds_the_empty_caption(tmp_path):
    store, text = Store(tmp_path), CharEncoder()
    seen = []
    cache, notes = cache_text(["b", "a", "b"], text, store, on_item=lambda *args: seen.append(args))
    assert notes == []
    assert [e.caption for e in cache.entries] == ["b", "a", ""]
    assert [e.num_tokens for e in cache.entries] == [2, 2, 1]
    assert (cache.dim, cache.encoder) == (8, "chars")
    assert seen == [(1, 3, '"b"'), (2, 3, '"a"'), (3, 3, '""')]
    entry = cache.by_caption["a"]
    context = store.load("text", entry.key)["context"]
    assert context.dtype == torch.float32
    assert torch.equal(context, text.encode("a")[0])
    assert [e.caption for e in cache_text([""], text, store)[0].entries] == [""]


def test_a_cut_caption_is_told_on_every_run(tmp_path):
    store, text = Store(tmp_path), CharEncoder()
    for _ in range(2):
        cache, notes = cache_text(["w" * 600, "w" * 511], text, store)
        assert [e.num_tokens for e in cache.entries] == [512, 512, 1]
        assert len(notes) == 1
        assert notes[0].action == "cropped"
        assert "longer than 512 tokens" in notes[0].reason
        assert len(notes[0].name) < 70
    assert len(text.seen) == 3


def test_text_of_the_wrong_shape_or_not_finite_is_refused(tmp_path):
    text = CharEncoder()
    text.dim = 9
    with pytest.raises(ModelFileError, match=r'for the caption "a" it gave the shape \(2, 8\) instead of'):
        cache_text(["a"], text, Store(tmp_path))
    text = CharEncoder()
    text.table.weight.data.fill_(float("inf"))
    with pytest.raises(ModelFileError, match="values that are not finite"):
        cache_text(["a"], text, Store(tmp_path))


def test_text_aborts_and_repairs(tmp_path):
    store, text = Store(tmp_path), CharEncoder()

    def stop(done, total, name):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache_text(["a", "b"], text, store, on_item=stop)
    cache, _ = cache_text(["a", "b"], text, store)
    assert text.seen == ["a", "b", ""]
    store.path("text", cache.entries[0].key).write_bytes(b"damaged")
    assert cache_text(["a", "b"], text, store)[0] == cache
    assert text.seen == ["a", "b", "", "a"]


def test_caches_are_independent_of_their_place(dataset, tmp_path):
    vae, text = PoolVAE(), CharEncoder()
    one = cache_latents(dataset(), vae, Store(tmp_path / "one"))[0]
    two = cache_latents(dataset(), vae, Store(tmp_path / "two"))[0]
    assert one != two
    assert one.digest == two.digest
    assert dataclasses.replace(one, entries=one.entries[:2]).digest != one.digest
    assert cache_text(["a"], text, Store(tmp_path / "one"))[0].digest == (
        cache_text(["a"], text, Store(tmp_path / "two"))[0].digest
    )


def test_a_later_start_reads_no_bodies_of_what_was_checked(dataset, tmp_path, monkeypatch):
    """Nothing but headers, of latents and of captions; and what has changed since is looked at again."""
    scanned, root = dataset(), tmp_path / "cache"
    first, _ = cache_latents(scanned, PoolVAE(), Store(root))
    cache_text(scanned.captions, CharEncoder(), Store(root))
    cache_latents(scanned, PoolVAE(), Store(root))  # each file is compared with its checksum once
    cache_text(scanned.captions, CharEncoder(), Store(root))
    bodies = []
    whole = Store._read
    monkeypatch.setattr(Store, "_read", lambda self, kind, key: bodies.append(key) or whole(self, kind, key))
    again, _ = cache_latents(scanned, PoolVAE(), Store(root))
    cache_text(scanned.captions, CharEncoder(), Store(root))
    assert again == first
    assert bodies == []
    path = Path(first.entries[0].path)
    path.write_bytes(path.read_bytes()[:-1])
    repaired, _ = cache_latents(scanned, PoolVAE(), Store(root))
    assert repaired == first
    assert bodies[:1] == [first.entries[0].key]
