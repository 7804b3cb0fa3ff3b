"""What an adapter must be able to do: one protocol for all kinds, each of which is a file in `kinds`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from ..memory.frozen_linear import LayerShape
from ..methods import Methods
from ..settings.adapter import AdapterOptions
from .around import Around

LORA = "lora"  # the kind that is put on where none is named


class KeptBytes(NamedTuple):
    """What autograd keeps for the adapter of one layer, until its backward, beside the layer's input."""

    per_token: int
    once: int  # however many tokens there are


def nothing_beside(shape: LayerShape, element_size: int) -> int:  # noqa: ARG001
    """Of a kind whose backward makes nothing large."""
    return 0


Matrices = Callable[[LayerShape, int, AdapterOptions], tuple[LayerShape, ...]]
PutOn = Callable[[nn.Module, AdapterOptions, int], list[tuple[str, nn.Parameter]]]
Matched = Callable[[nn.Module, Mapping[str, Tensor]], list[tuple[nn.Parameter, Tensor]]]


def _is_none(_name: str) -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class AdapterKind:
    """One kind of adapter, as functions of the model that carries it: a deepcopy of the model carries it as well."""

    help: str
    put_on: PutOn  # (model, options, seed) -> the trainable parameters by name; the output is unchanged at first
    layers: Callable[[nn.Module], Mapping[str, nn.Module]]  # those of a model that carry this kind, by official path
    state: Callable[[nn.Module], dict[str, Tensor]]  # for checkpoints and files: float32 copies on the CPU, by key
    matched: Matched  # each parameter with its tensor of a state; ModelFileError where they do not fit the model
    light_forward: Callable[[nn.Module], int]  # give the layers a faster forward, where there is one; how many have it
    matrices: Matrices  # (shape, rank, options) -> shapes of what is trained of one layer
    # The same, and the bytes of an activation's number.
    kept: Callable[[LayerShape, int, AdapterOptions, int], KeptBytes]
    to_file: Callable[[Path, Mapping[str, Tensor], Mapping[str, str]], Path]  # (path, state, metadata)
    from_file: Callable[[Path], dict[str, Tensor]]  # a state again, whatever trainer wrote the file; ModelFileError
    # Bytes that the backward of one layer takes for a moment.
    working: Callable[[LayerShape, int], int] = nothing_beside
    # Whether what is trained begins as numbers of the base's weights, and fits no other base.
    begins_at_base: bool = False
    is_plain: bool = True  # base(x) + scale B A x: what compiled blocks, recorded steps and kept products know of
    around: Callable[[nn.Module], Around] | None = None  # of a layer; None: of a plain one
    reads_weights: bool = False  # whether each forward looks at the base's weights in fp32, beside its products
    scales_input: bool = False  # whether its base is given something else than the layer's input
    # Of blocks by kernels: what a backward takes beside that of a LoRA, counted in activations [B, L, D] and [B, L, ffn_dim].
    more_units: tuple[float, float] = (0.0, 0.0)
    weight_traffic: float = (
        0.0  # bytes for each weight of its layers that forward and backward move, whatever the tokens
    )
    keeps_input: bool = True  # whether its backward needs what the layer is given
    is_up: Callable[[str], bool] = _is_none  # by a parameter's name: whether LoRA+ gives it a learning rate of its own

    @property
    def knows_lora_plus(self) -> bool:
        """Whether it has a second matrix, which LoRA+ gives a learning rate of its own."""
        return self.is_up is not _is_none

    def num_params(self, shape: LayerShape, rank: int, options: AdapterOptions) -> int:
        """Trained numbers of one layer."""
        return sum(rows * columns for rows, columns in self.matrices(shape, rank, options))


ADAPTER_KINDS = Methods(AdapterKind, "adapter", "adapters.kinds")
