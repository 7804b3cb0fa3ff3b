"""The VAE without the host against the host's, on the same files."""

import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from wan_train.core.data.latents import normalise_latents
from wan_train.core.encoders.identity import video_identity
from wan_train.core.encoders.light_import import wan_vae_class
from wan_train.core.encoders.vae import default_dtype, denormalise_latents, load_video_encoder, official_name
from wan_train.core.errors import ConfigError, DatasetError, ModelFileError
from wan_train.tools.miniature import wan_dit

TOLERANCE = 1e-5  # of the largest value, float32 on the CPU; ten times what was measured
BF16_TOLERANCE = 0.04  # each of the two is 1 % from float32, and 1.2 % from the other
CLIPS = [(1, 16, 16), (5, 32, 48), (9, 32, 16), (17, 16, 32), (7, 16, 16)]
CLIPS_22 = [(1, 32, 32), (5, 64, 32), (9, 32, 64)]
SMALL_22 = {
    "z_dim": 48,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
}


@pytest.fixture(scope="module")
def host_22(comfy):
    """The host's Wan 2.2 VAE in a small size, with random weights."""
    from comfy.ldm.wan.vae2_2 import WanVAE

    model = WanVAE(dim=8, dec_dim=12, **SMALL_22)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 3 and not name.endswith("gamma") else 1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.2 if fan_in == 1 else fan_in**-0.5))
            if name.endswith("gamma"):
                parameter.add_(1.0)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def video_22(host_22, tmp_path_factory):
    path = tmp_path_factory.mktemp("vae22") / "wan2.2_vae.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in host_22.state_dict().items()}, path)
    return load_video_encoder(path, "cpu")


@pytest.mark.parametrize("size", CLIPS, ids=str)
def test_latents_are_the_hosts(video, host_video, noise_clip, error, size):
    frames = noise_clip(*size)
    latents = video.encode(frames)
    assert latents.shape == (16, (size[0] - 1) // 4 + 1, size[1] // 8, size[2] // 8)
    assert latents.dtype == torch.float32
    assert error(latents, host_video.encode(frames)) < TOLERANCE


@pytest.mark.parametrize("shape", [(16, 1, 2, 2), (16, 2, 2, 6), (16, 3, 4, 2), (16, 5, 2, 2)], ids=str)
def test_frames_are_the_hosts(video, host_vae, vae_path, shape):
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(shape[1]))
    frames = video.decode(latents)
    expected = host_vae(vae_path).decode(denormalise_latents(latents, "wan2.1")[None])[0] * 255.0
    assert frames.shape == (4 * shape[1] - 3, shape[2] * 8, shape[3] * 8, 3)
    assert frames.dtype == torch.uint8
    assert (frames - expected).abs().max() < 0.5 + 1e-3
    assert expected.std() > 20


