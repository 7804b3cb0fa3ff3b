"""Products of linear layers whose weights have 8 bits, with the kernels of `rows`.

Legend: M rows of activations, N out_features, K in_features.
"""

import torch
from torch import Tensor, nn

from ..memory.frozen_linear import RowScaledLinear
from ..memory.precisions.fp8_compute import Fp8ComputeLinear, multiply
from ..memory.products import DenseProduct, Product, dense_product
from .ops import KernelOps
from .rows import dequantize_rows, quantize_rows, transposed
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
        ops.scratch.expect((layer.in_features, layer.out_features), layer.tensors[0].dtype)

    def forward(self, x: Tensor) -> Tensor:
        """See `Product`."""
        layer = self._layer
        weight, scale = layer.tensors
        rows, row_scale = self._ops.rows(x)
        y = multiply(rows, weight.t(), row_scale, scale.t(), layer.bias, kernel=layer.kernel, fast=True)
        return y.to(x.dtype)

    def gradient(self, grad: Tensor, onto: Tensor | None) -> Tensor:
        """See `Product`."""
        weight, scale = self._layer.tensors
        rows, row_scale = quantize_rows(grad.contiguous(), scale)
        if self._ones is None or self._ones.device != grad.device:
            self._ones = scale.new_ones(1, weight.shape[1])
        turned = transposed(weight, out=self._ops.scratch.take(weight.shape[::-1], weight.dtype, weight.device))
        # Full accumulation: the sums over N are of gradients, which have no norm in front that bounds them.
        found = multiply(rows, turned, row_scale, self._ones, kernel=self._layer.kernel, fast=False)
        return found.to(grad.dtype) if onto is None else onto.add_(found)
