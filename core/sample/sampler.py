"""Steps along the flow, high noise expert then low, as ComfyUI's usual Wan 2.2 graph makes them.

That graph is ModelSamplingSD3, then one KSamplerAdvanced an expert, with the sampler and the scheduler of the same names.
B samples, C channels, F H W latent frames, height, width, S text tokens, D text width.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError
from ..facts import NUM_TIMESTEPS
from .samplers import SAMPLERS, SigmaWalk
from .schedulers import SCHEDULERS
from .shares import sigma_after

VelocityModel = Callable[[Tensor, Tensor, Tensor], Tensor]  # latents [B, C, F, H, W], timesteps [B], context [B, S, D]
OnStep = Callable[[int, int], None]  # (steps made, steps in all)
Skipping = Callable[[], AbstractContextManager[None]]  # within it the models leave blocks out


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """How noise becomes latents."""

    steps: int = 20
    shift: float = 5.0  # time shift of the sigmas: officially 5 for Wan 2.1, 12 for Wan 2.2 T2V-A14B
    cfg: float = 1.0  # guidance: negative + cfg (positive - negative); at 1 the negative prompt has no effect
    boundary: float = 0.875  # two experts: the sigma at and above which the high noise expert works
    sampler: str = "euler"  # a file of `samplers`; each expert has its own history
    scheduler: str = "simple"  # how the sigmas are spaced: a file of `schedulers`
    seeds: tuple[int, ...] = (0,)  # of the noise that a sampler adds: one for each sample, or one for all
    skip_scale: float = 0.0  # skip-layer guidance: how far away from what the models say without some blocks; 0: off
    skip_start: float = 0.01  # the share of the way from noise to video after which it begins
    skip_stop: float = 0.15  # and ends

    def __post_init__(self) -> None:
        SCHEDULERS.get(self.scheduler)
        most = NUM_TIMESTEPS - SAMPLERS.get(self.sampler).spare_steps
        if not 1 <= self.steps <= most:
            raise ConfigError(f"steps must lie between 1 and {most} for {self.sampler}, got {self.steps}.")
        if not 0.0 < self.shift < math.inf:
            raise ConfigError(f"shift must be above 0 (5 for Wan 2.1, 12 for Wan 2.2 T2V-A14B), got {self.shift}.")
        if not 0.0 <= self.cfg < math.inf:
            raise ConfigError(f"cfg must be 0 or more (1 for no guidance), got {self.cfg}.")
        for name in ("skip_scale", "skip_start", "skip_stop"):
            most = math.inf if name == "skip_scale" else 1.0
            if not 0.0 <= getattr(self, name) <= most or math.isinf(getattr(self, name)):
                raise ConfigError(f"{name} must lie between 0 and {most:g}, got {getattr(self, name)}.")
        if not 0.0 <= self.boundary <= 1.0:
            raise ConfigError(f"boundary is a sigma between 0 and 1 (0.875 for T2V-A14B), got {self.boundary}.")


def schedule(options: SampleOptions) -> Tensor:
    """Sigmas from noise to data, [steps + 1] float32, the last one 0: the host's for this scheduler, bit for bit.

    The scheduler "beta" has fewer where there are hundreds of steps, and "ddim_uniform" may have some more.
    """
    spare = SAMPLERS.get(options.sampler).spare_steps
    sigmas = SCHEDULERS.get(options.scheduler).sigmas(options.steps + spare, options.shift)
    return torch.cat([sigmas[:-2], sigmas[-1:]]) if spare else sigmas


def switch_step(sigmas: Tensor, boundary: float) -> int:
    """The first step whose sigma is below the boundary: there the low noise expert takes over. sigmas [steps + 1]."""
    return int((sigmas[:-1] >= boundary - 1e-6).sum())


def check_steps(options: SampleOptions, sigmas: Tensor, switch: int) -> None:
    """ConfigError for sigmas [steps + 1] that the sampler can't step along, before and after the switch of experts."""
    for part in (sigmas[: switch + 1], sigmas[switch:]):
        SAMPLERS.get(options.sampler).check(part, options.sampler, options.shift)


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
    skipping: Skipping | None = None,
) -> Tensor:
    """Latents [B, C, F, H, W] float32 on the noise's device, normalised as the DiT has them.

    Where `low` is None, `high` makes all steps. noise [B, C, F, H, W]; context and negative [B, S, D], or [1, S, D] for
    all samples, already padded as the models want them; negative is needed unless cfg is 1, and unused then. A model in
    training must be put into eval mode first. `on_step` is called after each step, and may raise to end the sampling.
    `skipping`: within it the models leave out the blocks of skip-layer guidance, which is off without.
    Raises ConfigError if the texts do not fit.
    """
    sigmas = schedule(options)
    steps = len(sigmas) - 1
    switch = steps if low is None else switch_step(sigmas, options.boundary)
    skip_from, skip_to = (sigma_after(share, options.shift) for share in (options.skip_start, options.skip_stop))
    texts = _texts(context, negative, noise.shape[0], options.cfg).to(noise.device)
    check_steps(options, sigmas, switch)

    def walk_of(model: VelocityModel, part: Tensor) -> SigmaWalk:
        def velocity(latents: Tensor, sigma: Tensor) -> Tensor:
            is_skipping = options.skip_scale > 0 and skip_to <= float(sigma) <= skip_from
            skip = (skipping, options.skip_scale) if skipping is not None and is_skipping else None
            return _velocity(model, latents, sigma, texts, options.cfg, skip)

        return SigmaWalk(sigmas=part, velocity=velocity, shift=options.shift, seeds=options.seeds)

    latents, made = sigmas[0] * noise.float(), 0
    for model, part in ((high, sigmas[: switch + 1]), (high if low is None else low, sigmas[switch:])):
        for moved in SAMPLERS.get(options.sampler).path(latents, walk_of(model, part)):
            latents, made = moved, made + 1
            if on_step is not None:
                on_step(made, steps)
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


def _velocity(
    model: VelocityModel, latents: Tensor, sigma: Tensor, texts: Tensor, cfg: float, skip: tuple[Skipping, float] | None
) -> Tensor:
    """Guided velocity [B, C, F, H, W] float32 of latents at one sigma, from one forward, or with `skip` from two.

    Skip-layer guidance as ComfyUI's SkipLayerGuidanceDiT has it (comfy_extras/nodes_slg.py): the guided prediction, and
    scale times what that of the prompt differs from itself without some blocks.
    """
    count = latents.shape[0]
    repeats = texts.shape[0] // count
    timesteps = (NUM_TIMESTEPS * sigma).to(latents.device).repeat(texts.shape[0])
    preds = model(torch.cat([latents] * repeats), timesteps, texts).float().chunk(repeats)
    guided = preds[0] if repeats == 1 else preds[1] + cfg * (preds[0] - preds[1])
    if skip is None:
        return guided
    skipping, scale = skip
    with skipping():
        without = model(latents, timesteps[:count], texts[:count]).float()
    return guided + scale * (preds[0] - without)
