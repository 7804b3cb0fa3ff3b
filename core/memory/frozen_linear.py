"""A frozen linear layer that keeps its weight in another form than the one it computes in.

Legend of shapes: N out_features, K in_features, M rows of the input (all its leading axes together).
"""

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

LayerShape = tuple[int, int]  # (out_features, in_features)
Dequantize = Callable[..., Tensor]  # (dtype, shape, *frozen tensors) -> [N, K] in dtype


class MakeLinear(Protocol):
    """Makes the layer that stands for one linear of the base, as the loader of checkpoints calls it."""

    def __call__(
        self, name: str, weight: Tensor, scale: Tensor | None, *, dtype: torch.dtype, bias: nn.Parameter | None
    ) -> nn.Module | None:
        """`weight` [N, K] as its file stores it, on the device where the layer will be, times `scale` [N or 1, 1] fp32.

        `dtype` is that of the arithmetic. `bias` is what the layer shall carry; its values may come later. None: this
        format does not cover the layer, which stays a plain one.
        """
        ...


class FrozenLinear(nn.Module):
    """x @ W.T + b, where W is computed from frozen tensors in the forward and again in the backward, never kept.

    A subclass registers its tensors as buffers under the names in `frozen` and turns them into W by `dequantize`. One
    is called `weight`, as in a plain layer; its elements have 8 bits, so that the bias tells the compute dtype.
    Gradients reach the input and nothing else.
    """

    frozen: ClassVar[tuple[str, ...]] = ("weight",)
    bias: nn.Parameter | None

    def __init__(self, shape: LayerShape, tensors: dict[str, Tensor], bias: nn.Parameter | None) -> None:
        """`tensors` by the names in `frozen`, on the device of the layer."""
        super().__init__()
        self.out_features, self.in_features = shape
        for name in self.frozen:
            self.register_buffer(name, tensors[name].detach().contiguous())
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @staticmethod
    def dequantize(dtype: torch.dtype, shape: LayerShape, *tensors: Tensor) -> Tensor:
        """W [N, K] in `dtype`, from the frozen tensors in their order."""
        raise NotImplementedError

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(self._buffers[name] for name in self.frozen)  # type: ignore[misc]  # quicker than get_buffer

    def matrix(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight that this layer means, [N, K]."""
        return self.dequantize(dtype, (self.out_features, self.in_features), *self.tensors)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] in the bias' dtype -> [..., N]."""
        # Where there is nothing to differentiate, torch.compile (2.11) cannot trace an autograd function with a context.
        if not (torch.is_grad_enabled() and x.requires_grad):
            return functional.linear(x, self.matrix(x.dtype), self.bias)
        y = _Product.apply(x, self.bias, self.dequantize, (self.out_features, self.in_features), *self.tensors)
        assert isinstance(y, Tensor)
        return y

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> "FrozenLinear":
        """Moves all tensors; a change of dtype, such as `.half()`, is one of the arithmetic and reaches the bias alone.

        Frozen tensors pass as bytes, because `nn.Module.to` would cast scales and fp8 numbers like any other.
        """
        dtypes = {name: self.get_buffer(name).dtype for name in self.frozen}
        for name in self.frozen:
            self._buffers[name] = self.get_buffer(name).view(torch.uint8)
        super()._apply(fn, recurse)
        for name, dtype in dtypes.items():
            self._buffers[name] = self.get_buffer(name).view(dtype)
        return self

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class _Product(torch.autograd.Function):
    """Keeps the frozen tensors for the backward instead of W (a product in torch keeps W itself)."""

    @staticmethod
    def forward(x: Tensor, bias: Tensor | None, dequantize: Dequantize, shape: LayerShape, *frozen: Tensor) -> Tensor:
        return functional.linear(x, dequantize(x.dtype, shape, *frozen), bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        _, _, ctx.dequantize, ctx.shape, *frozen = inputs
        ctx.save_for_backward(*frozen)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        frozen = ctx.saved_tensors  # under checkpointing they may be asked for once
        weight = ctx.dequantize(grad.dtype, ctx.shape, *frozen)
        return grad @ weight, *(None for _ in range(3 + len(frozen)))


class RowScaledLinear(FrozenLinear):
    """`weight` [N, K] of 8 bits times `scale` [N or 1, 1] fp32."""

    frozen: ClassVar[tuple[str, ...]] = ("weight", "scale")

    @staticmethod
    def dequantize(dtype: torch.dtype, shape: LayerShape, *tensors: Tensor) -> Tensor:  # noqa: ARG004
        """The product is taken in fp32 and rounded once to `dtype`."""
        weight, scale = tensors
        if dtype == torch.float32:  # nothing is rounded: in the memory of the first matrix
            return weight.to(dtype).mul_(scale)
        # Every fp8 and int8 number is exact in 16 bits; `out` spares the fp32 matrix that promotion would make.
        return torch.mul(weight.to(dtype), scale, out=torch.empty_like(weight, dtype=dtype))


def true_values(weight: Tensor, scale: Tensor | None) -> Tensor:
    """The numbers that a stored weight means, fp32."""
    return weight.float() if scale is None else weight.float() * scale
