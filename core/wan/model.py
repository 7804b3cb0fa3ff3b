"""The Wan text-to-video transformer (Wan 2.1 T2V 1.3B and 14B, Wan 2.2 T2V-A14B), in pure PyTorch.

Shapes: B batch, C channels, F H W latent frames, height, width, L video tokens, S text tokens, D width, K head dim.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .config import WanConfig
from .layers import Head, WanBlock, compute_dtype, rope_table, run_layer, run_layers, sinusoidal_embedding

RunBlock = Callable[..., Tensor]  # (block, x, time_mod, rope, context) -> x

MAX_CACHED_GRIDS = 16  # rope tables kept per model; one of 81 frames at 480p is 16 MiB


def call_block(block: nn.Module, *inputs: Tensor) -> Tensor:
    """The default of `WanTransformer.run_block`: just call it."""
    return block(*inputs)


class WanTransformer(nn.Module):
    """Predicts the velocity (noise - latents) of noisy latents; parameter names are the official checkpoint's."""

    def __init__(self, config: WanConfig) -> None:
        """Raises ConfigError for a variant or sizes that this model cannot have."""
        super().__init__()
        check_config(config)
        self.config = config
        dim, eps = config.dim, config.eps
        patch_size = config.patch_size
        self.patch_embedding = nn.Conv3d(config.in_dim, dim, kernel_size=patch_size, stride=patch_size)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, dim * 6))
        self.blocks = nn.ModuleList(
            WanBlock(dim, config.ffn_dim, config.num_heads, eps) for _ in range(config.num_layers)
        )
        self.head = Head(dim, math.prod(patch_size) * config.out_dim, eps)
        self._seam = _Seam(call_block)
        self._rope_cache: OrderedDict[tuple[tuple[int, int, int], torch.device], Tensor] = OrderedDict()

    @property
    def run_block(self) -> RunBlock:
        """How a block is run: `run_block(block, x, time_mod, rope, context) -> x`, once per block, in order.

        Assign a callable to wrap it (checkpointing, swap). The block comes as an argument, so the callable may be
        shared: a deepcopy of the model keeps the same callable and passes its own blocks.
        """
        return self._seam.run_block

    @run_block.setter
    def run_block(self, run_block: RunBlock) -> None:
        self._seam = _Seam(run_block)

    def forward(self, latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """latents [B, C, F, H, W], timesteps [B] = 1000 * sigma, context [B, S, text_dim] -> [B, out_dim, F, H, W].

        The text is already padded with zeros to `text_len` rows. The result has the dtype of the head's weight.
        Raises ConfigError if the sizes do not fit the model.
        """
        check_inputs(self.config, latents, timesteps, context)
        x = run_layer(self.patch_embedding, latents)
        grid = (x.shape[2], x.shape[3], x.shape[4])
        x = x.flatten(2).transpose(1, 2)  # [B, L, D]

        # One timestep per sample; per-token timesteps would make the second axis L instead of 1.
        freqs = sinusoidal_embedding(timesteps.unsqueeze(1), self.config.freq_dim)  # [B, 1, freq_dim]
        time_emb = run_layers(self.time_embedding, freqs)  # [B, 1, D]
        time_mod = run_layers(self.time_projection, time_emb).unflatten(2, (6, -1))  # [B, 1, 6, D]
        context = run_layers(self.text_embedding, context)  # [B, S, D]

        dtype = self.dtype
        x, context = x.to(dtype).contiguous(), context.to(dtype)
        rope = self.rope(grid, x.device)
        for block in self.blocks:
            x = self.run_block(block, x, time_mod, rope, context)

        return self.unpatchify(self.head(x, time_emb), grid)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the residual stream: that of the block linears' arithmetic."""
        layer = self.get_submodule("blocks.0.self_attn.q")
        return compute_dtype(layer) or torch.float32

    def rope(self, grid: tuple[int, int, int], device: torch.device) -> Tensor:
        """Rotary table [2, L, K/2] of a token grid (F, H, W), fp32, kept for the grids used last."""
        key = (grid, device)
        if key not in self._rope_cache:
            # A table made in inference mode could not be saved for a later backward.
            with torch.inference_mode(False), torch.no_grad():
                table = rope_table(grid, self.config.dim // self.config.num_heads)
                self._rope_cache[key] = table.to(device)
        self._rope_cache.move_to_end(key)
        while len(self._rope_cache) > MAX_CACHED_GRIDS:
            self._rope_cache.popitem(last=False)
        return self._rope_cache[key]

    def unpatchify(self, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Tokens [B, L, prod(patch) * out_dim] back to a latent video [B, out_dim, F, H, W]."""
        patch_size = self.config.patch_size
        x = x.unflatten(2, (*patch_size, self.config.out_dim)).unflatten(1, grid)  # [B, f, h, w, p, q, r, C]
        x = x.permute(0, 7, 1, 4, 2, 5, 3, 6)  # [B, C, f, p, h, q, w, r]
        return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def check_config(config: WanConfig) -> None:
    """Raises ConfigError unless the model can be built from `config`."""
    if config.variant != "t2v":
        raise ConfigError(
            f"The Wan variant '{config.variant}' is not supported yet; only text-to-video ('t2v') models are: "
            "Wan 2.1 T2V 1.3B and 14B, Wan 2.2 T2V-A14B."
        )
    if config.num_heads < 1 or config.dim % (2 * config.num_heads):
        raise ConfigError(
            f"A width (dim) of {config.dim} cannot be split into {config.num_heads} heads of an even number of "
            "channels; check dim and num_heads of the model."
        )
    if config.num_layers < 1 or config.freq_dim % 2:
        raise ConfigError(
            f"A Wan model needs at least one layer and an even freq_dim, got num_layers {config.num_layers} and "
            f"freq_dim {config.freq_dim}."
        )


def check_inputs(config: WanConfig, latents: Tensor, timesteps: Tensor, context: Tensor) -> None:
    """Raises ConfigError unless the three inputs of `WanTransformer.forward` fit `config` and each other."""
    if latents.ndim != 5 or latents.shape[1] != config.in_dim:
        raise ConfigError(
            f"latents must have the shape [batch, {config.in_dim}, frames, height, width], got {list(latents.shape)}; "
            "encode the video with the VAE of this model."
        )
    for name, size, patch in zip(("frames", "height", "width"), latents.shape[2:], config.patch_size, strict=True):
        if size % patch or size == 0:
            raise ConfigError(
                f"The {name} of the latents must be a positive multiple of {patch}, got {size}; "
                "use a video size that is a multiple of 16 pixels."
            )
    if timesteps.shape != latents.shape[:1]:
        raise ConfigError(
            f"timesteps must have the shape [{latents.shape[0]}], one per sample, got {list(timesteps.shape)}."
        )
    batch_size, width = latents.shape[0], config.text_dim
    if context.ndim != 3 or context.shape[0] != batch_size or context.shape[2] != width:
        raise ConfigError(
            f"context must have the shape [{batch_size}, tokens, {width}], got {list(context.shape)}; "
            "encode the captions with the text encoder of this model."
        )
    if context.shape[1] > config.text_len:
        raise ConfigError(
            f"context has {context.shape[1]} text tokens, but the model takes at most {config.text_len}; "
            "cut the caption's tokens to that number."
        )


class _Seam:
    """Holds the callable so that deepcopy shares it: a copied model must not copy a swapper's buffers and streams."""

    def __init__(self, run_block: RunBlock) -> None:
        self.run_block = run_block

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Seam":
        return _Seam(self.run_block)
