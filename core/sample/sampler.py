"""Steps along the flow, high noise expert then low, as ComfyUI's usual Wan 2.2 graph makes them.

That graph is ModelSamplingSD3, then one KSamplerAdvanced an expert; sampler "euler", "uni_pc" or "dpmpp_2m".
B samples, C channels, F H W latent frames, height, width, S text tokens, D text width.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from ..errors import ConfigError
from ..facts import NUM_TIMESTEPS
from .dpm import DpmPlusPlus2M
from .schedulers import SCHEDULERS, Scheduler
from .unipc import UniPC

VelocityModel = Callable[[Tensor, Tensor, Tensor], Tensor]  # latents [B, C, F, H, W], timesteps [B], context [B, S, D]
OnStep = Callable[[int, int], None]  # (steps made, steps in all)
Skipping = Callable[[], AbstractContextManager[None]]  # within it the models leave blocks out
Sampler = Literal["euler", "unipc", "dpm++2m"]


class Solver(Protocol):
    """The steps of one model from its first sigma to its last."""

    def step(self, latents: Tensor, velocity: Tensor) -> Tensor:
        """Latents [B, C, F, H, W] at the next sigma, from those at this one and the velocity there."""
        ...


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """How noise becomes latents."""

    steps: int = 20
    shift: float = 5.0  # time shift of the sigmas: officially 5 for Wan 2.1, 12 for Wan 2.2 T2V-A14B
    cfg: float = 1.0  # guidance: negative + cfg (positive - negative); at 1 the negative prompt has no effect
    boundary: float = 0.875  # two experts: the sigma at and above which the high noise expert works
    sampler: Sampler = "euler"  # the others: closer to the true path in as many steps; each expert has its own history
    scheduler: Scheduler = "simple"  # how the sigmas are spaced
    skip_scale: float = 0.0  # skip-layer guidance: how far away from what the models say without some blocks; 0: off
    skip_start: float = 0.01  # the share of the way from noise to video after which it begins
    skip_stop: float = 0.15  # and ends

    def __post_init__(self) -> None:
        if self.sampler not in get_args(Sampler):
            raise ConfigError(f"sampler must be one of {', '.join(get_args(Sampler))}, got {self.sampler!r}.")
        most = NUM_TIMESTEPS - _spare_steps(self.sampler)
        if not 1 <= self.steps <= most:
            raise ConfigError(f"steps must lie between 1 and {most} for {self.sampler}, got {self.steps}.")
        if not 0.0 < self.shift < math.inf:
            raise ConfigError(f"shift must be above 0 (5 for Wan 2.1, 12 for Wan 2.2 T2V-A14B), got {self.shift}.")
        if not 0.0 <= self.cfg < math.inf:
            raise ConfigError(f"cfg must be 0 or more (1 for no guidance), got {self.cfg}.")
        if self.scheduler not in get_args(Scheduler):
            raise ConfigError(f"scheduler must be one of {', '.join(get_args(Scheduler))}, got {self.scheduler!r}.")
        for name in ("skip_scale", "skip_start", "skip_stop"):
            most = math.inf if name == "skip_scale" else 1.0
            if not 0.0 <= getattr(self, name) <= most or math.isinf(getattr(self, name)):
                raise ConfigError(f"{name} must lie between 0 and {most:g}, got {getattr(self, name)}.")
        if not 0.0 <= self.boundary <= 1.0:
            raise ConfigError(f"boundary is a sigma between 0 and 1 (0.875 for T2V-A14B), got {self.boundary}.")


def _spare_steps(sampler: Sampler) -> int:
    """Steps that the host adds for UniPC; it then leaves out their last sigma before 0 (DISCARD_PENULTIMATE_SIGMA)."""
    return 1 if sampler == "unipc" else 0


def schedule(options: SampleOptions) -> Tensor:
    """Sigmas from noise to data, [steps + 1] float32, the last one 0: the host's for this scheduler, bit for bit.

    The scheduler "beta" leaves out sigmas that fall together where there are hundreds of steps.
    """
    spare = _spare_steps(options.sampler)
    sigmas = SCHEDULERS[options.scheduler](options.steps + spare, options.shift)
    return torch.cat([sigmas[:-2], sigmas[-1:]]) if spare else sigmas


def switch_step(sigmas: Tensor, boundary: float) -> int:
    """The first step whose sigma is below the boundary: there the low noise expert takes over. sigmas [steps + 1]."""
    return int((sigmas[:-1] >= boundary - 1e-6).sum())


def check_solvers(options: SampleOptions) -> None:
    """ConfigError for sigmas that the sampler can't step along."""
    sigmas = schedule(options)
    switch = switch_step(sigmas, options.boundary)
    for part in (sigmas, sigmas[: switch + 1], sigmas[switch:]):
        if len(part) > 1:
            _solver(options.sampler, part)


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
    latents = sigmas[0] * noise.float()
    for model, first, last in ((high, 0, switch), (high if low is None else low, switch, steps)):
        solver = _solver(options.sampler, sigmas[first : last + 1])
        for step in range(first, last):
            is_skipping = (
                skipping is not None and options.skip_scale > 0 and skip_to <= float(sigmas[step]) <= skip_from
            )
            skip = (skipping, options.skip_scale) if skipping is not None and is_skipping else None
            velocity = _velocity(model, latents, sigmas[step], texts, options.cfg, skip)
            latents = solver.step(latents, velocity)
            if on_step is not None:
                on_step(step + 1, steps)
    return latents


class Euler:
    """Steps as if the velocity stayed what it is. sigmas [steps + 1] float32."""

    def __init__(self, sigmas: Tensor) -> None:
        self._widths = iter(sigmas.diff())

    def step(self, latents: Tensor, velocity: Tensor) -> Tensor:
        """See Solver."""
        return latents + next(self._widths) * velocity


def _solver(sampler: Sampler, sigmas: Tensor) -> Solver:
    if sampler == "euler":
        return Euler(sigmas)
    return UniPC(sigmas.tolist()) if sampler == "unipc" else DpmPlusPlus2M(sigmas)


def sigma_after(share: float, shift: float) -> float:
    """The sigma after this share of the way from noise to data: the host's percent_to_sigma."""
    if share <= 0.0 or share >= 1.0:
        return 1.0 if share <= 0.0 else 0.0
    return shift * (1.0 - share) / (1.0 + (shift - 1.0) * (1.0 - share))


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
