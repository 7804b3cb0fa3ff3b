import dataclasses

import pytest
import torch
from safetensors.torch import save_file
from wan_train.core.data.conditioning import hide_unknown, known_frames, known_mask
from wan_train.core.data.encode import cache_latents
from wan_train.core.data.latents import normalise_latents
from wan_train.core.data.scan import scan_folder
from wan_train.core.data.store import Store
from wan_train.core.errors import ConfigError, DatasetError, ModelFileError
from wan_train.core.settings.dataset import CONDITIONINGS, DatasetOptions
from wan_train.tests.core.data.test_encode import PoolVAE
from wan_train.tools.mini_vae import wan_vae
from wan_train.tools.miniature import I2V_22, dit_metadata, wan_dit

NODES = {"first frame": "WanImageToVideo", "first and last frame": "WanFirstLastFrameToVideo"}


class FrameVision:
    """Features that tell the frame: its mean level, in 257 tokens of width 1280."""

    def __init__(self, identity="vision", tokens=257):
        self.identity, self.calls, self.tokens = identity, 0, tokens

    def encode(self, image):
        self.calls += 1
        return torch.full((self.tokens, 1280), image.float().mean().item())


@pytest.fixture
def dataset(folder, make):
    for name, num_frames in (("a", 9), ("b", 13)):
        make.clip(folder / f"{name}.mp4", num_frames, size=(64, 64))
        (folder / f"{name}.txt").write_text(name)
    return scan_folder(folder, DatasetOptions(width=64, height=64, num_frames=9))


def test_unknown_frames_become_the_zero_of_the_vae():
    frames = torch.randint(0, 256, (9, 4, 6, 3), dtype=torch.uint8)
    assert torch.equal(hide_unknown(frames, "none"), torch.full(frames.shape, 0.5))
    first = hide_unknown(frames, "first frame")
    assert torch.equal(first[0], frames[0].float() / 255)
    assert (first[1:] == 0.5).all()
    both = hide_unknown(frames, "first and last frame")
    assert torch.equal(both[[0, -1]], frames[[0, -1]].float() / 255)
    assert (both[1:-1] == 0.5).all()


def test_the_mask_marks_pixel_frames():
    """Channel c of latent frame j > 0 speaks of pixel frame 4 (j - 1) + 1 + c; the first latent frame of frame 0."""
    assert not known_mask("none", (3, 2, 2)).any()
    first = known_mask("first frame", (3, 2, 2))
    assert first.shape == (4, 3, 2, 2)
    assert (first[:, 0] == 1).all()
    assert not first[:, 1:].any()
    both = known_mask("first and last frame", (3, 2, 2))
    assert (both[:, 0] == 1).all()
    assert (both[3, 2] == 1).all()
    assert both.sum() == (4 + 1) * 4


def test_an_unknown_conditioning_is_named():
    with pytest.raises(ConfigError, match=r"'last frame'.*'first and last frame'"):
        known_frames("last frame")  # type: ignore[arg-type]


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_the_known_frames_are_encoded_beside_the_clip(dataset, tmp_path, conditioning):
    store, vae = Store(tmp_path / "cache"), PoolVAE()
    cache, notes = cache_latents(dataset, vae, store, conditioning=conditioning)
    assert notes == []
    assert cache.conditioning == conditioning
    assert vae.calls == (2 if conditioning == "none" else 4)
    for entry in cache.entries:
        assert bool(entry.known_key) == (conditioning != "none")
        if entry.known_key:
            assert str(store.path("latents", entry.known_key)) == entry.known_path
            known = store.load("latents", entry.known_key)["latents"]
            latents = store.load("latents", entry.key)["latents"]
            assert tuple(known.shape) == entry.shape
            assert torch.equal(known[:, 0], latents[:, 0])
            assert not torch.equal(known[:, 1], latents[:, 1])
    again, _ = cache_latents(dataset, vae, store, conditioning=conditioning)
    assert again == cache
    assert vae.calls == (2 if conditioning == "none" else 4)


def test_each_conditioning_has_its_own_key_and_shares_the_clips_latents(dataset, tmp_path):
    store, vae = Store(tmp_path / "cache"), PoolVAE()
    caches = [cache_latents(dataset, vae, store, conditioning=c)[0] for c in CONDITIONINGS]
    assert vae.calls == 2 + 2 + 2
    assert len({cache.digest for cache in caches}) == 3
    assert len({cache.entries[0].key for cache in caches}) == 1
    assert len({cache.entries[0].known_key for cache in caches}) == 3


