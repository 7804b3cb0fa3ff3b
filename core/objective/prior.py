"""Prior preservation: of regularization sets the model learns what its base says, and not what their clips show.

B batch, C channels, F latent frames, H W latent size.
"""

from dataclasses import dataclass, replace

import torch

from .forwards import Forwards, NoisyBatch
from .passes import Pass


@dataclass(frozen=True)
class PriorTarget:
    """target = what the base predicts, without a gradient, for samples of regularization sets.

    AI-Toolkit's prior_reg (extensions_built_in/sd_trainer/SDTrainer.py, 27a03a9) and what SimpleTuner makes of
    is_regularisation_data (helpers/training/trainer.py, bc8e6ab). A batch without such samples takes no forward more.
    """

    passes: tuple[Pass, ...] = ("forward without gradient",)

    def __call__(self, noisy: NoisyBatch, forwards: Forwards) -> NoisyBatch:
        """The batch with its new target."""
        if noisy.priors is None:
            return noisy
        prior = forwards.base(noisy).to(noisy.target)
        return replace(noisy, target=torch.where(noisy.priors.view(-1, 1, 1, 1, 1), prior, noisy.target))
