"""A frozen linear layer whose weight stays in GGUF's blocks."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .types import QUANTS, dequantize


class QuantizedLinear(nn.Module):
    """A frozen linear layer whose weight stays in blocks; the numbers exist only during a product.

    `weight` is a buffer [num_blocks, bytes of a block] uint8 under the name that a plain weight has; the bias tells the
    compute dtype, as `compute_dtype` expects. Gradients reach the input and nothing else.
    """

    weight: Tensor
    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, quant: str, *, bias: bool, device: torch.device) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.quant = quant
        kind = QUANTS[quant]
        num_blocks = in_features * out_features // kind.block_size
        self.register_buffer("weight", torch.empty(num_blocks, kind.num_bytes, dtype=torch.uint8, device=device))
        values = torch.empty(out_features, device=device) if bias else None
        self.bias = None if values is None else nn.Parameter(values, requires_grad=False)

    def matrix(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight that this layer means, [out, in]."""
        return _matrix(self.weight, self.quant, self.in_features, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] in the bias' dtype -> [..., out]."""
        # Where there is nothing to differentiate, torch.compile (2.11) cannot trace an autograd function with a context.
        if not (torch.is_grad_enabled() and x.requires_grad):
            return functional.linear(x, _matrix(self.weight, self.quant, self.in_features, x.dtype), self.bias)
        y = _QuantProduct.apply(x, self.weight, self.bias, self.quant)
        assert isinstance(y, Tensor)
        return y

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, quant={self.quant}"


def keep_quantized(model: nn.Module, name: str, quant: str) -> None:
    """Replace the nn.Linear `name` of `model` by a QuantizedLinear of the same size; its tensors are not filled."""
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    layer = QuantizedLinear(
        linear.in_features,
        linear.out_features,
        quant,
        bias=linear.bias is not None,
        device=linear.weight.device,
    )
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


class _QuantProduct(torch.autograd.Function):
    """x @ W.T + b, which keeps the blocks for the backward instead of W (a product in torch keeps W itself)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: Tensor, bias: Tensor | None, quant: str) -> Tensor:
        ctx.save_for_backward(blocks)
        ctx.quant, ctx.in_features = quant, x.shape[-1]
        return functional.linear(x, _matrix(blocks, quant, x.shape[-1], x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (blocks,) = ctx.saved_tensors
        (grad,) = grads
        return grad @ _matrix(blocks, ctx.quant, ctx.in_features, grad.dtype), None, None, None


def _matrix(blocks: Tensor, quant: str, in_features: int, dtype: torch.dtype) -> Tensor:
    return dequantize(blocks, quant, (-1, in_features), dtype)