@pytest.mark.parametrize(("conditioning", "images"), [("first frame", 1), ("first and last frame", 2)])
def test_clip_vision_features_of_the_known_frames_are_kept(dataset, tmp_path, make, conditioning, images):
    store, vision = Store(tmp_path / "cache"), FrameVision()
    cache, _ = cache_latents(dataset, PoolVAE(), store, conditioning=conditioning, vision=vision)
    assert vision.calls == 2 * images
    features = store.load("vision", cache.entries[0].vision_key)["features"]
    assert features.shape == (257 * images, 1280)
    assert features[0, 0] == pytest.approx(make.level(0), abs=2)
    if images == 2:
        assert features[-1, 0] == pytest.approx(make.level(8), abs=2)
    cache_latents(dataset, PoolVAE(), store, conditioning=conditioning, vision=vision)
    assert vision.calls == 2 * images
    other, _ = cache_latents(dataset, PoolVAE(), store, conditioning=conditioning, vision=FrameVision("other"))
    assert other.entries[0].vision_key != cache.entries[0].vision_key


def test_vision_without_known_frames_and_wrong_features_are_refused(dataset, tmp_path):
    store = Store(tmp_path / "cache")
    with pytest.raises(ConfigError, match="condition_on is 'none'"):
        cache_latents(dataset, PoolVAE(), store, vision=FrameVision())
    with pytest.raises(ModelFileError, match=r"\(50, 1280\).*\(257, 1280\).*clip_vision_h"):
        cache_latents(dataset, PoolVAE(), store, conditioning="first frame", vision=FrameVision(tokens=50))


def test_pictures_are_left_out_and_a_set_of_pictures_is_refused(dataset, folder, tmp_path, make):
    make.image(folder / "c.png", (64, 64))
    (folder / "c.txt").write_text("c")
    mixed = scan_folder(folder, dataset.options)
    store = Store(tmp_path / "cache")
    cache, notes = cache_latents(mixed, PoolVAE(), store, conditioning="first frame")
    assert [entry.name for entry in cache.entries] == ["a.mp4[0:9]", "b.mp4[0:9]"]
    assert [(note.name, note.action) for note in notes] == [("c.png", "skipped")]
    assert "image-to-video model learns from clips only" in notes[0].reason
    pictures = dataclasses.replace(mixed, samples=tuple(s for s in mixed.samples if s.file.kind == "image"))
    with pytest.raises(DatasetError, match=r"No sample .* c\.png.*image-to-video"):
        cache_latents(pictures, PoolVAE(), store, conditioning="first frame")


@pytest.mark.parametrize("conditioning", NODES)
def test_conditioning_is_what_the_hosts_own_node_gives_its_model(comfy, tmp_path, conditioning):
    """VAE, node and the model's own concat against ours: mask and image latents, all 20 channels."""
    import comfy_extras.nodes_wan

    save_file(wan_vae(8), tmp_path / "vae.safetensors")
    save_file(wan_dit(I2V_22), tmp_path / "dit.safetensors", metadata=dit_metadata(I2V_22))
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(tmp_path / "vae.safetensors")))
    model = comfy.sd.load_diffusion_model(str(tmp_path / "dit.safetensors")).model
    frames = torch.randint(0, 256, (9, 32, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    images = {"start_image": frames[:1].float() / 255}
    if conditioning == "first and last frame":
        images["end_image"] = frames[-1:].float() / 255
    node = getattr(comfy_extras.nodes_wan, NODES[conditioning])
    positive = node.execute([[torch.zeros(1, 4, 64), {}]], [[torch.zeros(1, 4, 64), {}]], vae, 48, 32, 9, 1, **images)
    values = positive.result[0][0][1]
    noise = torch.zeros(1, 16, 3, 4, 6)
    concat = {name: values[name] for name in ("concat_latent_image", "concat_mask")}
    theirs = model.concat_cond(noise=noise, device=torch.device("cpu"), **concat)[0]  # [20, f, h, w]

    latents = normalise_latents(vae.encode(hide_unknown(frames, conditioning))[0].float(), "wan2.1")
    ours = torch.cat([known_mask(conditioning, (3, 4, 6)), latents])
    torch.testing.assert_close(ours, theirs.float(), atol=1e-5, rtol=1e-5)
    assert theirs[:4].sum() > 0
