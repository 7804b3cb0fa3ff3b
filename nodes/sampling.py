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

import nodes as _host_nodes

from ..core.errors import ConfigError

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


def with_lora(model: Any, path: Path, strength: float) -> Any:
    """The model with a LoRA on it; ConfigError if a part of the LoRA finds no place in the model."""
    state = comfy.utils.load_torch_file(str(path), safe_load=True)
    modules = sum(key.endswith((".lora_A.weight", ".lora_down.weight")) for key in state)
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    loaded = comfy.lora.load_lora(comfy.lora_convert.convert_lora(state), keys)
    if len(loaded) != modules:
        raise ConfigError(
            f"{path.name} has {modules} modules, but only {len(loaded)} of them belong to this model: "
            "connect the model that the LoRA was trained on."
        )
    return comfy.sd.load_lora_for_models(model, None, state, strength, 0)[0]


def switch_step(model: Any, options: SamplingOptions) -> int:
    """The first step at which the noise is below the boundary: there the low noise expert takes over."""
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, options.scheduler, options.steps)
    return int((sigmas[:-1] >= options.boundary - 1e-6).sum())


def encode_prompt(clip: Any, text: str) -> Any:
    """Conditioning of a prompt, as CLIPTextEncode makes it."""
    return comfy_nodes.CLIPTextEncode().encode(clip, text)[0]


def sample_latents(high: Any, low: Any | None, positive: Any, negative: Any, options: SamplingOptions) -> dict:
    """One video's latents: `high` down to the boundary, then `low`; a single model where `low` is None."""
    latents = {"samples": torch.zeros(_latent_shape(options))}
    arguments = (options.seed, options.steps, options.cfg, options.sampler, options.scheduler, positive, negative)
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
    return (1, 16, (options.num_frames - 1) // 4 + 1, options.height // 8, options.width // 8)
