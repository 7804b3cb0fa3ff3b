"""Tiny Wan transformers with true names and shapes, and their files; the random weights are always the same."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from safetensors.torch import save_file
from wan_train.core.wan.config import WanConfig
from wan_train.core.wan.model import WanTransformer

SMALL = WanConfig(dim=48, ffn_dim=96, num_heads=2, num_layers=3, text_dim=64)  # needs num_heads in its metadata
WIDE = WanConfig(dim=128, ffn_dim=192, num_heads=1, num_layers=2, text_dim=96)

# The other variants, of the sizes of SMALL. The host takes CLIP features of one width alone.
_SIZES = {"dim": 48, "ffn_dim": 96, "num_heads": 2, "num_layers": 2, "text_dim": 64}
CONFIGS = {
    "small": SMALL,
    "wide": WIDE,
    "i2v_clip": WanConfig(variant="i2v", in_dim=36, image_dim=1280, **_SIZES),
    "flf2v": WanConfig(variant="flf2v", in_dim=36, image_dim=1280, image_positions=514, **_SIZES),
    "i2v": WanConfig(variant="i2v", in_dim=36, **_SIZES),
    "ti2v": WanConfig(variant="ti2v", in_dim=48, out_dim=48, **_SIZES),
}
HEADS_METADATA = {"config": '{"transformer": {"num_heads": 2, "text_dim": 64}}'}


def make_weights(config: WanConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under official names; norms and biases are random too, so that a forgotten one shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        model = WanTransformer(config)
    weights = {}
    for name, tensor in model.state_dict().items():
        values = torch.randn(tensor.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            weights[name] = 1 + 0.1 * values
        elif name.endswith("bias"):
            weights[name] = 0.1 * values
        elif tensor.ndim == 1 or name == "img_emb.emb_pos":
            weights[name] = values
        else:
            weights[name] = values / math.sqrt(math.prod(tensor.shape[1:]))
    return weights


def build_model(config: WanConfig, weights: dict[str, torch.Tensor]) -> WanTransformer:
    with torch.device("meta"):
        model = WanTransformer(config)
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_(False).eval()


@dataclass(frozen=True)
class Inputs:
    latents: torch.Tensor
    timesteps: torch.Tensor
    context: torch.Tensor
    probe: torch.Tensor  # gradients are those of (output * probe).sum()
    images: dict[str, torch.Tensor]  # the further arguments that the variant needs: conditioning, clip_features


def make_inputs(config: WanConfig, frames: int = 3, height: int = 6, width: int = 10, tokens: int = 512) -> Inputs:
    """Two samples, not square, with an odd number of latent frames; half of the text is zero padding.

    TI2V gets a timestep per frame: 0 for the first.
    """
    generator = torch.Generator().manual_seed(7)
    latents = torch.randn(2, config.out_dim, frames, height, width, generator=generator)
    context = torch.randn(2, tokens, config.text_dim, generator=generator)
    context[:, tokens // 2 :] = 0
    probe = torch.randn(2, config.out_dim, frames, height, width, generator=generator)
    timesteps = torch.tensor([937.5, 12.25])
    if config.variant == "ti2v":
        timesteps = timesteps[:, None] * (torch.arange(frames) > 0)
    images = {}
    if config.conditioning_dim:
        images["conditioning"] = torch.randn(2, config.conditioning_dim, frames, height, width, generator=generator)
    if config.image_dim is not None:
        num_tokens = config.image_positions or 257
        # Small, so that a wrong eps of the embedding's norm shows.
        images["clip_features"] = 0.05 * torch.randn(2, num_tokens, config.image_dim, generator=generator)
    return Inputs(latents, timesteps, context, probe, images)


def forward_and_gradients(run: Callable[..., torch.Tensor], inputs: Inputs) -> tuple[torch.Tensor, ...]:
    """Output of `run(latents, timesteps, context, **images)` and the gradients with respect to all but the timesteps."""
    latents = inputs.latents.clone().requires_grad_()
    context = inputs.context.clone().requires_grad_()
    images = {name: value.clone().requires_grad_() for name, value in inputs.images.items()}
    output = run(latents, inputs.timesteps, context, **images)
    (output.float() * inputs.probe).sum().backward()
    grads = [tensor.grad for tensor in (latents, context, *images.values())]
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads)
    return output.detach(), *grads  # type: ignore[return-value]


def errors(result: torch.Tensor, reference: torch.Tensor) -> tuple[float, float]:
    """Largest difference over largest value, and norm of the difference over the norm; both in fp64."""
    difference = result.double() - reference.double()
    largest = difference.abs().max() / reference.double().abs().max()
    return largest.item(), (difference.norm() / reference.double().norm()).item()


@dataclass(frozen=True)
class Tiny:
    """What a test module needs, as one fixture: with importlib mode, test files cannot import each other."""

    small: WanConfig = SMALL
    wide: WanConfig = WIDE
    configs = MappingProxyType(CONFIGS)
    heads_metadata = HEADS_METADATA
    weights = staticmethod(make_weights)
    model = staticmethod(build_model)
    inputs = staticmethod(make_inputs)
    forward_and_gradients = staticmethod(forward_and_gradients)
    errors = staticmethod(errors)


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    return Tiny()


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Writes a safetensors file into a fresh folder: save(tensors, name="model.safetensors", metadata=None)."""

    def write(tensors: dict[str, torch.Tensor], name: str = "model.safetensors", metadata=None) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata=metadata)
        return path

    return write
