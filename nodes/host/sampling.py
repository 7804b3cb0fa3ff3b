"""Generation with the host's own sampler, high noise expert then low, as a user's KSamplerAdvanced graph does it."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.samplers
import comfy.sd
import comfy.utils
import torch
from comfy_api.latest import InputImpl, Types
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from comfy_extras.nodes_wan import Wan22ImageToVideoLatent, WanFirstLastFrameToVideo

import nodes as _host_nodes

from ...core.adapters.other_files import read_adapter
from ...core.adapters.transfer import transfer_report
from ...core.errors import ConfigError
from ...core.facts import LATENT_CHANNELS, latent_shape
from ...core.words import counted

TI2V_CHANNELS = LATENT_CHANNELS["wan2.2"]  # of Wan 2.2 TI2V 5B
comfy_nodes: Any = _host_nodes  # the host's nodes.py; type checkers take it for our own folder


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """One generation."""

    width: int
    height: int
    num_frames: int
    steps: int
    cfg: float
    seed: int
    shift: float
    boundary: float
    sampler: str
    scheduler: str


def with_shift(model: Any, shift: float) -> Any:
    """The model with its time shift set, as the node ModelSamplingSD3 does."""
    return ModelSamplingSD3().patch(model, shift)[0]


def with_lora(model: Any, path: Path, strength: float) -> tuple[Any, tuple[str, ...]]:
    """The model with a LoRA on it, and what the user should know of a LoRA from another kind of model.

    ConfigError if the LoRA belongs to a model of another size, or the host finds a place for other parts of it than we.
    """
    parameters = model.model.diffusion_model.named_parameters()
    report = transfer_report(read_adapter(path), {name: tuple(parameter.shape) for name, parameter in parameters})
    state = comfy.utils.load_torch_file(str(path), safe_load=True)
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    loaded = comfy.lora.load_lora(comfy.lora_convert.convert_lora(state), keys)
    expected = len(report.placed) + len(report.reshaped)
    if len(loaded) != expected:
        raise ConfigError(
            f"ComfyUI finds a place for {counted(len(loaded), 'module')} of {path.name} in this model instead of {expected}: "
            "connect the model that the LoRA was trained on, loaded by Load Diffusion Model."
        )
    return comfy.sd.load_lora_for_models(model, None, state, strength, 0)[0], report.notes


def switch_step(model: Any, options: SamplingOptions) -> int:
    """The first step at which the noise is below the boundary: there the low noise expert takes over."""
    # KSampler's own: for some samplers, such as uni_pc, it leaves the last sigma but one out.
    sigmas = comfy.samplers.KSampler(model, options.steps, "cpu", options.sampler, options.scheduler, 1.0).sigmas
    return int((sigmas[:-1] >= options.boundary - 1e-6).sum())


def encode_prompt(clip: Any, text: str) -> Any:
    """Conditioning of a prompt, as CLIPTextEncode makes it."""
    return comfy_nodes.CLIPTextEncode().encode(clip, text)[0]


def makes_videos_from_images(model: Any) -> bool:
    """Whether the model needs the channels of given frames: I2V and FLF2V, not TI2V."""
    return model.model.diffusion_model.patch_embedding.weight.shape[1] > model.model.latent_format.latent_channels


@dataclass(frozen=True)
class Start:
    """What sampling starts from: empty latents, and the prompts with the given frames in them."""

    latents: dict[str, Any]
    positive: Any
    negative: Any


def start_from(
    model: Any, vae: Any, positive: Any, negative: Any, options: SamplingOptions, given: "GivenImages"
) -> Start:
    """Latents and prompts as the host's own image-to-video nodes make them; ConfigError if model and images disagree."""
    size = (options.width, options.height, options.num_frames, 1)
    channels = model.model.latent_format.latent_channels
    if makes_videos_from_images(model):
        if given.start_image is None:
            raise ConfigError("the model makes videos from images: connect an image to start_image.")
        vision = [_vision(given.clip_vision, image) for image in (given.start_image, given.end_image)]
        made = WanFirstLastFrameToVideo.execute(
            positive, negative, vae, *size, given.start_image, given.end_image, *vision
        ).result
        return Start(made[2], made[0], made[1])
    if channels == TI2V_CHANNELS and given.end_image is None:
        latents = Wan22ImageToVideoLatent.execute(vae, *size, given.start_image).result[0]
        return Start(latents, positive, negative)
    if given.start_image is not None or given.end_image is not None:
        kind = (
            "takes a start image only" if channels == TI2V_CHANNELS else "is a text-to-video model and takes no image"
        )
        raise ConfigError(f"the model {kind}: disconnect the other, or connect an image-to-video model.")
    return Start({"samples": torch.zeros(_latent_shape(options))}, positive, negative)


@dataclass(frozen=True)
class GivenImages:
    """Images that the video starts and ends with, [1, H, W, 3] in 0..1, and CLIP vision for Wan 2.1."""

    start_image: torch.Tensor | None = None
    end_image: torch.Tensor | None = None
    clip_vision: Any = None


def _vision(clip_vision: Any, image: torch.Tensor | None) -> Any:
    if clip_vision is None or image is None:
        return None
    return clip_vision.encode_image(image, crop=False)


def sample_latents(high: Any, low: Any | None, start: Start, options: SamplingOptions) -> dict:
    """One video's latents: `high` down to the boundary, then `low`; a single model where `low` is None."""
    latents = start.latents
    prompts = (start.positive, start.negative)
    arguments = (options.seed, options.steps, options.cfg, options.sampler, options.scheduler, *prompts)
    if low is None:
        return comfy_nodes.common_ksampler(high, *arguments, latents, force_full_denoise=True)[0]
    switch = switch_step(high, options)
    if switch > 0:
        latents = comfy_nodes.common_ksampler(
            high, *arguments, latents, start_step=0, last_step=switch, force_full_denoise=False
        )[0]
    if switch < options.steps:
        latents = comfy_nodes.common_ksampler(
            low, *arguments, latents, disable_noise=switch > 0, start_step=switch, force_full_denoise=True
        )[0]
    return latents


def decode(vae: Any, latents: dict) -> torch.Tensor:
    """Frames [F, H, W, 3] in 0..1."""
    frames = vae.decode(latents["samples"])
    return frames.reshape(-1, *frames.shape[-3:])


def video(frames: torch.Tensor, fps: float) -> Any:
    """The host's VIDEO of frames [F, H, W, 3]."""
    rate = Fraction(fps).limit_denominator(1000)
    return InputImpl.VideoFromComponents(Types.VideoComponents(images=frames, audio=None, frame_rate=rate))


def _latent_shape(options: SamplingOptions) -> tuple[int, ...]:
    return (1, *latent_shape(LATENT_CHANNELS["wan2.1"], options.num_frames, options.height, options.width))
