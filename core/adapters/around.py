"""An adapter that is no plain LoRA, as what is done to its base's input and to its result: for whoever runs the base himself.

B batch, L tokens, in/out widths of the linear layer.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

_AROUND = "_around"  # the attribute of a layer under which it is noted


class Around(NamedTuple):
    """result = after(given, base(given)), where given = before(x)."""

    after: Callable[[Tensor, Tensor], Tensor]  # (that, the base's result [B, L, out]) -> the layer's result [B, L, out]
    of_after: tuple[nn.Parameter, ...]  # what is trained of it
    before: Callable[[Tensor], Tensor] | None = (
        None  # x [B, L, in] -> what the base is given [B, L, in]; None: x itself
    )
    of_before: tuple[nn.Parameter, ...] = ()
    reads_base: bool = False  # whether `after` does more with the base's result than to add something to it

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """What is trained of both."""
        return self.of_after + self.of_before


def note_around(layer: nn.Module, around: Around) -> None:
    """Note it on a layer that carries such an adapter."""
    vars(layer)[_AROUND] = around


def around_of(layer: nn.Module) -> Around | None:
    """What is noted of a layer: None of one without an adapter, or with a plain LoRA."""
    return vars(layer).get(_AROUND)


def forget_around(layer: nn.Module) -> None:
    """Nothing is noted of a layer any more."""
    vars(layer).pop(_AROUND, None)
