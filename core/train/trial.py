"""Steps of a model of one block, of zeros, at each size that a run trains: what a device does once for a size is done then.

Libraries choose their kernels by the sizes of what they are given, load them when they are first used, and attention is
planned for each length. In a run that is a second or two of its first step, and some tenths of that of each further size;
here it goes on while the model is read. Nothing of it stays but what the libraries keep.

B batch, C channels, F latent frames, H W latent size, S text tokens, D text width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..adapters.setup import add_adapter, use_light_forward
from ..facts import num_tokens
from ..memory.precision import Resolved
from ..memory.recompute import Kept
from ..plan.decision import Decision
from ..plan.plan import Bucket, Plan, keeping, kept_of
from ..settings.adapter import AdapterOptions
from ..wan.config import WanConfig
from ..wan.loading import blank_transformer
from ..wan.model import WanTransformer
from .features import apply_features

_MOST_SIZES = 32
_BY_COMPILER = ("static", "dynamic")
# Of one block in both directions, in numbers [B, L, dim]: about what one of the 14B model took at 3,600 tokens without
# gradient checkpointing, with a fourth more.
_ACTIVATIONS = 50
_OUTSIDE_BYTES = 2**30  # what is not in the blocks, and the products' working memory
_IMAGE_TOKENS = 257  # of CLIP


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is tried."""

    decision: Decision
    plan: Plan
    held: Resolved
    adapter: AdapterOptions
    buckets: Sequence[Bucket]
    given_frames: int = 0  # latent frames that the model is given clean

    @property
    def sizes(self) -> list[Bucket]:
        """Those that are tried: of the most frequent ones, those for which there is room. [] for a plan that can't be tried.

        A compiler would compile the block anew for the run, swapped blocks are elsewhere, and a GGUF file's are as the file has
        them.
        """
        plan, config = self.plan, self.decision.info.config
        if (
            plan.compile in _BY_COMPILER
            or plan.streamed_blocks
            or plan.shards > 1
            or self.decision.info.weights == "gguf"
        ):
            return []
        block = 2 * (8 * config.dim**2 + 2 * config.dim * config.ffn_dim) * self.held.dtype.itemsize
        left = self.decision.room - block - _OUTSIDE_BYTES
        largest = left // (_ACTIVATIONS * config.dim * self.held.dtype.itemsize)
        once = {(bucket.shape, bucket.batch): bucket for bucket in self.buckets}  # whatever passes they take
        frequent = sorted(once.values(), key=lambda bucket: -bucket.share)[:_MOST_SIZES]
        return [bucket for bucket in frequent if bucket.batch * num_tokens(bucket.shape, config.patch_size) <= largest]

    def run(self) -> int:
        """Make the steps; of how many sizes. peft has to be there."""
        sizes = self.sizes
        if not sizes:
            return 0
        model = self._model()
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        attention, *linears = kept_of(self.plan)
        kept = Kept(min(attention, 1), int(any(linears)))  # of one block
        plan = keeping(replace(self.plan, cuda_graphs="off"), kept)
        features = apply_features(model, plan, self.decision, tell=_silent, scratch=None)
        model.train()
        try:
            for bucket in sizes:
                latents, inputs = self._inputs(model.config, bucket)
                pred = model(*inputs, **images_of(model.config, latents))
                (pred.float() - latents).pow(2).mean().backward()
                for weight in trained:
                    weight.grad = None
        finally:
            features.reset()
            features.close()
        return len(sizes)

    def _model(self) -> WanTransformer:
        config = replace(self.decision.info.config, num_layers=1)
        model = blank_transformer(config, dtype=self.held.dtype, device=self.decision.device, linear=self.held.linear)
        add_adapter(model, self.adapter, seed=0)
        use_light_forward(model)
        return model

    def _inputs(self, config: WanConfig, bucket: Bucket) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Latents [B, C, F, H, W]; and the model's inputs: these, timesteps [B] or [B, F], context [B, S, D]."""
        device, batch = self.decision.device, bucket.batch
        latents = torch.zeros(batch, config.out_dim, *bucket.shape[1:], device=device)
        timesteps = torch.full((batch, bucket.shape[1]) if self.given_frames else (batch,), 500.0, device=device)
        return latents, (latents, timesteps, torch.zeros(batch, config.text_len, config.text_dim, device=device))


def images_of(config: WanConfig, latents: Tensor) -> dict[str, Tensor]:
    """What an image-to-video model is given besides, of zeros, for latents [B, C, F, H, W]."""
    given: dict[str, Tensor] = {}
    if config.conditioning_dim:
        given["conditioning"] = latents.new_zeros(len(latents), config.conditioning_dim, *latents.shape[2:])
    if config.image_dim is not None:
        tokens = config.image_positions or _IMAGE_TOKENS
        given["clip_features"] = latents.new_zeros(len(latents), tokens, config.image_dim)
    return given


def _silent(_sentence: str) -> None:
    """Whatever a plan says of itself, the run's own model says."""
