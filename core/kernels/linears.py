"""Products of linear layers whose weights have 8 bits, with the kernels of `rows`.

Legend: M rows of activations, N out_features, K in_features.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..memory.frozen_linear import RowScaledLinear
from ..memory.precisions.fp8_compute import Fp8ComputeLinear, multiply
from ..memory.products import PART, DenseProduct, Product, dense_product
from ..torch_compat import version_of
from ..wan.layers import WanBlock
from .ops import KernelOps
from .rows import Rows, ScaledRows, dequantize_rows, new_rows, quantize_rows, transposed
from .scratch import Scratch


def make_product(layer: nn.Module, ops: KernelOps) -> Product | None:
    """As `dense_product`, faster for 8 bits. `ops` is the block's, which may have a layer's input in e4m3 already."""
    if isinstance(layer, Fp8ComputeLinear):
        return Fp8Product(layer, ops)
    return RowScaledProduct(layer, ops.scratch) if isinstance(layer, RowScaledLinear) else dense_product(layer)


class RowScaledProduct(DenseProduct):
    """The weight is brought into the compute dtype in one pass, in memory that is all layers'."""

    def __init__(self, layer: RowScaledLinear, scratch: Scratch) -> None:
        super().__init__(layer)
        self._scaled, self._scratch = layer, scratch
        self._shape = (layer.out_features, layer.in_features)
        scratch.expect(self._shape, layer.bias.dtype if layer.bias is not None else torch.bfloat16)

    def _matrix(self, dtype: torch.dtype) -> Tensor:
        tensors = self._scaled.tensors
        return dequantize_rows(*tensors, out=self._scratch.take(self._shape, dtype, tensors[0].device))


class Fp8Product:
    """What `Fp8ComputeLinear` does, with the quantizing of rows and the transposing of the weight in one pass each."""

    def __init__(self, layer: Fp8ComputeLinear, ops: KernelOps) -> None:
        self._layer, self._ops = layer, ops
        self._ones: Tensor | None = None
        self._kept: Transposed | None = None
        ops.scratch.expect((layer.in_features, layer.out_features), layer.tensors[0].dtype)

    @property
    def weight(self) -> Tensor:
        """[N, K] e4m3."""
        return self._layer.tensors[0]

    def forward(self, x: Tensor) -> Tensor:
        """See `Product`."""
        layer = self._layer
        weight, scale = layer.tensors
        rows, row_scale = self._ops.rows(x)
        y = multiply(rows, weight.t(), row_scale, scale.t(), layer.bias, kernel=layer.kernel, fast=True)
        return y.to(x.dtype)

    def gradient(self, grad: Tensor, onto: Tensor | None) -> Tensor:
        """See `Product`."""
        return self.gradient_by(quantize_rows(grad.contiguous(), self._layer.tensors[1]), onto, grad.dtype)

    def rows_for(self, grad: Tensor) -> ScaledRows:
        """Memory for a gradient [.., N] like this one as `gradient_by` takes it, for the kernel that makes the gradient."""
        return ScaledRows(self._layer.tensors[1], *new_rows(grad))

    def gradient_by(self, grad: Rows, onto: Tensor | None, dtype: torch.dtype) -> Tensor:
        """As `gradient`, in `dtype`; the gradient of the result times the weight's scales is there in 8 bits."""
        weight, scale = self._layer.tensors
        rows, row_scale = grad
        if self._ones is None or self._ones.device != weight.device:
            self._ones = scale.new_ones(1, weight.shape[1])
        # Full accumulation: the sums over N are of gradients, which have no norm in front that bounds them.
        found = multiply(rows, self._transposed(weight), row_scale, self._ones, kernel=self._layer.kernel, fast=False)
        return found.to(dtype) if onto is None else onto.add_(found)

    def keep_transposed(self, memory: Tensor) -> None:
        """Hold the weight column by column in so many bytes, from now on."""
        self._kept = Transposed(self.weight, memory)

    def _transposed(self, weight: Tensor) -> Tensor:
        if self._kept is not None:
            return self._kept.of(weight)
        return transposed(weight, out=self._ops.scratch.take(weight.shape[::-1], weight.dtype, weight.device))


class Transposed:
    """A weight of 8 bits column by column, beside the weight itself, which it follows where that changes or moves."""

    def __init__(self, weight: Tensor, memory: Tensor) -> None:
        """`memory`: as many bytes as the weight has."""
        self._memory = memory
        self._seen: tuple[Any, ...] = ()
        self.of(weight)

    def of(self, weight: Tensor) -> Tensor:
        """The weight [N, K], as it is now."""
        seen = weight.data_ptr(), weight.shape, weight.device, version_of(weight)
        out = self._memory
        if self._seen != seen:
            if out.device != weight.device:
                out = self._memory = torch.empty_like(out, device=weight.device)
            transposed(weight, out=out.view(weight.dtype).view(weight.shape[::-1]))
            self._seen = seen
        return out.view(weight.dtype).view(weight.shape[::-1]).t()

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copied model, which is for forwards, holds no second copy of its weights."""


def keep_transposed(block: nn.Module) -> None:
    """Of all linear layers of `block` that multiply in fp8 and whose input has a gradient: the text's has none.

    In one piece of memory, of which the allocator wastes nothing.
    """
    assert isinstance(block, WanBlock)
    attn, cross = block.self_attn, block.cross_attn
    layers = [attn.q, attn.k, attn.v, attn.o, cross.q, cross.o, block.ffn[0], block.ffn[2]]
    parts = [vars(layer).get(PART) for layer in layers]
    products = [part.product for part in parts if part is not None and isinstance(part.product, Fp8Product)]
    if not products:
        return
    weights = [product.weight for product in products]
    sizes = [weight.nbytes for weight in weights]
    memory = torch.empty(sum(sizes), dtype=torch.uint8, device=weights[0].device)
    for product, each in zip(products, memory.split(sizes), strict=True):
        product.keep_transposed(each)
