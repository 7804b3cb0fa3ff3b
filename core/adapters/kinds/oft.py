"""OFT (Qiu et al., 2023, arXiv:2306.07280): the results of a layer are turned, block by block, and keep their lengths.

W' = R^T W with R block-diagonal, each block a rotation of b numbers by Cayley's formula: Q = B - B^T, R = (I + Q)(I - Q)^-1. So
have LyCORIS (diag-oft) and ComfyUI it. peft turns the inputs of a layer (W' = W R), which ComfyUI has no name for.
The bias is not turned: y = R^T W x + bias.

Legend: L tokens, in/out widths of the linear layer, b block size, k = out / b blocks; B [k b, b] is what is trained.
"""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from ...settings.adapter import AdapterOptions
from ..kind import AdapterKind, KeptBytes, LayerShape
from ..other_files import read_state, write_state
from ..places import Place
from ..wrapped import (
    WrappedLinear,
    around,
    match_wrapped,
    no_light_forward,
    wrap,
    wrapped_layers,
    wrapped_state,
)
from .lokr import factorization

KIND = "oft"
BLOCKS = "oft_blocks"  # as files have it, [k, b, b]
_END = f".{BLOCKS}"


class OftLinear(WrappedLinear):
    """All blocks start as 0, which turns nothing; the rank is the size of a block, or the divisor of out next below it."""

    kind = KIND
    reads_base = True

    def __init__(self, base: nn.Module, place: Place, options: AdapterOptions) -> None:
        super().__init__(base, place, options)
        self.block = factorization(self.out_features, place.rank)[0]
        self.alpha = options.oft_constraint  # what files and loaders call it
        self.add(BLOCKS, (self.out_features, self.block))

    def start(self, seed: int, path: str) -> None:
        """Nothing is drawn."""

    def after(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        """See `WrappedLinear`."""
        return y + self.drops(self.change(y))

    def change(self, x: Tensor) -> Tensor:
        """What turning adds to the base's result y [..., out]: (R - I) from the right, block by block.

        Alone it is small, and keeps its digits where y is bf16.
        """
        y = x if self.bias is None else x - self.bias
        y_KLB = y.reshape(-1, self.out_features // self.block, self.block).transpose(0, 1)
        turn_KBB = turn(self.get_parameter(BLOCKS).view(-1, self.block, self.block), self.alpha)
        return torch.bmm(y_KLB, turn_KBB.to(y.dtype)).transpose(0, 1).reshape(x.shape)


def turn(blocks: Tensor, constraint: float) -> Tensor:
    """R - I [k, b, b] of B [k, b, b]: R = (I + Q)(I - Q)^-1, so that R - I = 2 (I - Q)^-1 Q.

    `constraint`: the most that the Frobenius norm of all Q together may be, beyond which Q is scaled down to it; 0: none.
    """
    q = blocks - blocks.transpose(1, 2)
    if constraint:
        q = q * (constraint / (torch.linalg.vector_norm(q) + 1e-8)).clamp(max=1.0)
    eye = torch.eye(q.shape[1], device=q.device, dtype=q.dtype)
    # I - Q is never singular, because a skew Q has imaginary eigenvalues: the check, which waits for the device, is left out
    return 2.0 * torch.linalg.inv_ex(eye - q).inverse @ q


def put_on(model: nn.Module, options: AdapterOptions, seed: int) -> list[tuple[str, nn.Parameter]]:
    """Freeze `model` and put a float32 OFT on its linear layers, in place."""
    return wrap(model, options, seed, OftLinear)


def state(model: nn.Module) -> dict[str, Tensor]:
    """`diffusion_model.<path>.oft_blocks` [k, b, b] and `.alpha`, the constraint, of each layer: float32 on the CPU."""
    found = wrapped_state(model, KIND)
    return {
        key: value.unflatten(0, (-1, value.shape[1])) if key.endswith(_END) else value for key, value in found.items()
    }


def matched(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[tuple[nn.Parameter, Tensor]]:
    """Each parameter of the layers with its tensor of a state; ModelFileError where they do not fit."""
    is_blocks = {key: key.endswith(_END) and value.ndim == 3 for key, value in tensors.items()}
    flat = {key: value.flatten(0, 1) if is_blocks[key] else value for key, value in tensors.items()}
    return match_wrapped(model, flat, KIND)


def matrices(shape: LayerShape, rank: int, options: AdapterOptions) -> tuple[LayerShape, ...]:  # noqa: ARG001
    """The blocks, one under another."""
    return ((shape[0], factorization(shape[0], rank)[0]),)


def kept(shape: LayerShape, rank: int, options: AdapterOptions, element_size: int) -> KeptBytes:  # noqa: ARG001
    """The result without its bias; Q, the inverse of I - Q and their product, which is kept in the arithmetic's dtype."""
    numbers = shape[0] * factorization(shape[0], rank)[0]
    return KeptBytes(element_size * shape[0], numbers * (8 + element_size))


METHOD = AdapterKind(
    help="OFT, which turns a layer's results and keeps their lengths: gentle to what the model knows; rank is the block's size",
    put_on=put_on,
    layers=partial(wrapped_layers, kind=KIND),
    state=state,
    matched=matched,
    light_forward=no_light_forward,
    matrices=matrices,
    kept=kept,
    to_file=write_state,
    from_file=partial(read_state, kind=KIND),
    is_plain=False,
    around=around,
    keeps_input=False,
)
