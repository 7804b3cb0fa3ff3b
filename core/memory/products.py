"""The product of a frozen linear layer as two plain functions, forward and gradient, for code that writes its own backward.

Legend of shapes: N out_features, K in_features, M rows of the input.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional


class Product(Protocol):
    """Reads its layer's tensors whenever it is called: in between they may have been elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        """x [M, K] -> x W^T + bias [M, N], in memory of its own."""
        ...

    def gradient(self, grad: Tensor, onto: Tensor | None) -> Tensor:
        """grad [M, N] -> the gradient of x [M, K]; added to `onto`, in its memory, if that is given."""
        ...


MakeProduct = Callable[[nn.Module], Product | None]
IsUnread = Callable[[nn.Module], bool]
PART = "_product_part"  # the attribute of a layer under which its `LinearProduct` is


class LinearProduct(NamedTuple):
    """One linear layer: its base's product, and how its result may be left out."""

    layer: nn.Module
    product: Product
    out_features: int
    is_unread: IsUnread


def part_of(layer: nn.Module) -> LinearProduct:
    """What is noted of a layer. Raises KeyError where that is nothing."""
    return vars(layer)[PART]  # type: ignore[no-any-return]


class DenseProduct:
    """Of a layer whose weight is there in the dtype of the arithmetic, or is brought into it for each product."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """See `Product`."""
        bias = self._layer.bias
        assert bias is None or isinstance(bias, Tensor)
        return functional.linear(x, self._matrix(x.dtype), bias)

    def gradient(self, grad: Tensor, onto: Tensor | None) -> Tensor:
        """See `Product`."""
        weight = self._matrix(grad.dtype)
        return grad @ weight if onto is None else onto.addmm_(grad, weight)

    def _matrix(self, dtype: torch.dtype) -> Tensor:
        layer: Any = self._layer
        return layer.weight if isinstance(layer, nn.Linear) else layer.matrix(dtype)


def dense_product(layer: nn.Module) -> Product | None:
    """The product of a frozen linear layer, also of a quantized one; None of any other layer."""
    if type(layer) is nn.Linear:
        return None if layer.weight.requires_grad else DenseProduct(layer)
    return DenseProduct(layer) if hasattr(layer, "matrix") else None
