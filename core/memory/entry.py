"""Where a graph of its own begins: a tensor that gets a gradient, and is not kept for it."""

from typing import Any

import torch
from torch import Tensor


def entry(x: Tensor) -> Tensor:
    """x as it is, without its history, and wanting a gradient. Under `torch.enable_grad`.

    Not a leaf, which the node that its gradient arrives at would keep: here that node knows nothing of x.
    """
    found = _Entry.apply(torch.empty(0, requires_grad=True), x.detach())
    assert isinstance(found, Tensor)
    return found


class _Entry(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]  # noqa: ARG004
        return x.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:  # noqa: ARG004
        return None, None
