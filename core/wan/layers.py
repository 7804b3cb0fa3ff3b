"""The parts of the Wan transformer (official: Wan2.2, wan/modules/model.py). Parameter names equal the checkpoint's.

Shapes: B batch, L video tokens, S text tokens, I image tokens, D width, N heads, K head dim, F H W token grid,
T timesteps per sample: 1 for the whole clip, or F, one per frame.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .ops import PLAIN, Ops, mark_self_attention, modulated_norm

ROPE_THETA = 10000.0
PARTS = ("self_attn", "cross_attn", "ffn")  # of a block, in order

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q [B, L, N, K], k and v [B, S, N, K] -> [B, L, N, K]


class WanBlock(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward; the first and last are modulated by the timestep."""

    def __init__(self, dim: int, ffn_dim: int, num_heads: int, eps: float, *, attends_image: bool = False) -> None:
        """`attends_image`: the cross-attention has a branch to the tokens of an image (Wan 2.1 I2V and FLF2V)."""
        super().__init__()
        self.eps = eps
        self.ops = PLAIN
        self.self_attn = SelfAttention(dim, num_heads, eps)
        self.norm3 = LayerNorm(dim, eps)
        self.cross_attn = CrossAttention(dim, num_heads, eps, attends_image=attends_image)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(ffn_dim, dim))
        self.modulation = modulation_parameter(6, dim)

    def forward(
        self, x: Tensor, time_mod: Tensor, rope: Tensor, context: Tensor, image_context: Tensor | None = None
    ) -> Tensor:
        """x [B, L, D], time_mod [B, T, 6, D], rope [2, L or B L, K/2], context [B, S, D] -> [B, L, D].

        `image_context` [B, I, D] goes with `attends_image`.
        """
        for part in PARTS:
            x = self.run_part(part, x, time_mod, rope, context, image_context)
        return x

    def run_part(
        self,
        part: str,
        x: Tensor,
        time_mod: Tensor,
        rope: Tensor,
        context: Tensor,
        image_context: Tensor | None = None,
    ) -> Tensor:
        """One of `PARTS`, added to x: what `forward` does, if each is given the result of the one before."""
        if part == "self_attn":
            return self._attend_video(x, time_mod, rope)
        if part == "cross_attn":
            x, y = self.norm3.branch(x)
            return x + self.cross_attn(y, context, image_context)
        assert part == "ffn"
        return self._feed_forward(x, time_mod)

    def _attend_video(self, x: Tensor, time_mod: Tensor, rope: Tensor) -> Tensor:
        shift, scale, gate = self._mods(time_mod, slice(0, 3))
        x, y = self.ops.modulated_norm(x, shift, scale, self.eps)
        y = self.self_attn(y, rope)
        return self.ops.gated_add(x, y, gate)

    def _feed_forward(self, x: Tensor, time_mod: Tensor) -> Tensor:
        shift, scale, gate = self._mods(time_mod, slice(3, 6))
        inner, _, outer = self.ffn
        x, y = self.ops.modulated_norm(x, shift, scale, self.eps)
        y = run_layer(inner, y)
        y = run_layer(outer, self.ops.gelu(y))
        return self.ops.gated_add(x, y, gate)

    def _mods(self, time_mod: Tensor, rows: slice) -> tuple[Tensor, ...]:
        """Shift, scale and gate [B, T, D] of one part, in fp32."""
        return (self.modulation[:, rows].float() + time_mod[:, :, rows].float()).unbind(2)


