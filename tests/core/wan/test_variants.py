"""Every variant against the host's own model classes: files, sizes, and what its samplers give the model."""

import pytest
import torch
from safetensors.torch import save_file
from wan_train.core.errors import ModelFileError
from wan_train.core.wan.checkpoint import inspect
from wan_train.core.wan.config import WanConfig
from wan_train.core.wan.detect import detect_config
from wan_train.core.wan.identify import identify
from wan_train.core.wan.loading import load_transformer
from wan_train.core.wan.model import WanTransformer
from wan_train.tools import miniature

MINIATURES = {
    "t2v": miniature.T2V,
    "i2v_clip": miniature.I2V_21,
    "flf2v": miniature.FLF2V_21,
    "i2v": miniature.I2V_22,
    "ti2v": miniature.TI2V_5B,
}

SIZE_1_3B = {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30}
SIZE_5B = {"dim": 3072, "ffn_dim": 14336, "num_heads": 24, "num_layers": 30}
PUBLISHED = {
    "Wan 2.1 T2V 1.3B": WanConfig(**SIZE_1_3B),
    "Wan 2.1 T2V 14B, Wan 2.2 T2V-A14B": WanConfig(),
    "Wan 2.1 I2V 14B": WanConfig(variant="i2v", in_dim=36, image_dim=1280),
    "Wan 2.1 Fun-InP 1.3B": WanConfig(variant="i2v", in_dim=36, image_dim=1280, **SIZE_1_3B),
    "Wan 2.1 FLF2V 14B": WanConfig(variant="flf2v", in_dim=36, image_dim=1280, image_positions=514),
    "Wan 2.2 I2V-A14B": WanConfig(variant="i2v", in_dim=36),
    "Wan 2.2 TI2V-5B": WanConfig(variant="ti2v", in_dim=48, out_dim=48, **SIZE_5B),
}


@pytest.fixture
def file(request, tmp_path):
    size = MINIATURES[request.param]
    path = tmp_path / "wan.safetensors"
    save_file(miniature.wan_dit(size, seed=5), path, metadata=miniature.dit_metadata(size))
    return path


def conditions(host, latents, config):
    """What the host's nodes hand its sampler, processed by the host's own model class; and the same in our terms.

    The first frame is given. Of what `apply_model` takes: c_concat, clip_fea, denoise_mask.
    """
    _, _, frames, height, width = latents.shape
    theirs, ours = {}, {}
    if config.conditioning_dim:
        image = torch.randn(1, 16, frames, height, width)
        mask = (torch.arange(frames) > 0).float().view(1, 1, frames, 1, 1).expand(1, 4, frames, height, width)
        options = {"noise": latents, "device": latents.device, "concat_latent_image": image, "concat_mask": mask}
        theirs["c_concat"] = ours["conditioning"] = host.concat_cond(**options)
    if config.image_dim is not None:
        theirs["clip_fea"] = ours["clip_features"] = torch.randn(1, config.image_positions or 257, 1280)
    if config.variant == "ti2v":
        theirs["denoise_mask"] = (torch.arange(frames) > 0).float().view(1, 1, frames, 1, 1).expand_as(latents)
    return theirs, ours


@pytest.mark.parametrize(("file", "variant"), [(name, name) for name in MINIATURES], indirect=["file"])
def test_velocity_is_the_one_that_the_hosts_sampler_gets(comfy, file, variant):
    """The file through the host's ordinary loader and `apply_model`, which gives the denoised latents."""
    info = inspect(file)
    size = MINIATURES[variant]
    assert (info.config.in_dim, info.config.out_dim, info.config.num_heads) == (size.in_dim, size.out_dim, 2)
    assert info.config.variant == variant.removesuffix("_clip")
    host = comfy.sd.load_diffusion_model(str(file), model_options={"dtype": torch.float32}).model
    assert type(host).__name__ == ("WAN22" if variant == "ti2v" else "WAN21")

    torch.manual_seed(0)
    latents = torch.randn(1, size.out_dim, 3, 6, 10)
    context = torch.randn(1, 512, size.text_dim)
    theirs, ours = conditions(host, latents, info.config)
    sigma = torch.tensor([0.5])
    timesteps = 1000 * sigma
    if variant == "ti2v":
        timesteps = torch.tensor([[0.0, 500.0, 500.0]])
    with torch.no_grad():
        denoised = host.apply_model(latents, sigma, c_crossattn=context, **theirs)
        velocity = load_transformer(info, dtype=torch.float32, device="cpu")(latents, timesteps, context, **ours)
    expected = (latents - denoised) / sigma
    assert (velocity - expected).abs().max() / expected.abs().max() < 1e-5


