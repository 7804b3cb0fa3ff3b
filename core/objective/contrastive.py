"""Contrastive guidance: the target goes away from what the model says without a caption.

B batch, C channels, F latent frames, H W latent size.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from ..settings.loss import LossOptions
from .forwards import Forwards, NoisyBatch
from .passes import Pass


@dataclass(frozen=True)
class ContrastiveGuidance:
    """target = u + s (target - u), u the prediction for the empty caption, without a gradient.

    AI-Toolkit's guidance loss (extensions_built_in/sd_trainer/SDTrainer.py, 27a03a9, `do_guidance_loss`), with its schedule
    by sigma, s = 1 + (s - 1) sigma, and with u scaled by (target u) / (u u) first (CFG-Zero*, arXiv:2503.18886).
    """

    options: LossOptions
    passes: tuple[Pass, ...] = ("forward without gradient",)

    def __call__(self, noisy: NoisyBatch, forwards: Forwards) -> NoisyBatch:
        """The batch with its new target."""
        unguided = forwards.peek(noisy, forwards.empty_context(noisy)).float()
        return replace(noisy, target=guided(noisy.target, unguided, noisy.sigmas, self.options))


def guided(target: Tensor, unguided: Tensor, sigmas: Tensor, options: LossOptions) -> Tensor:
    """target and unguided [B, C, F, H, W], sigmas [B] -> [B, C, F, H, W]."""
    scale = options.contrastive_guidance
    if options.contrastive_cfg_zero:
        one, other = target.flatten(1), unguided.flatten(1)
        fit = (one * other).sum(1) / (other.square().sum(1) + 1e-8)
        unguided = unguided * fit.view(-1, 1, 1, 1, 1)
    if options.contrastive_schedule == "sigma":
        return unguided + (1 + (scale - 1) * sigmas.view(-1, 1, 1, 1, 1)) * (target - unguided)
    return unguided + scale * (target - unguided)