class SelfAttention(nn.Module):
    """Attention among the video tokens, with rotary positions."""

    def __init__(self, dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attend = Seam(attention)
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(dim, eps)
        self.norm_k = RMSNorm(dim, eps)

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        """x [B, L, D], rope [2, L or B L, K/2] -> [B, L, D]."""
        q, k, v = self.project(x)
        q_BLNK = mark_self_attention(self.norm_q.rotated(q, rope))
        k_BLNK = self.norm_k.rotated(k, rope)
        v_BLNK = v.unflatten(2, (self.num_heads, -1))
        return run_layer(self.o, self.attend(q_BLNK, k_BLNK, v_BLNK).flatten(2))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, L, D] -> queries, keys and values, each [B, L, D], before their norms."""
        return run_layer(self.q, x), run_layer(self.k, x), run_layer(self.v, x)


class CrossAttention(nn.Module):
    """Attention from the video tokens to the text tokens; no mask: the zero padding takes part, as in training.

    With `attends_image`, attention by the same queries to the tokens of an image is added before the output projection.
    """

    def __init__(self, dim: int, num_heads: int, eps: float, *, attends_image: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attend = Seam(attention)
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(dim, eps)
        self.norm_k = RMSNorm(dim, eps)
        if attends_image:
            self.k_img = nn.Linear(dim, dim)
            self.v_img = nn.Linear(dim, dim)
            self.norm_k_img = RMSNorm(dim, eps)

    def forward(self, x: Tensor, context: Tensor, image_context: Tensor | None = None) -> Tensor:
        """x [B, L, D], context [B, S, D], image_context [B, I, D] -> [B, L, D]."""
        q_BLNK = self.norm_q(run_layer(self.q, x)).unflatten(2, (self.num_heads, -1))
        k_BSNK = self.norm_k(run_layer(self.k, context)).unflatten(2, (self.num_heads, -1))
        v_BSNK = run_layer(self.v, context).unflatten(2, (self.num_heads, -1))
        y = self.attend(q_BLNK, k_BSNK, v_BSNK)
        if image_context is not None:
            k_BINK = self.norm_k_img(run_layer(self.k_img, image_context)).unflatten(2, (self.num_heads, -1))
            v_BINK = run_layer(self.v_img, image_context).unflatten(2, (self.num_heads, -1))
            y = y + self.attend(q_BLNK, k_BINK, v_BINK)
        return run_layer(self.o, y.flatten(2))


class StoredLinear(nn.Linear):
    """A linear layer that computes in the dtype of its bias, whatever its weight is kept in.

    For the layers outside of the blocks, which compute in fp32: their weights, 0.9 GB of it in the 14B model, may stay in the
    16 bits of their file. Each is used once in a forward.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] in the bias' dtype -> [..., out]."""
        return functional.linear(input, self.weight.to(self.bias.dtype), self.bias)


class ImageEmbedding(nn.Module):
    """Tokens of CLIP's vision encoder, from its width to the transformer's; with learned positions in FLF2V."""

    def __init__(self, image_dim: int, dim: int, num_positions: int | None) -> None:
        super().__init__()
        eps = 1e-5  # PyTorch's default, not the transformer's
        self.proj = nn.Sequential(
            LayerNorm(image_dim, eps),
            StoredLinear(image_dim, image_dim),
            nn.GELU(),
            StoredLinear(image_dim, dim),
            LayerNorm(dim, eps),
        )
        # The two frames of FLF2V are told apart by nothing else.
        self.emb_pos = None if num_positions is None else nn.Parameter(torch.zeros(1, num_positions, image_dim))

    def forward(self, clip_features: Tensor) -> Tensor:
        """[B, I, image_dim] -> [B, I, D]; I is the number of positions where there are any."""
        x = clip_features.float()
        if self.emb_pos is not None:
            x = x + self.emb_pos.float()
        return run_layers(self.proj, x)


