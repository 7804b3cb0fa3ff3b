"""A batch with its noise, and the forwards that an objective may ask for of it.

B batch, C channels, F latent frames, H W latent size, S text tokens, D text width.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..facts import NUM_TIMESTEPS
from ..flow.objective import add_noise, give_first_frame, velocity_target

Model = Callable[
    ..., Tensor
]  # noisy latents, timesteps, context, and what an image-to-video model is given -> velocity


@dataclass(frozen=True)
class ClassContext:
    """The captions of B samples with a plain word, their class, in place of the trigger word."""

    context: Tensor  # [B, S, D]; of a sample that has none, anything
    is_there: Tensor  # [B] float32: 1, and 0 for a sample that has none

    def map(self, change: Callable[[Tensor], Tensor]) -> "ClassContext":
        """With `change` applied to each tensor."""
        return ClassContext(change(self.context), change(self.is_there))


@dataclass(frozen=True)
class NoisyBatch:
    """B samples of one shape at one noise level each, on the model's device."""

    latents: Tensor  # [B, C, F, H, W]
    noise: Tensor  # [B, C, F, H, W]
    sigmas: Tensor  # [B]
    noisy_latents: Tensor  # [B, C, F, H, W], as the model sees them
    timesteps: Tensor  # [B], or [B, F] where frames are given
    target: Tensor  # [B, C, F, H, W], the true velocity
    context: Tensor  # [B, S, D]
    images: Mapping[str, Tensor]  # what an image-to-video model is given besides, by the model's names
    given_frames: int = 0  # latent frames that the model is given clean, and is not to predict
    features: Tensor | None = None  # [B, F, P, E]: what an image encoder sees in the frames (CREPA)
    masks: Tensor | None = None  # [B, 1, F, H, W]: what the error at each latent counts; None: the same everywhere
    kept_tokens: Tensor | None = None  # [B, N]: those that pass the blocks of routes (TREAD); None: all pass all blocks
    rollouts: tuple[
        tuple[int, int], ...
    ] = ()  # of each sample: where its rollout begins and ends; equal: none. (): of none
    of_class: ClassContext | None = None  # None: no sample has one, or nobody asked for them
    priors: Tensor | None = None  # [B] bool: samples of regularization sets; None: none is

    def of_sample(self, number: int) -> "NoisyBatch":
        """What a forward of one sample needs: a batch of it alone, without masks, routes and rollouts."""
        own = slice(number, number + 1)
        return NoisyBatch(
            latents=self.latents[own],
            noise=self.noise[own],
            sigmas=self.sigmas[own],
            noisy_latents=self.noisy_latents[own],
            timesteps=self.timesteps[own],
            target=self.target[own],
            context=self.context[own],
            images={name: tensor[own] for name, tensor in self.images.items()},
            given_frames=self.given_frames,
        )

    def times(self, count: int) -> "NoisyBatch":
        """What a forward of so many copies needs, one after another; the texts apart, which are those of one."""

        def repeated(tensor: Tensor) -> Tensor:
            return torch.cat([tensor] * count)

        return replace(
            self,
            noisy_latents=repeated(self.noisy_latents),
            timesteps=repeated(self.timesteps),
            images={name: repeated(tensor) for name, tensor in self.images.items()},
            kept_tokens=None if self.kept_tokens is None else repeated(self.kept_tokens),
        )


def noisy_batch(
    latents: Tensor,
    noise: Tensor,
    sigmas: Tensor,
    context: Tensor,
    images: Mapping[str, Tensor],
    *,
    given_frames: int = 0,
    masks: Tensor | None = None,
) -> NoisyBatch:
    """latents and noise [B, C, F, H, W], sigmas [B], context [B, S, D], masks [B, 1, F, H, W]."""
    noisy_latents, timesteps = add_noise(latents, noise, sigmas), sigmas * NUM_TIMESTEPS
    target = velocity_target(latents, noise)
    if given_frames:
        noisy_latents, timesteps = give_first_frame(noisy_latents, latents, timesteps)
    return NoisyBatch(
        latents,
        noise,
        sigmas,
        noisy_latents,
        timesteps,
        target,
        context,
        images,
        given_frames=given_frames,
        masks=masks,
    )


def predict(model: Model, noisy: NoisyBatch, context: Tensor | None = None) -> Tensor:
    """What `model` predicts, [B, C, F, H, W]; `context` [B, S, D]: another text than the batch's."""
    text = noisy.context if context is None else context
    routed = {} if noisy.kept_tokens is None else {"kept_tokens": noisy.kept_tokens}
    return model(noisy.noisy_latents, noisy.timesteps, text, **noisy.images, **routed)


class Forwards:
    """What of the model in training an objective may ask for."""

    def __init__(
        self,
        model: Model,
        *,
        without_adapter: Callable[[], AbstractContextManager[None]],
        load_empty_context: Callable[[], Tensor],
    ) -> None:
        """`without_adapter`: within it the model is the base alone. `load_empty_context`: the empty caption's, [S, D]."""
        self._model = model
        self._without_adapter, self._load_empty_context = without_adapter, load_empty_context
        self._empty: Tensor | None = None
        self.alignment: Callable[[NoisyBatch], Tensor] | None = None  # see `aligned`

    def pred(self, noisy: NoisyBatch, context: Tensor | None = None) -> Tensor:
        """By the model as it is trained, with a gradient. [B, C, F, H, W]."""
        return predict(self._model, noisy, context)

    def preds(self, noisy: NoisyBatch, contexts: Sequence[Tensor]) -> Sequence[Tensor]:
        """As `pred` for each of the contexts, in one forward of so many copies of the batch."""
        copies = noisy.times(len(contexts))
        return predict(self._model, copies, torch.cat(list(contexts))).chunk(len(contexts))

    @torch.no_grad()
    def peek(self, noisy: NoisyBatch, context: Tensor | None = None) -> Tensor:
        """By the model as it is trained, without a gradient; all tokens pass all blocks. [B, C, F, H, W]."""
        return predict(self._model, replace(noisy, kept_tokens=None), context)

    @torch.no_grad()
    def base(self, noisy: NoisyBatch, context: Tensor | None = None) -> Tensor:
        """By the base without its adapter, without a gradient. [B, C, F, H, W]."""
        with self._without_adapter():
            return predict(self._model, noisy, context)

    @torch.no_grad()
    def teacher(self, model: Model, noisy: NoisyBatch, context: Tensor | None = None) -> Tensor:
        """By another model, without a gradient. [B, C, F, H, W]."""
        return predict(model, noisy, context)

    def aligned(self, noisy: NoisyBatch) -> Tensor:
        """How little the newest forward with a gradient agrees with the batch's features, [B] float32 (CREPA)."""
        assert self.alignment is not None, "a run that aligns the model with features says how"
        return self.alignment(noisy)

    def empty_context(self, noisy: NoisyBatch) -> Tensor:
        """The empty caption for each sample, [B, S, D]; read once."""
        if self._empty is None:
            self._empty = self._load_empty_context().to(noisy.context)
        return self._empty.expand_as(noisy.context)
