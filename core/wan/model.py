"""The Wan video transformer, in pure PyTorch.

T2V (Wan 2.1 1.3B and 14B, Wan 2.2 A14B), I2V (Wan 2.1 14B with CLIP, Wan 2.2 A14B without), FLF2V (Wan 2.1 14B), and
TI2V (Wan 2.2 5B). Fun-InP has the weights of I2V, and is one here.

Shapes: B batch, C channels, F H W latent frames, height, width, L video tokens, S text tokens, I image tokens, D width,
K head dim, T timesteps per sample: 1 for the whole clip, or F, one per frame.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from ..routes import Route
from .checks import check_config, check_inputs
from .config import WanConfig
from .layers import (
    Attend,
    CrossAttention,
    Head,
    ImageEmbedding,
    Seam,
    SelfAttention,
    StoredLinear,
    WanBlock,
    attention,
    compute_dtype,
    rope_table,
    run_layer,
    run_layers,
    set_ops,
    sinusoidal_embedding,
)
from .ops import PLAIN, Ops
from .walk import Look, Walk

# (block, x, time_mod, rope, context[, image_context]) -> x; for a part of a block, its name comes after x.
RunBlock = Callable[..., Tensor]


class TokenShare(Protocol):
    """Which of a sample's tokens the blocks run on, where others run on the rest; `core.parallel.context` has one."""

    def split(self, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """x [any, L, ...], the tokens of a grid (F, H, W), frame by frame -> those of them that are run on here.

        Of each frame there are as many, so that modulations [B, F, 6, D] stay as they are.
        """
        ...

    def gather(self, x: Tensor) -> Tensor:
        """The tokens that were run on here -> all of them [B, L, D]."""
        ...

    def attending(self, attend: Attend) -> Attend:
        """`attend` for the tokens here, as queries, to all of the sample's."""
        ...


MAX_CACHED_GRIDS = 16  # rope tables kept per model; one of 81 frames at 480p is 16 MiB


def kept_sizes(routes: Sequence[Route], grid: tuple[int, int, int], *, by_frame: bool) -> list[int]:
    """Tokens of a grid (F, H, W) that pass the blocks of each route; `by_frame`: of each frame as many (see `Route`)."""
    return [route.num_kept(grid[0], grid[1] * grid[2], by_frame=by_frame) for route in routes]


def call_block(block: nn.Module, *inputs: Tensor) -> Tensor:
    """The default of `WanTransformer.run_block`: just call it."""
    return block(*inputs)


def call_part(block: nn.Module, x: Tensor, part: str, *others: Tensor) -> Tensor:
    """One of `PARTS` of a block; `others` are the inputs of the block but x."""
    assert isinstance(block, WanBlock)
    return block.run_part(part, x, *others)


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
            StoredLinear(config.text_dim, dim), nn.GELU(approximate="tanh"), StoredLinear(dim, dim)
        )
        self.time_embedding = nn.Sequential(StoredLinear(config.freq_dim, dim), nn.SiLU(), StoredLinear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), StoredLinear(dim, dim * 6))
        self.img_emb: ImageEmbedding | None = None
        if config.image_dim is not None:
            self.img_emb = ImageEmbedding(config.image_dim, dim, config.image_positions)
        self.blocks = nn.ModuleList(
            WanBlock(dim, config.ffn_dim, config.num_heads, eps, attends_image=config.image_dim is not None)
            for _ in range(config.num_layers)
        )
        self.head = Head(dim, math.prod(patch_size) * config.out_dim, eps)
        self.rank_gate: nn.Module | None = None  # of an adapter that depends on the noise: it is told the timesteps
        self.routes: tuple[
            Route, ...
        ] = ()  # past some blocks, for the tokens that a forward's `kept_tokens` leaves out
        self.look: Look | None = None  # at what one block gives
        self._run_block = Seam(call_block)
        self._tokens: TokenShare | None = None
        self.attend = attention
        self._ops = PLAIN
        self._rope_cache: OrderedDict[tuple[tuple[int, int, int], torch.device], Tensor] = OrderedDict()

    @property
    def run_block(self) -> RunBlock:
        """How a block is run: `run_block(block, x, time_mod, rope, context) -> x`, once per block, in order.

        rope: [2, L, K/2], or [2, B L, K/2] where samples have other tokens (see `Walk`).
        In a model that takes CLIP features, `image_context` follows `context`. Assign a callable to wrap it
        (checkpointing, swap). The block comes as an argument, so the callable may be shared: a deepcopy of the model
        keeps the same callable and passes its own blocks.
        """
        return self._run_block.function

    @run_block.setter
    def run_block(self, run_block: RunBlock) -> None:
        self._run_block = Seam(run_block)

    @property
    def attend(self) -> Attend:
        """Attention without a mask, of all blocks: q [B, L, N, K], k and v [B, S, N, K] -> [B, L, N, K].

        A deepcopy of the model keeps the same callable. Assign one to choose another backend.
        """
        return self._attend.function

    @attend.setter
    def attend(self, attend: Attend) -> None:
        self._attend = Seam(attend)
        for module in self.blocks.modules():
            if isinstance(module, CrossAttention):
                module.attend = self._attend
        self.set_video_attend(attend)

    @property
    def tokens(self) -> TokenShare | None:
        """Which of a sample's tokens the blocks run on; None: all. Assign before what wraps the attention again."""
        return self._tokens

    @tokens.setter
    def tokens(self, tokens: TokenShare | None) -> None:
        self._tokens = tokens
        self.set_video_attend(self.attend)

    def set_video_attend(self, attend: Attend) -> None:
        """Let self-attention alone go by `attend`, which is given all tokens where they are shared (`tokens`)."""
        seam = Seam(attend) if self._tokens is None else Seam(self._tokens.attending(attend))
        for module in self.blocks.modules():
            if isinstance(module, SelfAttention):
                module.attend = seam

    @property
    def ops(self) -> Ops:
        """The element-wise arithmetic of all blocks; a deepcopy of the model keeps it. Assign others for faster code."""
        return self._ops

    @ops.setter
    def ops(self, ops: Ops) -> None:
        self._ops = ops
        set_ops(self.blocks, ops)

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        context: Tensor,
        *,
        conditioning: Tensor | None = None,
        clip_features: Tensor | None = None,
        kept_tokens: Tensor | None = None,
    ) -> Tensor:
        """latents [B, out_dim, F, H, W] (noisy), context [B, S, text_dim] -> velocity [B, out_dim, F, H, W].

        timesteps: [B] = 1000 * sigma, or [B, F] where frames differ. TI2V is given its first frame in this way: clean
        in `latents`, with the timestep 0. One per frame, as ComfyUI has them, not one per token: modulations are then
        [B, F, 6, D], whereas [B, L, 6, D] would take 2 GB at 121 frames of 1280 x 704.
        conditioning: [B, conditioning_dim, F, H, W], for I2V and FLF2V alone: 4 mask channels, then the latents of the
        given frames and grey.
        clip_features: [B, I, image_dim], where the model takes them: CLIP's penultimate layer, 257 tokens of the first
        frame; in FLF2V followed by those of the last.
        kept_tokens: [B, N], for training with `routes` (TREAD): the numbers of the video tokens that pass the blocks of each
        route, route by route (see `kept_sizes`); the others go past them. None: all tokens pass all blocks.
        The text is already padded with zeros to `text_len` rows. The result has the dtype of the head's bias.
        Raises ConfigError if an input is missing, is not one of this variant, or has the wrong size.
        """
        check_inputs(self.config, latents, timesteps, context, conditioning=conditioning, clip_features=clip_features)
        if conditioning is not None:
            latents = torch.cat([latents, conditioning], dim=1)
        x = run_layer(self.patch_embedding, latents)
        grid = (x.shape[2], x.shape[3], x.shape[4])
        x = x.flatten(2).transpose(1, 2)  # [B, L, D]
        rope = self.rope(grid, x.device)
        if self._tokens is not None:
            x, rope = self._tokens.split(x, grid), self._tokens.split(rope, grid)

        timesteps = timesteps if timesteps.ndim == 2 else timesteps.unsqueeze(1)  # [B, T]
        if self.rank_gate is not None:
            self.rank_gate(timesteps)
        freqs = sinusoidal_embedding(timesteps, self.config.freq_dim)  # [B, T, freq_dim]
        time_emb = run_layers(self.time_embedding, freqs)  # [B, T, D]
        time_mod = run_layers(self.time_projection, time_emb).unflatten(2, (6, -1))  # [B, T, 6, D]
        contexts = [run_layers(self.text_embedding, context)]  # [B, S, D]
        if self.img_emb is not None and clip_features is not None:
            contexts.append(self.img_emb(clip_features))  # [B, I, D]

        dtype = self.dtype
        x, contexts = x.to(dtype).contiguous(), [tokens.to(dtype) for tokens in contexts]
        walk = Walk(rope, self.look)
        if kept_tokens is not None:
            walk.take(self.routes, kept_tokens, kept_sizes(self.routes, grid, by_frame=time_mod.shape[1] > 1))
        for number, block in enumerate(self.blocks):
            x, positions = walk.before(number, x)
            x = self.run_block(block, x, time_mod, positions, *contexts)
            x = walk.after(number, x)

        x = self.head(x, time_emb)
        if self._tokens is not None:
            x = self._tokens.gather(x)
        return self.unpatchify(x, grid)

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

    @property
    def rope_tables(self) -> tuple[Tensor, ...]:
        """Those that are kept now."""
        return tuple(self._rope_cache.values())

    def unpatchify(self, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Tokens [B, L, prod(patch) * out_dim] back to a latent video [B, out_dim, F, H, W]."""
        patch_size = self.config.patch_size
        x = x.unflatten(2, (*patch_size, self.config.out_dim)).unflatten(1, grid)  # [B, f, h, w, p, q, r, C]
        x = x.permute(0, 7, 1, 4, 2, 5, 3, 6)  # [B, C, f, p, h, q, w, r]
        return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)