class Head(nn.Module):
    """Modulated norm and projection of each token to the pixels of its latent patch."""

    def __init__(self, dim: int, out_features: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.head = StoredLinear(dim, out_features)
        self.modulation = modulation_parameter(2, dim)

    def forward(self, x: Tensor, time_emb: Tensor) -> Tensor:
        """x [B, L, D], time_emb [B, T, D] -> [B, L, out_features], in the dtype of the head's bias."""
        shift, scale = (self.modulation.float() + time_emb.float().unsqueeze(2)).unbind(2)  # two of [B, T, D]
        # float: the head is few FLOPs, and its input need not be rounded to the residual stream's dtype first.
        return run_layer(self.head, modulated_norm(x.float(), shift, scale, self.eps))


class RMSNorm(nn.Module):
    """Over the full width (all heads together); statistics and scale in fp32, result in the input's dtype."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.ops = PLAIN
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.rms_norm(x, self.weight, self.eps)

    def rotated(self, x: Tensor, rope: Tensor) -> Tensor:
        """x [B, L, D], rope [2, L or B L, K/2] -> its norm, each head of it rotated [B, L, N, K]."""
        return self.ops.rms_rope(x, self.weight, self.eps, rope)


class LayerNorm(nn.Module):
    """With weight and bias; all of it in fp32, result in the input's dtype."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.ops = PLAIN
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x)[1]

    def branch(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x, for the residual stream, and its norm."""
        return self.ops.layer_norm(x, self.weight, self.bias, self.eps)


class Seam:
    """Holds a callable so that deepcopy shares it: a copied model must not copy a swapper's buffers and streams."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Tensor:
        return self.function(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Seam":
        return self


def set_ops(blocks: nn.Module, ops: Ops) -> None:
    """Let all parts of the blocks compute with `ops`."""
    for module in blocks.modules():
        if isinstance(module, WanBlock | RMSNorm | LayerNorm):
            module.ops = ops


def modulation_parameter(num_rows: int, dim: int) -> nn.Parameter:
    """[1, num_rows, D] with the standard deviation 1/sqrt(D) of the official initialization.

    Uniform, not normal: torch 2.11 draws normal numbers on the meta device in Python and imports sympy for it (10 s).
    """
    bound = (3 / dim) ** 0.5
    return nn.Parameter(torch.empty(1, num_rows, dim).uniform_(-bound, bound))


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention without a mask, by the backend that PyTorch chooses; `WanTransformer.attend` may replace it.

    q [B, L, N, K], k and v [B, S, N, K] -> [B, L, N, K].
    """
    q_BNLK, k_BNSK, v_BNSK = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return functional.scaled_dot_product_attention(q_BNLK, k_BNSK, v_BNSK).transpose(1, 2)


def rope_table(grid: tuple[int, int, int], head_dim: int) -> Tensor:
    """Cosines and sines [2, F*H*W, K/2] of the rotary angles, fp32 on the CPU, tokens in (f, h, w) order.

    The K/2 pairs of a head are split among the axes as the official rope_params does: for K = 128, 22 for f and
    21 each for h and w. Angles are computed in fp64: in fp32 they lose digits that fp32 attention would show.
    """
    spatial_dim = 2 * (head_dim // 6)
    axis_dims = (head_dim - 2 * spatial_dim, spatial_dim, spatial_dim)
    angles = []
    for axis, (length, axis_dim) in enumerate(zip(grid, axis_dims, strict=True)):
        exponents = torch.arange(0, axis_dim, 2, dtype=torch.float64, device="cpu") / axis_dim
        positions = torch.arange(length, dtype=torch.float64, device="cpu")
        angle = torch.outer(positions, ROPE_THETA**-exponents)  # [length, axis_dim/2]
        shape = [1, 1, 1, axis_dim // 2]
        shape[axis] = length
        angles.append(angle.view(shape).expand(*grid, -1))
    angle_LK = torch.cat(angles, dim=-1).reshape(math.prod(grid), head_dim // 2)
    return torch.stack([angle_LK.cos(), angle_LK.sin()]).float()


def sinusoidal_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """[any shape] -> [any shape, dim]: cosines, then sines, of the timestep times dim/2 frequencies; fp32."""
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device).div(half)
    angles = timesteps.float().unsqueeze(-1) * torch.pow(10000.0, -exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def run_layers(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """The layers of an nn.Sequential in turn, each through `run_layer`."""
    for layer in layers:
        x = run_layer(layer, x)
    return x


def run_layer(layer: nn.Module, x: Tensor) -> Tensor:
    """Call `layer` with its input in the layer's own compute dtype: parts of one model differ in precision."""
    dtype = compute_dtype(layer)
    return layer(x if dtype is None else x.to(dtype))


def compute_dtype(layer: nn.Module) -> torch.dtype | None:
    """Dtype of the layer's arithmetic; None if it has no parameter that tells.

    The bias tells where there is one: a weight may be stored in another dtype.
    """
    for name in ("bias", "weight"):
        parameter = getattr(layer, name, None)
        if isinstance(parameter, Tensor) and parameter.is_floating_point() and parameter.element_size() > 1:
            return parameter.dtype
    return None
