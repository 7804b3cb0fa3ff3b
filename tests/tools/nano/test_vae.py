import pytest
import torch
from safetensors.torch import save_file
from wan_train.tools.mini_vae import LATENT_MEAN, LATENT_STD, wan_vae
from wan_train.tools.nano.vae import WanVAE, load_vae, to_frames, to_video


@pytest.fixture
def vae():
    """A VAE in which every layer counts."""
    torch.manual_seed(0)
    vae = WanVAE(8)
    for parameter in vae.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return vae.requires_grad_(False)


def relative(result, expected):
    return ((result - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("num_frames", [1, 5, 9, 17])
def test_whole_clips_give_what_comfyui_gives_chunk_by_chunk(comfy, vae, num_frames):
    from comfy.ldm.wan.vae import WanVAE as HostVAE

    host = HostVAE(dim=8, z_dim=16, temperal_downsample=[False, True, True])
    host.load_state_dict(vae.state_dict())
    video = torch.rand(2, 3, num_frames, 32, 48) * 2 - 1
    with torch.no_grad():
        latents = host.encode(video)
        assert relative(vae.posterior(video)[0], latents) < 1e-5
        assert relative(vae.reconstruct(latents), host.decode(latents)) < 1e-5


def test_normalised_latents_are_those_that_every_wan_model_sees(vae):
    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    mean, std = (torch.tensor(x).view(1, -1, 1, 1, 1) for x in (LATENT_MEAN, LATENT_STD))
    raw = vae.posterior(video)[0]
    assert torch.allclose(vae.encode(video), (raw - mean) / std, atol=1e-6)
    assert torch.allclose(vae.decode((raw - mean) / std), vae.reconstruct(raw).clamp(-1, 1), atol=1e-5)


def test_rescaling_the_latents_keeps_reconstructions(vae):
    video = torch.rand(4, 3, 9, 16, 16) * 2 - 1
    raw, log_var = vae.posterior(video)
    before = vae.reconstruct(raw)
    vae.normalise(raw.mean((0, 2, 3, 4)), raw.std((0, 2, 3, 4)))
    scaled, scaled_log_var = vae.posterior(video)
    assert relative(vae.reconstruct(scaled), before) < 1e-4
    latents = vae.encode(video)
    assert torch.allclose(latents.mean((0, 2, 3, 4)), torch.zeros(16), atol=1e-3)
    assert torch.allclose(latents.std((0, 2, 3, 4)), torch.ones(16), atol=1e-3)
    noise = (0.5 * (scaled_log_var - log_var)).exp()  # the posterior's width is scaled with its mean
    assert torch.allclose(noise.mean((0, 2, 3, 4)), scaled.std((0, 2, 3, 4)) / raw.std((0, 2, 3, 4)), rtol=1e-3)


def test_a_file_is_read_whatever_its_width(tmp_path):
    tensors = wan_vae(9)
    save_file({name: tensor.half() for name, tensor in tensors.items()}, tmp_path / "vae.safetensors")
    loaded = load_vae(tmp_path / "vae.safetensors").state_dict()
    assert all(torch.equal(loaded[name], tensor.half().float()) for name, tensor in tensors.items())


def test_frames_and_video_are_inverse():
    frames = torch.randint(0, 256, (2, 3, 4, 5, 3), dtype=torch.uint8)
    video = to_video(frames)
    assert video.shape == (2, 3, 3, 4, 5)
    assert video.min() >= -1
    assert video.max() <= 1
    assert torch.equal(to_frames(video), frames)