@pytest.mark.parametrize("file", ["i2v"], indirect=True)
def test_conditioning_of_the_host_is_mask_then_normalised_image(comfy, file):
    import comfy.latent_formats

    host = comfy.sd.load_diffusion_model(str(file), model_options={"dtype": torch.float32}).model
    image = torch.randn(1, 16, 3, 6, 10)
    mask = torch.ones(1, 4, 3, 6, 10)
    mask[:, :, 0] = 0  # in the host's masks, 0 is what is given
    made = host.concat_cond(
        noise=torch.randn(1, 16, 3, 6, 10), device=torch.device("cpu"), concat_latent_image=image, concat_mask=mask
    )
    normalised = comfy.latent_formats.Wan21().process_in(image)
    assert torch.equal(made, torch.cat([1 - mask, normalised], dim=1))


def host_shapes(comfy, config):
    """Names and shapes of the weights of the host's model of this size, without the weights."""
    import comfy.ldm.wan.model
    import comfy.ops

    model = comfy.ldm.wan.model.WanModel(
        model_type="t2v" if config.image_dim is None else "i2v",
        flf_pos_embed_token_number=config.image_positions,
        in_dim=config.in_dim,
        out_dim=config.out_dim,
        dim=config.dim,
        ffn_dim=config.ffn_dim,
        num_heads=config.num_heads,
        num_layers=config.num_layers,
        device="meta",
        operations=comfy.ops.disable_weight_init,
    )
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_are_read_off_the_shapes(comfy, tmp_path, name):
    config = PUBLISHED[name]
    shapes = host_shapes(comfy, config)
    kind = identify(shapes)
    assert kind.variant == config.variant
    assert detect_config(tmp_path, shapes, kind.variant, {}) == config
    with torch.device("meta"):
        ours = WanTransformer(config).state_dict()
    assert {key: tuple(value.shape) for key, value in ours.items()} == shapes


REFUSED = [
    ("VaceWanModel", "model", {"vace_layers": 2, "vace_in_dim": 96}, "wan_vace"),
    ("CameraWanModel", "model", {"in_dim": 32}, "wan_camera"),
    ("CameraWanModel", "model", {"in_dim": 36, "model_type": "camera_2.2"}, "wan_camera"),
    ("WanModel_S2V", "model", {"audio_inject_layers": [0]}, "wan_s2v"),
    ("HumoWanModel", "model", {"in_dim": 36}, "wan_humo"),
    ("AnimateWanModel", "model_animate", {"in_dim": 36, "num_layers": 5}, "wan_animate"),
    ("SCAILWanModel", "model", {}, "wan_pose"),
    ("SCAIL2WanModel", "model", {}, "wan_pose"),
    ("WanDancerModel", "model_wandancer", {"in_dim": 36}, "wan_pose"),
    ("WanModel", "model", {"in_dim": 48, "model_type": "i2v"}, "wan_fun_control"),
    ("WanModel", "model", {"in_dim": 52, "in_dim_ref_conv": 16}, "wan_fun_control"),
    ("WanModel", "model", {"in_dim": 100, "out_dim": 48}, "wan_fun_control"),
]


@pytest.mark.parametrize(("name", "module", "options", "kind"), REFUSED)
def test_models_that_take_more_are_refused_for_what_they_are(comfy, tmp_path, name, module, options, kind):
    """The keys of the host's own classes, small."""
    import importlib

    import comfy.ops

    sizes = {"dim": 128, "ffn_dim": 128, "num_heads": 1, "num_layers": 2, "text_dim": 64} | options
    model_class = getattr(importlib.import_module(f"comfy.ldm.wan.{module}"), name)
    model = model_class(**sizes, device="meta", dtype=torch.float16, operations=comfy.ops.disable_weight_init)
    state = {key: torch.zeros(value.shape, dtype=torch.float16) for key, value in model.state_dict().items()}
    assert identify({key: value.shape for key, value in state.items()}).name == kind
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ModelFileError, match=r"model.safetensors' is a Wan .* which cannot be trained yet, because"):
        inspect(tmp_path / "model.safetensors")
