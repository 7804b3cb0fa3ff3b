"""The element-wise arithmetic of a block, in plain PyTorch; `WanTransformer.ops` may replace it by faster code.

Shapes: B batch, L tokens, D width, N heads, K head dim, T timesteps per sample: 1 for the whole clip, or one per frame.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class Ops:
    """Statistics and scales in fp32, results in the dtype of x, rounded once.

    A norm at which a branch leaves the residual stream gives x back too, for the stream to go on with: so whoever computes
    the norm's gradient can add the stream's to it.
    """

    def modulated_norm(self, x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """x, and LayerNorm(x) * (1 + scale) + shift; x [B, L, D], shift and scale [B, T, D] fp32."""
        return x, modulated_norm(x, shift, scale, eps)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """x, and LayerNorm(x) * weight + bias; x [..., D], weight and bias [D]."""
        weight, bias = weight.float(), bias.float()
        return x, functional.layer_norm(x.float(), weight.shape, weight, bias, eps).to(x.dtype)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / sqrt(mean of squares + eps) * weight; x [..., D], weight [D]."""
        return functional.rms_norm(x.float(), weight.shape, weight.float(), eps).to(x.dtype)

    def rms_rope(self, x: Tensor, weight: Tensor, eps: float, rope: Tensor) -> Tensor:
        """`rms_norm` over the full width, then the rotation of each head.

        x [B, L, D], rope [2, L, K/2] or [2, B L, K/2] -> [B, L, N, K].
        """
        return apply_rope(self.rms_norm(x, weight, eps).unflatten(2, (-1, 2 * rope.shape[2])), rope)

    def gated_add(self, x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
        """x + y * gate; x and y [B, L, D], gate [B, T, D] fp32."""
        return gated_add(x, y, gate)

    def gelu(self, x: Tensor) -> Tensor:
        """GELU in its approximation by tanh; x of any shape."""
        return functional.gelu(x, approximate="tanh")

    def __deepcopy__(self, memo: dict[int, Any]) -> "Ops":
        """A copied model has the same."""
        return self


PLAIN = Ops()
SELF_ATTENTION = "aten::alias"  # the operator that `mark_self_attention` calls, as the dispatcher names it


def mark_self_attention(q: Tensor) -> Tensor:
    """A view of the queries of a self-attention, made by an operator that nothing else in a block calls.

    Who watches the operators, as selective recompute does, knows by it that the attention that follows is
    self-attention. Shapes would not tell: an image of 512 tokens attends to as many tokens of text. It costs no kernel,
    and passes through torch.compile.
    """
    return torch.ops.aten.alias(q)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """LayerNorm(x) * (1 + scale) + shift in fp32, result in x's dtype; x [B, L, D], shift and scale [B, T, D]."""
    normed = by_timestep(functional.layer_norm(x.float(), x.shape[-1:], eps=eps), shift.shape[1])
    return torch.addcmul(shift.unsqueeze(2), normed, 1 + scale.unsqueeze(2)).flatten(1, 2).to(x.dtype)


def gated_add(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x + y * gate in fp32, result in x's dtype; x and y [B, L, D], gate [B, T, D]."""
    x_BTLD, y_BTLD = by_timestep(x.float(), gate.shape[1]), by_timestep(y.float(), gate.shape[1])
    return torch.addcmul(x_BTLD, y_BTLD, gate.unsqueeze(2)).flatten(1, 2).to(x.dtype)


def by_timestep(x: Tensor, num: int) -> Tensor:
    """View of x [B, L, D] as [B, T, L/T, D]: the tokens of a frame lie together, and modulations [B, T, 1, D] broadcast.

    One row per token would be gigabytes at the length of a video.
    """
    return x.unflatten(1, (num, -1))


def apply_rope(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate the pairs of neighbouring channels of x [B, L, N, K], in fp32; result in x's dtype.

    rope: [2, L, K/2], or [2, B L, K/2] where each sample has tokens of its own.
    """
    rope = rope.unflatten(1, (-1, x.shape[1]))  # [2, 1 or B, L, K/2]
    if torch.compiler.is_compiling():
        return _rotate_by_swap(x, rope)
    cos, sin = rope.unsqueeze(3).unbind(0)  # [1 or B, L, 1, K/2]
    # Halves are cast, not the whole: no fp32 copy of x is then written, nor of its gradient.
    even, odd = (half.float() for half in x.unflatten(-1, (-1, 2)).unbind(-1))
    rotated = [(even * cos - odd * sin).to(x.dtype), (even * sin + odd * cos).to(x.dtype)]
    return torch.stack(rotated, dim=-1).flatten(-2)


def _rotate_by_swap(x: Tensor, rope: Tensor) -> Tensor:
    """`apply_rope` as x cos + swap(x) (-sin, sin), which a compiler makes one pass of, together with the norm before it.

    The halves it writes one by one, and stacks them in a pass of its own (torch 2.11: 2.3 times the time). Uncompiled, this
    one has 8.25 times the bytes of x at its peak, in 16 bits, and the halves 5.5.
    """
    cos, sin = rope[:, :, :, None, :, None].unbind(0)  # [1 or B, L, 1, K/2, 1]
    pairs = x.unflatten(-1, (-1, 2)).float()
    signs = torch.arange(-1, 2, 2, device=x.device)
    return (pairs * cos + pairs.flip(-1) * (sin * signs)).flatten(-2).to(x.dtype)
