"""The adapter of a model, of whatever kind: put on, read out, loaded back, written."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ModelFileError
from ..settings.adapter import AdapterOptions
from .kind import ADAPTER_KINDS, LORA, AdapterKind


def add_adapter(
    model: nn.Module, options: AdapterOptions, *, seed: int, kind: str | None = None
) -> list[tuple[str, nn.Parameter]]:
    """Freeze `model` and put a float32 adapter on its linear layers, in place; its output is unchanged.

    What is drawn is drawn by `seed` and the module's name alone. Returns the trainable parameters, block by block.
    `kind`: in the place of that of the options. ConfigError if the model has no matching layer or carries an adapter
    already, or for a kind that is not known.
    """
    if adapter_modules(model):
        raise ConfigError("The model already carries a LoRA: load the model anew before adding another.")
    return ADAPTER_KINDS.get(kind or options.kind).put_on(model, options, seed)


def adapter_modules(model: nn.Module) -> Mapping[str, nn.Module]:
    """The layers that carry an adapter, by official path, block by block; {} if there are none."""
    return next((layers for _, layers in _carried(model)), {})


def use_light_forward(model: nn.Module) -> int:
    """Give the layers that carry the adapter a faster forward, in place; how many have it now."""
    return _kind_on(model).light_forward(model)


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapter as it goes into a checkpoint or a file: float32 copies on the CPU, by key.

    Of a LoRA: `diffusion_model.<path>.lora_A.weight`, `.lora_B.weight`, `.alpha`. ConfigError if the model carries none.
    """
    return _kind_on(model).state(model)


def load_adapter(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load what `adapter_state` returned into the adapter that `model` carries, in place and exactly.

    Optimizers keep pointing at the same parameters. ModelFileError if it is not one of the same layers, sizes and
    strength; the model is then unchanged.
    """
    with torch.no_grad():
        for weight, tensor in _kind_on(model).matched(model, tensors):
            weight.copy_(tensor)


def check_adapter(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """ModelFileError for what `load_adapter` would refuse, and for weights that are no finite float32 numbers."""
    _kind_on(model).matched(model, tensors)
    for key, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not bool(tensor.isfinite().all()):
            raise ModelFileError(
                f"The LoRA's '{key}' holds something else than finite float32 numbers: export it again."
            )


def write_adapter(path: Path, model: nn.Module, *, metadata: Mapping[str, str]) -> Path:
    """The model's adapter as a file that ComfyUI loads, in float32. RunError if a weight is not finite, or the disk refuses."""
    kind = _kind_on(model)
    return kind.to_file(path, kind.state(model), metadata)


def up_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Those of the adapter that LoRA+ gives a learning rate of their own: a LoRA's B."""
    is_up = _kind_on(model).is_up
    return [weight for name, weight in model.named_parameters() if weight.requires_grad and is_up(name)]


def _carried(model: nn.Module) -> list[tuple[AdapterKind, Mapping[str, nn.Module]]]:
    # LoRA is found on every LoRA with something more, too
    kinds = sorted(map(ADAPTER_KINDS.get, ADAPTER_KINDS.names), key=lambda kind: kind.layers is _plain_layers())
    found = ((kind, kind.layers(model)) for kind in kinds)
    return [(kind, layers) for kind, layers in found if layers]


def _plain_layers() -> object:
    return ADAPTER_KINDS.get(LORA).layers


def _kind_on(model: nn.Module) -> AdapterKind:
    carried = _carried(model)
    if not carried:
        raise ConfigError("The model carries no LoRA: add one before loading or saving it.")
    return carried[0][0]
