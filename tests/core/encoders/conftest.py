"""The miniature VAE and umT5 encoder on disk, and both loaded by the real host and without it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from wan_train.core.encoders.text import load_text_encoder
from wan_train.core.encoders.vae import load_video_encoder
from wan_train.tools.miniature import umt5, wan_vae


@pytest.fixture(scope="session")
def host_side(comfy):
    """nodes/host, on the host in this process."""
    from wan_train.nodes import host

    return host


@pytest.fixture(scope="session")
def vae_path(tmp_path_factory) -> Path:
    """A random VAE: widths below 8 keep no colours, so every weight has a part in the result."""
    path = tmp_path_factory.mktemp("vae") / "wan_2.1_vae.safetensors"
    save_file(wan_vae(6), path)
    return path


@pytest.fixture(scope="session")
def text_path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "umt5_xxl_fp16.safetensors"
    save_file({name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in umt5().items()}, path)
    return path


@pytest.fixture(scope="session")
def host_vae(comfy):
    """File to the host's VAE."""
    import comfy.utils

    return lambda path, **options: comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(path), safe_load=True), **options)


@pytest.fixture(scope="session")
def host_clip(comfy, host_side):
    """File to the host's CLIP, of any size."""
    import comfy.utils

    def load(path):
        sizes = host_side.umt5_config(comfy.utils.load_torch_file(str(path), safe_load=True), path.name)
        return comfy.sd.load_clip(
            [str(path)], clip_type=comfy.sd.CLIPType.WAN, model_options={"umt5xxl_model_config": sizes}
        )

    return load


@pytest.fixture(scope="session")
def video(vae_path):
    return load_video_encoder(vae_path, "cpu")


@pytest.fixture(scope="session")
def text(text_path):
    return load_text_encoder(text_path, "cpu")


@pytest.fixture(scope="session")
def host_video(host_side, host_vae, vae_path):
    return host_side.HostVideoEncoder(host_vae(vae_path))


@pytest.fixture(scope="session")
def host_text(host_side, host_clip, text_path):
    return host_side.HostTextEncoder(host_clip(text_path))


@pytest.fixture(scope="session")
def error():
    """The largest difference, as a part of the largest value."""
    return lambda result, reference: ((result - reference).abs().max() / reference.abs().max()).item()


@pytest.fixture(scope="session")
def noise_clip():
    """[F, H, W, 3] uint8 noise."""

    def make(frames: int, height: int, width: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(frames * height * width)
        return torch.randint(0, 256, (frames, height, width, 3), dtype=torch.uint8, generator=generator)

    return make