def test_a_batch_is_decoded_clip_by_clip(video):
    latents = torch.randn(2, 16, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    frames = video.decode(latents)
    assert torch.equal(frames, torch.stack([video.decode(latents[0]), video.decode(latents[1])]))
    assert not torch.equal(frames[0], frames[1])


def test_the_same_clip_twice_gives_the_same_latents(video, noise_clip):
    first = video.encode(noise_clip(5, 16, 16))
    video.encode(noise_clip(9, 32, 16))  # the model keeps frames between chunks: none may stay
    assert torch.equal(video.encode(noise_clip(5, 16, 16)), first)


@pytest.mark.parametrize("size", CLIPS_22, ids=str)
def test_latents_of_wan_22_are_the_hosts(video_22, host_22, noise_clip, error, size):
    frames = noise_clip(*size)
    pixels = frames.float() / 255 * 2 - 1
    mean = host_22.encode(pixels.permute(3, 0, 1, 2)[None])[0]
    latents = video_22.encode(frames)
    assert latents.shape == (48, (size[0] - 1) // 4 + 1, size[1] // 16, size[2] // 16)
    assert error(latents, normalise_latents(mean, "wan2.2")) < TOLERANCE


@pytest.mark.parametrize("shape", [(48, 1, 2, 2), (48, 2, 1, 2)], ids=str)
def test_frames_of_wan_22_are_the_hosts(video_22, host_22, shape):
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(shape[1]))
    decoded = host_22.decode(denormalise_latents(latents, "wan2.2")[None])[0]
    expected = ((decoded + 1) * 127.5).clamp(0, 255).permute(1, 2, 3, 0)
    assert (video_22.decode(latents) - expected).abs().max() < 0.5 + 1e-3
    assert expected.std() > 20


def test_the_digest_of_wan_22_is_the_hosts(video_22, host_22):
    assert video_22.latent_format == "wan2.2"
    assert video_22.identity == video_identity(host_22.state_dict(), "wan2.2", torch.float32)


@pytest.mark.parametrize("latent_format", ["wan2.1", "wan2.2"])
def test_names_and_shapes_are_those_of_the_real_files(comfy, latent_format):
    from comfy.ldm.wan import vae, vae2_2
    from diffusers import AutoencoderKLWan
    from wan_train.core.encoders.vae import _ARCHITECTURES

    widths = {"wan2.1": (96, 96), "wan2.2": (160, 256)}[latent_format]
    with torch.device("meta"):
        if latent_format == "wan2.1":
            official = vae.WanVAE(dim=96, **{**SMALL_22, "z_dim": 16})
        else:
            official = vae2_2.WanVAE(dim=160, dec_dim=256, **SMALL_22)
        ours = AutoencoderKLWan(
            base_dim=widths[0], decoder_base_dim=widths[1], temperal_downsample=[False, True, True],
            **_ARCHITECTURES[latent_format],
        )  # fmt: skip
    expected = {name: tensor.shape for name, tensor in official.state_dict().items()}
    assert {official_name(name, latent_format): t.shape for name, t in ours.state_dict().items()} == expected


def test_bf16_is_as_near_to_the_hosts_as_to_float32(host_side, host_vae, vae_path, video, noise_clip, error):
    theirs = host_side.HostVideoEncoder(host_vae(vae_path, dtype=torch.bfloat16))
    ours = load_video_encoder(vae_path, "cpu", torch.bfloat16)
    frames = noise_clip(5, 16, 32)
    assert ours.dtype == torch.bfloat16
    assert ours.identity == theirs.identity != video.identity
    assert error(ours.encode(frames), theirs.encode(frames)) < BF16_TOLERANCE
    assert 1e-3 < error(ours.encode(frames), video.encode(frames)) < BF16_TOLERANCE


def test_the_dtype_is_the_hosts_choice(host_vae, vae_path, video):
    assert video.dtype == default_dtype(torch.device("cpu")) == host_vae(vae_path).vae_dtype


@pytest.mark.parametrize("latent_format", ["wan2.1", "wan2.2"])
def test_normalisation_is_undone(latent_format):
    latents = torch.randn({"wan2.1": 16, "wan2.2": 48}[latent_format], 2, 3, 4)
    back = denormalise_latents(normalise_latents(latents, latent_format), latent_format)
    assert torch.allclose(back, latents, atol=1e-6)


def test_diffusers_folder_gives_the_same(video, video_22, tmp_path, noise_clip):
    frames = noise_clip(1, 32, 32)
    for name, encoder in (("pipeline", video), ("pipeline_22", video_22)):
        encoder._model.save_pretrained(tmp_path / name / "vae")
        part, whole = load_video_encoder(tmp_path / name / "vae", "cpu"), load_video_encoder(tmp_path / name, "cpu")
        assert part.identity == whole.identity == encoder.identity
        assert torch.equal(part.encode(frames), encoder.encode(frames))


@pytest.mark.parametrize("is_zip", [True, False])
def test_the_official_pth_gives_the_same(video, vae_path, tmp_path, noise_clip, is_zip):
    path = tmp_path / "Wan2.1_VAE.pth"
    torch.save(load_file(vae_path), path, _use_new_zipfile_serialization=is_zip)
    loaded = load_video_encoder(path, "cpu")
    assert loaded.identity == video.identity
    assert torch.equal(loaded.encode(noise_clip(5, 16, 16)), video.encode(noise_clip(5, 16, 16)))


def test_another_weight_is_another_identity(video, vae_path, tmp_path):
    tensors = load_file(vae_path)
    tensors["decoder.head.2.bias"][1] += 0.01
    save_file(tensors, tmp_path / "vae.safetensors")
    assert load_video_encoder(tmp_path / "vae.safetensors", "cpu").identity != video.identity


def test_sides_that_do_not_fit_are_refused(video, noise_clip):
    with pytest.raises(DatasetError, match=r"20x16.*multiples of 8"):
        video.encode(noise_clip(1, 16, 20))


def test_other_files_are_refused_by_name(text_path, tmp_path):
    save_file(wan_dit(), tmp_path / "dit.safetensors")
    with pytest.raises(ModelFileError, match=r"is a Wan text-to-video model; a Wan VAE is needed: wan_2\.1_vae"):
        load_video_encoder(tmp_path / "dit.safetensors", "cpu")
    with pytest.raises(ModelFileError, match="is a umT5 text encoder; a Wan VAE is needed"):
        load_video_encoder(text_path, "cpu")
    with pytest.raises(ModelFileError, match="does not exist"):
        load_video_encoder(tmp_path / "absent.safetensors", "cpu")


@pytest.mark.parametrize("name", ["encoder.conv1.weight", "decoder.upsamples.14.residual.6.bias"])
def test_an_incomplete_file_is_refused(vae_path, tmp_path, name):
    tensors = load_file(vae_path)
    del tensors[name]
    save_file(tensors, tmp_path / "vae.safetensors")
    with pytest.raises(ModelFileError, match=f"incomplete: .*'{name}'"):
        load_video_encoder(tmp_path / "vae.safetensors", "cpu")


def test_wrong_shapes_and_integers_are_refused(vae_path, tmp_path):
    tensors = load_file(vae_path)
    save_file({**tensors, "conv2.bias": torch.zeros(17)}, tmp_path / "shape.safetensors")
    with pytest.raises(ModelFileError, match=r"'conv2.bias' has the shape \[17\], but \[16\]"):
        load_video_encoder(tmp_path / "shape.safetensors", "cpu")
    save_file({**tensors, "conv2.bias": torch.zeros(16, dtype=torch.int8)}, tmp_path / "int.safetensors")
    with pytest.raises(ModelFileError, match=r"'conv2.bias' is stored as torch.int8"):
        load_video_encoder(tmp_path / "int.safetensors", "cpu")


def test_a_dtype_that_cannot_compute_is_refused(vae_path):
    with pytest.raises(ConfigError, match="float8_e4m3fn; use float32"):
        load_video_encoder(vae_path, "cpu", torch.float8_e4m3fn)


def test_a_missing_package_is_named(vae_path, monkeypatch):
    wan_vae_class.cache_clear()  # as in a process that has not imported it yet
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ConfigError, match=r"diffusers is missing or too old: .*wan-train\[headless\]"):
        load_video_encoder(vae_path, "cpu")
