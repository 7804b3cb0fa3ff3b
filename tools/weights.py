"""State dicts in the making: seeded random layers under official key names."""

import math

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


class Weights:
    """A state dict in the making; every tensor comes from one seeded generator, in order of the calls."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.tensors: Tensors = {}

    def normal(self, *shape: int, std: float) -> Tensor:
        return torch.randn(*shape, generator=self.generator) * std

    def linear(self, name: str, rows: int, columns: int, *, gain: float = 1.0, bias: bool = True) -> None:
        self.tensors[f"{name}.weight"] = self.normal(rows, columns, std=gain / math.sqrt(columns))
        if bias:
            self.tensors[f"{name}.bias"] = torch.zeros(rows)

    def conv(self, name: str, rows: int, columns: int, kernel: tuple[int, ...], *, gain: float = 0.0) -> Tensor:
        """Add a convolution with random weights of the given gain and return its weight, to be written into."""
        std = gain / math.sqrt(columns * math.prod(kernel))
        self.tensors[f"{name}.weight"] = self.normal(rows, columns, *kernel, std=std)
        self.tensors[f"{name}.bias"] = torch.zeros(rows)
        return self.tensors[f"{name}.weight"]

    def ones(self, name: str, *shape: int) -> None:
        self.tensors[name] = torch.ones(*shape)
