"""The shape of a Wan transformer. Field names follow the official configuration (Wan2.2, wan/configs)."""

from dataclasses import dataclass
from typing import Literal

from ..facts import PATCH, TEXT_TOKENS, LatentFormat, latent_format

Variant = Literal["t2v", "i2v", "flf2v", "ti2v", "vace", "fun_control", "other"]

TRAINABLE: tuple[Variant, ...] = ("t2v", "i2v", "flf2v", "ti2v")  # the variants that WanTransformer can be
MASK_CHANNELS = 4  # of the conditioning: one for each pixel frame of a latent frame


@dataclass(frozen=True, kw_only=True)
class WanConfig:
    """Sizes of the transformer; detected from a checkpoint by `core.wan.checkpoint.inspect`."""

    variant: Variant = "t2v"
    dim: int = 5120
    ffn_dim: int = 13824
    num_heads: int = 40
    num_layers: int = 40
    in_dim: int = 16
    out_dim: int = 16
    text_dim: int = 4096
    text_len: int = TEXT_TOKENS
    freq_dim: int = 256
    patch_size: tuple[int, int, int] = (1, PATCH, PATCH)
    eps: float = 1e-6
    image_dim: int | None = None  # width of the CLIP features, 1280 in Wan 2.1 I2V and FLF2V; None: takes none
    image_positions: int | None = None  # learned positions of CLIP tokens: 2 x 257 in FLF2V; None: has none

    @property
    def conditioning_dim(self) -> int:
        """Channels that follow the noisy latents in the input: 20 (mask, image latents) in I2V and FLF2V, else 0."""
        return self.in_dim - self.out_dim

    @property
    def latent_format(self) -> LatentFormat:
        """Which VAE the model was trained with: told by the number of channels it predicts."""
        return latent_format(self.out_dim)
