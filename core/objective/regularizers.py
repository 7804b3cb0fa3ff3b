"""Regularisers that compare the model with its base, both on a caption that the LoRA is to leave alone.

B batch, C channels, F latent frames, H W latent size, S text tokens, D text width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ..settings.regularizers import RegularizerOptions
from .forwards import Forwards, NoisyBatch
from .passes import Passes
from .terms import Group, Term

# The base first: nothing waits for its backward then.
BESIDE_THE_BASE = Passes(("forward without gradient", "forward", "backward"))


@dataclass(frozen=True)
class OutputPreservation:
    """With the class word in place of the trigger, the model says what its base says.

    Differential output preservation (DOP) of AI-Toolkit, extensions_built_in/sd_trainer/SDTrainer.py: the loss has
    multiplier * mean((v_lora(x, t, c') - v_base(x, t, c'))^2) added, x and t those of the batch. A sample without a class
    caption, such as one of a regularization set, adds 0; a batch of such samples alone takes no forwards.
    """

    weight: float
    passes: Passes = BESIDE_THE_BASE
    names: tuple[str, ...] = ("output_preservation",)

    def terms(self, noisy: NoisyBatch, forwards: Forwards) -> Iterator[Group]:
        """The one term, where a sample of the batch has a class caption."""
        if noisy.of_class is None:
            return
        losses = distance_from_base(noisy, forwards, noisy.of_class.context)
        yield [Term(self.names[0], losses * noisy.of_class.is_there, self.weight)]


@dataclass(frozen=True)
class BlankPreservation:
    """Without a caption, the model says what its base says: blank prompt preservation of AI-Toolkit, in the same file."""

    weight: float
    passes: Passes = BESIDE_THE_BASE
    names: tuple[str, ...] = ("blank_preservation",)

    def terms(self, noisy: NoisyBatch, forwards: Forwards) -> Iterator[Group]:
        """The one term."""
        losses = distance_from_base(noisy, forwards, forwards.empty_context(noisy))
        yield [Term(self.names[0], losses, self.weight)]


def distance_from_base(noisy: NoisyBatch, forwards: Forwards, context: Tensor) -> Tensor:
    """Mean squared difference, [B] float32, between model and base on another caption `context` [B, S, D].

    Frames that the model is given are left out, since nothing is made of what it predicts there.
    """
    prior = forwards.base(noisy, context)
    pred = forwards.pred(noisy, context)
    difference = (pred.float() - prior.float())[:, :, noisy.given_frames :]
    return difference.square().flatten(1).mean(1)


Regularizer = OutputPreservation | BlankPreservation


def regularizers_of(options: RegularizerOptions) -> tuple[Regularizer, ...]:
    """Those that are chosen."""
    found: list[Regularizer] = []
    if options.output_preservation:
        found.append(OutputPreservation(options.output_preservation))
    if options.blank_preservation:
        found.append(BlankPreservation(options.blank_preservation))
    return tuple(found)
