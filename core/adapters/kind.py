"""What an adapter must be able to do: one protocol for all kinds, each of which is a file in `kinds`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from ..methods import Methods
from ..settings.adapter import AdapterOptions

LORA = "lora"  # the kind that is put on where none is named

PutOn = Callable[[nn.Module, AdapterOptions, int], list[tuple[str, nn.Parameter]]]
Matched = Callable[[nn.Module, Mapping[str, Tensor]], list[tuple[nn.Parameter, Tensor]]]


def _is_none(_name: str) -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class AdapterKind:
    """One kind of adapter, as functions of the model that carries it: a deepcopy of the model carries it as well."""

    help: str
    put_on: PutOn  # (model, options, seed) -> the trainable parameters by name; the output is unchanged at first
    layers: Callable[[nn.Module], dict[str, nn.Module]]  # those of a model that carry this kind, by official path
    state: Callable[[nn.Module], dict[str, Tensor]]  # for checkpoints and files: float32 copies on the CPU, by key
    matched: Matched  # each parameter with its tensor of a state; ModelFileError where they do not fit the model
    light_forward: Callable[[nn.Module], int]  # give the layers a faster forward, where there is one; how many have it
    num_params: Callable[[tuple[int, int], int], int]  # (shape [out, in], rank) -> trainable numbers of one layer
    to_file: Callable[[Path, Mapping[str, Tensor], Mapping[str, str]], Path]  # (path, state, metadata)
    from_file: Callable[[Path], dict[str, Tensor]]  # a state again, whatever trainer wrote the file; ModelFileError
    is_up: Callable[[str], bool] = _is_none  # by a parameter's name: whether LoRA+ gives it a learning rate of its own


ADAPTER_KINDS = Methods(AdapterKind, "adapter", "adapters.kinds")
