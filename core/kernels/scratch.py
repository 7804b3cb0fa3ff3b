"""Memory in which one weight at a time is there in the form that its product needs."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Scratch:
    """As many bytes as the largest weight of a model needs, taken once.

    A matrix of its own for each product would lie among the activations that are kept meanwhile, and leave a hole which
    others fill in part: the next matrix finds no place, and PyTorch's allocator takes more of the GPU. In blocks of 14B's
    width in fp8 that was 0.06 GB for each block whose activations are kept.
    """

    def __init__(self) -> None:
        self._most = 0
        self._bytes: Tensor | None = None

    def expect(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        """A matrix of this size will be asked for."""
        self._most = max(self._most, _num_bytes(shape, dtype))

    def take(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A matrix whose numbers are not set, in the place of the one before: nobody may keep it, autograd neither."""
        assert not torch.is_grad_enabled(), "autograd would keep a matrix that is written over"
        self.expect(shape, dtype)
        if self._bytes is None or len(self._bytes) < self._most or self._bytes.device != device:
            self._bytes = None  # before there are two
            self._bytes = torch.empty(self._most, dtype=torch.uint8, device=device)
        return self._bytes[: _num_bytes(shape, dtype)].view(dtype).view(shape)


def _num_bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    return int(torch.Size(shape).numel()) * dtype.itemsize
