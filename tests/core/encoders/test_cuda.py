"""Encoders on a GPU against the CPU, and what they do under a cap that its memory really runs out at."""

import gc
import re
from contextlib import contextmanager
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file, save_file
from wan_train.core.data.tiles import TILE, encode_in_tiles
from wan_train.core.encoders.text import load_text_encoder
from wan_train.core.encoders.vae import load_video_encoder
from wan_train.core.encoders.vision import SIDE, STD, load_vision_encoder, whole_as_square
from wan_train.tests.core.encoders.helpers import clip_vision

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def needs(*packages):
    """Skips before any fixture is made, which `importorskip` in one of them would not."""
    missing = [package for package in packages if find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


CUDA = torch.device("cuda:0")
NO_MEMORY = re.compile("CUDA out of memory|unable to find an engine")  # as torch says it, or cuDNN
TOLERANCE = 1e-4  # of the largest value, float32
BF16_TOLERANCE = 0.04  # as between the host's VAE and ours
LARGE = (1, 1024, 1536)  # frames, height, width: 24 times a tile's pixels
LONG = [f"{letter} " * 300 for letter in "abcdefgh"]  # cut to 512 tokens each: as many as go at once


@pytest.fixture(autouse=True)
def whole_fp32(monkeypatch):
    """TF32 is what cuDNN takes for convolutions unless told otherwise."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def empty_cache():
    gc.collect()
    torch.cuda.empty_cache()


def peak_of(act) -> int:
    """Bytes that torch reserves while `act` runs, beside what tensors held before. The second time: the first loads."""
    taken = []
    for _ in range(2):
        empty_cache()
        before = torch.cuda.memory_reserved(CUDA)
        torch.cuda.reset_peak_memory_stats(CUDA)
        act()
        taken.append(torch.cuda.max_memory_reserved(CUDA) - before)
    return taken[-1]


@contextmanager
def room_for(num_bytes):
    """No more than so much beside what tensors hold."""
    empty_cache()
    total = torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(CUDA) + num_bytes) / total, CUDA)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, CUDA)


def refusal(act) -> str:
    """What `act` says where there is no memory for it."""
    with pytest.raises(RuntimeError) as caught:
        act()
    return str(caught.value)


# VAE


@pytest.fixture
def vae_on_gpu(vae_path):
    return load_video_encoder(vae_path, CUDA, torch.float32)


@needs("diffusers")
@pytest.mark.parametrize("size", [(1, 32, 32), (5, 32, 48), (17, 16, 32)], ids=str)
def test_latents_are_the_cpus(vae_on_gpu, video, noise_clip, error, size):
    latents = vae_on_gpu.encode(noise_clip(*size))
    assert latents.device.type == "cpu"
    assert error(latents, video.encode(noise_clip(*size))) < TOLERANCE


@needs("diffusers")
@pytest.mark.parametrize("frames", [1, 3])
def test_frames_are_the_cpus(vae_on_gpu, video, frames):
    latents = torch.randn(16, frames, 4, 6, generator=torch.Generator().manual_seed(frames))
    found, expected = vae_on_gpu.decode(latents), video.decode(latents)
    assert found.device.type == "cpu"
    assert (found.int() - expected.int()).abs().max() <= 1  # the last digit


@needs("diffusers")
def test_its_own_choice_is_bf16_and_near(vae_path, video, noise_clip, error):
    encoder = load_video_encoder(vae_path, CUDA)
    native = torch.cuda.get_device_capability(CUDA)[0] >= 8
    assert (encoder.dtype == torch.bfloat16) == native
    assert encoder.identity != video.identity
    latents = video.encode(noise_clip(5, 32, 48))
    assert error(encoder.encode(noise_clip(5, 32, 48)), latents) < BF16_TOLERANCE
    difference = encoder.decode(latents).float() - video.decode(latents).float()
    assert difference.abs().mean() < 0.05 * video.decode(latents).float().std()


@needs("diffusers", "av")
def test_a_picture_too_large_for_memory_is_encoded_in_tiles(vae_on_gpu, noise_clip, error, tmp_path):
    """As the cache of latents does it, in a memory between what a tile and what the whole picture takes."""
    from wan_train.core.data.encode import cache_latents
    from wan_train.core.data.scan import scan_folder
    from wan_train.core.data.store import Store
    from wan_train.core.settings.dataset import DatasetOptions
    from wan_train.tools.shapes import draw_dataset

    _, height, width = LARGE
    draw_dataset(tmp_path / "data", clips=0, images=2, size=height, seed=0)
    options = DatasetOptions(width=width, height=height, aspect_buckets=False, trigger_word="shp")
    dataset = scan_folder(tmp_path / "data", options)
    whole, tile = (peak_of(lambda size=size: vae_on_gpu.encode(noise_clip(*size))) for size in (LARGE, (1, TILE, TILE)))
    assert whole > 4 * tile
    with room_for(2 * tile):
        assert NO_MEMORY.search(refusal(lambda: vae_on_gpu._model.encode(torch.zeros(1, 3, *LARGE, device=CUDA))))
        vae_on_gpu._free()
        cache, notes = cache_latents(dataset, vae_on_gpu, Store(tmp_path / "tight"))
    assert vae_on_gpu._model.device.type == "cuda"
    assert [note.action for note in notes] == ["note", "note"]
    assert "encoded in tiles of 256 pixels" in notes[0].reason
    free, others = cache_latents(dataset, vae_on_gpu, Store(tmp_path / "free"))
    assert others == []
    for entry, whole_entry in zip(cache.entries, free.entries, strict=True):
        assert entry.key != whole_entry.key
        latents = Store(tmp_path / "tight").load("latents", entry.key)["latents"]
        expected = Store(tmp_path / "free").load("latents", whole_entry.key)["latents"]
        assert latents.isfinite().all()
        assert 1e-4 < error(latents, expected) < 0.5  # a little, and more than rounding


@needs("diffusers")
def test_tiles_under_a_cap_are_those_without(vae_on_gpu, noise_clip, error):
    frames = noise_clip(*LARGE)
    expected = encode_in_tiles(vae_on_gpu.encode, frames, 8)
    with room_for(2 * peak_of(lambda: vae_on_gpu.encode(noise_clip(1, TILE, TILE)))):
        found = encode_in_tiles(vae_on_gpu.encode, frames, 8)
    assert vae_on_gpu._model.device.type == "cuda"
    assert error(found, expected) < TOLERANCE


@needs("diffusers")
def test_without_memory_for_a_tile_the_cpu_goes_on(vae_on_gpu, video, noise_clip, error, caplog):
    frames = noise_clip(1, 128, 128)
    with room_for(2**20):
        latents = vae_on_gpu.encode(frames)
    assert vae_on_gpu._model.device.type == "cpu"
    assert "goes on, slowly, on the CPU" in caplog.text
    assert error(latents, video.encode(frames)) < TOLERANCE


# Text


@pytest.fixture(scope="module")
def text_on_gpu(text_path):
    return load_text_encoder(text_path, CUDA)


CAPTIONS = ["a cat", "", "a red circle moves left", "x" * 600]


@needs("transformers", "sentencepiece")
def test_embeddings_are_the_cpus(text_on_gpu, text, error):
    for caption, (context, was_cut) in zip(CAPTIONS, text_on_gpu.encode_batch(CAPTIONS), strict=True):
        expected, expected_cut = text.encode(caption)
        assert context.device.type == "cpu"
        assert context.shape == expected.shape
        assert was_cut == expected_cut
        assert error(context, expected) < TOLERANCE


@needs("transformers", "sentencepiece")
def test_embeddings_in_bf16_are_near(text_path, text, error):
    encoder = load_text_encoder(text_path, CUDA, torch.bfloat16)
    for caption in CAPTIONS:
        assert error(encoder.encode(caption)[0], text.encode(caption)[0]) < 0.05


@needs("transformers", "sentencepiece")
def test_embeddings_of_an_fp8_file_are_the_cpus(text_path, tmp_path, error):
    state = load_file(text_path)
    stored = {
        name: tensor.to(torch.float8_e4m3fn) if tensor.is_floating_point() and tensor.ndim == 2 else tensor
        for name, tensor in state.items()
    }
    save_file(stored, tmp_path / "umt5_fp8.safetensors")
    here, there = (load_text_encoder(tmp_path / "umt5_fp8.safetensors", device) for device in ("cpu", CUDA))
    assert here.identity == there.identity
    for caption in CAPTIONS:
        assert error(there.encode(caption)[0], here.encode(caption)[0]) < TOLERANCE


@needs("transformers", "sentencepiece")
def test_captions_too_many_for_memory_are_encoded_a_few_at_a_time(text_on_gpu, text, error):
    together = peak_of(lambda: text_on_gpu.encode_batch(LONG))
    alone = peak_of(lambda: text_on_gpu.encode(LONG[0]))
    assert together > 2 * alone
    with room_for(int((together * alone) ** 0.5)):
        assert NO_MEMORY.search(
            refusal(lambda: text_on_gpu._encode([text_on_gpu.tokenize(caption)[0] for caption in LONG]))
        )
        results = text_on_gpu.encode_batch(LONG)
    for (context, _), caption in zip(results, LONG, strict=True):
        assert error(context, text.encode(caption)[0]) < TOLERANCE


# CLIP vision


@needs("transformers")
def test_features_are_the_cpus(tmp_path, error):
    path = tmp_path / "clip_vision_h.safetensors"
    save_file(clip_vision(), path)
    here, there = (load_vision_encoder(path, device) for device in ("cpu", CUDA))
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)
    features = there.encode(image)
    assert features.device.type == "cpu"
    assert error(features, here.encode(image)) < TOLERANCE
    # An image of another size is rounded to 8 bits after it is resized, where a device may come to the next number.
    image = torch.randint(0, 256, (48, 80, 3), dtype=torch.uint8, generator=generator)
    assert (whole_as_square(image.to(CUDA)).cpu() - whole_as_square(image)).abs().max() < 1.01 / 255 / min(STD)
