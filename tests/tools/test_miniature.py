"""The miniature files, loaded by the functions that ComfyUI's ordinary loaders call, and run."""

import pytest
import torch
from wan_train.tools import miniature
from wan_train.tools.miniature import DiTSize, TextSize
from wan_train.tools.shapes import Scene, draw_frame


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return {path.stem: path for path in miniature.write_family(tmp_path_factory.mktemp("models"))}


def load_dit(comfy, tensors, metadata):
    state = {key: tensor.clone() for key, tensor in tensors.items()}
    return comfy.sd.load_diffusion_model_state_dict(state, metadata=metadata).model


def load_text_encoder(comfy, path, size):
    vocabulary = comfy.utils.load_torch_file(str(path))["shared.weight"].shape[0]
    config = {**size.__dict__, "vocab_size": vocabulary}
    options = {"umt5xxl_model_config": config}
    return comfy.sd.load_clip([str(path)], clip_type=comfy.sd.CLIPType.WAN, model_options=options)


def test_files_are_small_and_the_same_each_time(family, tmp_path):
    assert sum(path.stat().st_size for path in family.values()) < 9e6
    for path in miniature.write_family(tmp_path):
        assert path.read_bytes() == family[path.stem].read_bytes()


def test_experts_differ(family):
    assert family["wan_mini_high_noise"].read_bytes() != family["wan_mini_low_noise"].read_bytes()


def test_expert_starts_as_the_best_linear_guess(comfy, family):
    model = comfy.sd.load_diffusion_model(str(family["wan_mini_low_noise"])).model
    assert type(model).__name__ == "WAN21"
    dit = model.diffusion_model
    assert (dit.dim, dit.num_heads, len(dit.blocks)) == (96, 2, 3)
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 1, 16, 3, 12, 12, generator=generator)
    context = torch.randn(1, 512, 64, generator=generator)
    for sigma in (0.05, 0.3, 0.5, 0.8, 1.0):
        noisy = (1 - sigma) * latents + sigma * noise
        with torch.no_grad():
            pred = dit(noisy, torch.tensor([sigma * 1000]), context)
        loss = (pred - (noise - latents)).square().mean().item()
        best = 1 / ((1 - sigma) ** 2 + sigma**2)
        assert best * 0.9 < loss < best * 1.25


@pytest.mark.parametrize(
    ("size", "image_to_video"),
    [
        (miniature.I2V_21, True),
        (miniature.I2V_22, False),
        (miniature.TI2V_5B, True),
        (DiTSize(text_dim=4096, dim=128, num_heads=1, num_layers=2), False),
    ],
    ids=["i2v21", "i2v22", "ti2v5b", "t2v-4096"],
)
def test_other_variants_load_and_run(comfy, size, image_to_video):
    metadata = None if size.text_dim == 4096 else miniature.dit_metadata(size)
    model = load_dit(comfy, miniature.wan_dit(size), metadata)
    dit = model.diffusion_model
    assert (dit.in_dim, dit.out_dim, dit.text_dim) == (size.in_dim, size.out_dim, size.text_dim)
    assert getattr(model, "image_to_video", False) == image_to_video
    further = {"clip_fea": torch.randn(1, 257, 1280)} if size.image_embedding else {}
    with torch.no_grad():
        pred = dit(
            torch.randn(1, size.in_dim, 2, 8, 8), torch.tensor([500.0]), torch.randn(1, 8, size.text_dim), **further
        )
    assert pred.shape == (1, size.out_dim, 2, 8, 8)
    assert 0.01 < pred.std().item() < 10


def test_vae_keeps_colours_and_normalised_latents(comfy, family):
    import comfy.latent_formats

    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(family["wan_mini_vae"])))
    scene = Scene("square", "red", "a pale blue", "to the right", 0.24, 0.0)
    pixels = torch.from_numpy(draw_frame(scene, 0.5, 64).copy()).float().div(255).repeat(9, 1, 1, 1)
    with torch.inference_mode():
        latents = vae.encode(pixels)
        decoded = vae.decode(latents)[0]
    assert latents.shape == (1, 16, 3, 8, 8)
    normalised = comfy.latent_formats.Wan21().process_in(latents)
    assert 0.5 < normalised.std().item() < 2
    assert decoded.shape == pixels.shape
    for place in ((4, 4), (32, 32)):  # the ground, the shape
        assert torch.allclose(decoded[:, place[0], place[1]], pixels[:, place[0], place[1]], atol=0.08)
    assert (pixels[0, 4, 4] - pixels[0, 32, 32]).abs().max() > 0.4


def test_narrow_vae_is_random_and_runs(comfy):
    vae = comfy.sd.VAE(sd=miniature.wan_vae(2))
    with torch.inference_mode():
        latents = vae.encode(torch.rand(5, 32, 32, 3))
        decoded = vae.decode(latents)
    assert latents.shape == (1, 16, 2, 4, 4)
    assert decoded.shape == (1, 5, 32, 32, 3)
    assert torch.isfinite(decoded).all()


def test_text_encoder_tells_captions_apart(comfy, family):
    clip = load_text_encoder(comfy, family["wan_mini_umt5"], TextSize())
    with torch.inference_mode():
        contexts = [
            clip.encode_from_tokens_scheduled(clip.tokenize(text, disable_weights=True))[0][0]
            for text in ("a red circle", "a blue star")
        ]
    assert contexts[0].shape == (1, 512, 64)
    num_tokens = [int((context.abs().sum(-1) > 0).sum()) for context in contexts]
    assert num_tokens == [14, 13]  # one a character, the first word's space, the end
    assert (contexts[0] - contexts[1]).abs().max() > 0.1


def test_tokenizer_knows_every_printable_character(comfy, family):
    clip = load_text_encoder(comfy, family["wan_mini_umt5"], TextSize())
    text = "".join(map(chr, range(33, 127)))
    tokens = [token for token, _ in clip.tokenize(text, disable_weights=True)["umt5xxl"][0]]
    assert 2 not in tokens[: len(text) + 2]  # 2 is the unknown token


def test_wide_text_encoder_fits_real_transformers(comfy, tmp_path):
    from safetensors.torch import save_file

    size = TextSize(d_model=4096, d_ff=32, d_kv=8, num_heads=2)
    path = tmp_path / "umt5.safetensors"
    save_file(miniature.umt5(size), path)
    clip = load_text_encoder(comfy, path, size)
    with torch.inference_mode():
        context = clip.encode_from_tokens_scheduled(clip.tokenize("a", disable_weights=True))[0][0]
    assert context.shape == (1, 512, 4096)
    assert torch.isfinite(context).all()
