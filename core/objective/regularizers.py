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

OUTPUT_PRESERVATION, BLANK_PRESERVATION = "output_preservation", "blank_preservation"

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
    names: tuple[str, ...] = (OUTPUT_PRESERVATION,)

    def terms(self, noisy: NoisyBatch, forwards: Forwards) -> Iterator[Group]:
        """The one term, where a sample of the batch has a class caption."""
        context = self.context(noisy, forwards)
        if context is not None:
            prior = forwards.base(noisy, context)
            yield [self.term(noisy, forwards.pred(noisy, context), prior)]

    def context(self, noisy: NoisyBatch, _forwards: Forwards) -> Tensor | None:
        """The captions that it compares on, [B, S, D]; None: it adds nothing to this batch."""
        return None if noisy.of_class is None else noisy.of_class.context

    def term(self, noisy: NoisyBatch, pred: Tensor, prior: Tensor) -> Term:
        """What model and base predict on these captions, [B, C, F, H, W]."""
        assert noisy.of_class is not None
        is_there = noisy.of_class.is_there
        losses = mean_square(pred, prior, noisy.given_frames) * is_there
        return Term(self.names[0], losses, self.weight, is_there)


@dataclass(frozen=True)
class BlankPreservation:
    """Without a caption, the model says what its base says: blank prompt preservation of AI-Toolkit, in the same file."""

    weight: float
    passes: Passes = BESIDE_THE_BASE
    names: tuple[str, ...] = (BLANK_PRESERVATION,)

    def terms(self, noisy: NoisyBatch, forwards: Forwards) -> Iterator[Group]:
        """The one term."""
        context = self.context(noisy, forwards)
        prior = forwards.base(noisy, context)
        yield [self.term(noisy, forwards.pred(noisy, context), prior)]

    def context(self, noisy: NoisyBatch, forwards: Forwards) -> Tensor:
        """The empty captions, [B, S, D]."""
        return forwards.empty_context(noisy)

    def term(self, noisy: NoisyBatch, pred: Tensor, prior: Tensor) -> Term:
        """What model and base predict on them, [B, C, F, H, W]."""
        return Term(self.names[0], mean_square(pred, prior, noisy.given_frames), self.weight)


def mean_square(pred: Tensor, prior: Tensor, given_frames: int) -> Tensor:
    """Mean squared difference of each sample, [B] float32, between what model and base predict.

    Frames that the model is given are left out, since nothing is made of what it predicts there.
    """
    difference = (pred.float() - prior.float())[:, :, given_frames:]
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
