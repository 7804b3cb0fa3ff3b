"""The worked example of docs/how-to-add.md: a regulariser with forwards of its own.

Prior preservation: on the empty caption, the model with its LoRA is to say what the base says, at the batch's own noise.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch.nn import functional as F
from wan_train.core.objective.forwards import Forwards, NoisyBatch
from wan_train.core.objective.objective import Group, Term
from wan_train.core.objective.passes import Passes

PASSES = Passes(("forward without gradient", "forward", "backward"))


@dataclass(frozen=True)
class PriorPreservation:
    """Mean squared difference from the base."""

    weight: float
    passes: Passes = PASSES

    def terms(self, noisy: NoisyBatch, forwards: Forwards) -> Iterator[Group]:
        """The forward without a gradient comes first: it then runs while nothing waits for a backward."""
        context = forwards.empty_context(noisy)
        prior = forwards.base(noisy, context)
        pred = forwards.pred(noisy, context)
        losses = F.mse_loss(pred.float(), prior.float(), reduction="none").flatten(1).mean(1)
        yield [Term("preservation", losses, self.weight)]
