"""Euler steps along the flow, high noise expert then low, as ComfyUI makes them with the usual Wan 2.2 graph.

That graph is ModelSamplingSD3, then one KSamplerAdvanced an expert, with the sampler "euler" and the scheduler "simple".
B samples, C channels, F H W latent frames, height, width, S text tokens, D text width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError
from ..flow.objective import NUM_TIMESTEPS
from ..flow.sigmas import shift_sigma

VelocityModel = Callable[[Tensor, Tensor, Tensor], Tensor]  # latents [B, C, F, H, W], timesteps [B], context [B, S, D]
OnStep = Callable[[int, int], None]  # (steps made, steps in all)


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """How noise becomes latents."""

    steps: int = 20
    shift: float = 5.0  # time shift of the sigmas: officially 5 for Wan 2.1, 12 for Wan 2.2 T2V-A14B
    cfg: float = 1.0  # guidance: negative + cfg (positive - negative); at 1 the negative prompt has no effect
    boundary: float = 0.875  # two experts: the sigma at and above which the high noise expert works

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= NUM_TIMESTEPS:
            raise ConfigError(f"steps must lie between 1 and {NUM_TIMESTEPS}, got {self.steps}.")
        if not 0.0 < self.shift < math.inf:
            raise ConfigError(f"shift must be above 0 (5 for Wan 2.1, 12 for Wan 2.2 T2V-A14B), got {self.shift}.")
        if not 0.0 <= self.cfg < math.inf:
            raise ConfigError(f"cfg must be 0 or more (1 for no guidance), got {self.cfg}.")
        if not 0.0 <= self.boundary <= 1.0:
            raise ConfigError(f"boundary is a sigma between 0 and 1 (0.875 for T2V-A14B), got {self.boundary}.")


def schedule(options: SampleOptions) -> Tensor:
    """Sigmas from noise to data, [steps + 1] float32, the last one 0: the host's scheduler "simple", bit for bit."""
    levels = shift_sigma(torch.arange(1, NUM_TIMESTEPS + 1) / NUM_TIMESTEPS, options.shift)
    stride = NUM_TIMESTEPS / options.steps
    picked = [NUM_TIMESTEPS - 1 - int(step * stride) for step in range(options.steps)]
    return torch.cat([levels[picked], torch.zeros(1)])


def switch_step(sigmas: Tensor, boundary: float) -> int:
    """The first step whose sigma is below the boundary: there the low noise expert takes over. sigmas [steps + 1]."""
    return int((sigmas[:-1] >= boundary - 1e-6).sum())


def initial_noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal noise, float32 on the CPU: the host's for this seed. The global random state is not touched."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()  # not inference_mode: what a model keeps of these forwards must serve a later backward
def sample(
    high: VelocityModel,
    low: VelocityModel | None,
    noise: Tensor,
    context: Tensor,
    negative: Tensor | None,
    options: SampleOptions,
    on_step: OnStep | None = None,
) -> Tensor:
    """Latents [B, C, F, H, W] float32 on the noise's device, normalised as the DiT has them.

    Where `low` is None, `high` makes all steps. noise [B, C, F, H, W]; context and negative [B, S, D], or [1, S, D] for
    all samples, already padded as the models want them; negative is needed unless cfg is 1, and unused then. A model in
    training must be put into eval mode first. `on_step` is called after each step, and may raise to end the sampling.
    Raises ConfigError if the texts do not fit.
    """
    sigmas = schedule(options)
    switch = options.steps if low is None else switch_step(sigmas, options.boundary)
    texts = _texts(context, negative, noise.shape[0], options.cfg).to(noise.device)
    latents = sigmas[0] * noise.float()
    for step in range(options.steps):
        model = high if low is None or step < switch else low
        velocity = _velocity(model, latents, sigmas[step], texts, options.cfg)
        latents = latents + (sigmas[step + 1] - sigmas[step]) * velocity
        if on_step is not None:
            on_step(step + 1, options.steps)
    return latents


def _texts(context: Tensor, negative: Tensor | None, num_samples: int, cfg: float) -> Tensor:
    """The texts of one forward: [B, S, D], or with guidance [2B, S, D], first the prompts, then the negative ones."""
    texts = {"context": context}
    if cfg != 1.0:
        if negative is None:
            raise ConfigError(f"cfg {cfg} needs the context of a negative prompt: give one, or set cfg to 1.")
        texts["negative context"] = negative
    for name, text in texts.items():
        if text.ndim != 3 or text.shape[0] not in (1, num_samples) or text.shape[1:] != context.shape[1:]:
            raise ConfigError(
                f"the {name} must have the shape [{num_samples}, tokens, width], one for each sample, or one for all, "
                f"and every text the same number of tokens, got {list(text.shape)}."
            )
    return torch.cat([text.expand(num_samples, -1, -1) for text in texts.values()])


def _velocity(model: VelocityModel, latents: Tensor, sigma: Tensor, texts: Tensor, cfg: float) -> Tensor:
    """Guided velocity [B, C, F, H, W] float32 of latents at one sigma, from one forward."""
    repeats = texts.shape[0] // latents.shape[0]
    timesteps = (NUM_TIMESTEPS * sigma).to(latents.device).repeat(texts.shape[0])
    preds = model(torch.cat([latents] * repeats), timesteps, texts).float().chunk(repeats)
    if repeats == 1:
        return preds[0]
    positive, negative = preds
    return negative + cfg * (positive - negative)
