"""LoRA (Hu et al., 2021, arXiv:2106.09685), by peft's layers: the change of a weight is (alpha / r) * up @ down.

Legend: r rank, in/out widths of the linear layer; down (A) [r, in], up (B) [out, r].
"""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ...errors import ModelFileError
from ...settings.adapter import AdapterOptions
from ..drops import drops_of
from ..formats import parse_modules, read_lora, to_tensors, write_lora
from ..fused import fuse_adapter
from ..keys import official_key, sort_key
from ..kind import AdapterKind, KeptBytes, LayerShape
from ..peft_hooks import factors_of, inject_lora, lora_layers, put_drops, rank_and_alpha, weight_names
from ..places import target_layers


def put_on(model: nn.Module, options: AdapterOptions, seed: int) -> list[tuple[str, nn.Parameter]]:
    """Freeze `model` and put a float32 LoRA on its linear layers, in place.

    A is drawn from U(-1/sqrt(in), 1/sqrt(in)) (kaiming_uniform with a = sqrt(5), as in loralib) by a CPU generator
    seeded by `seed` and the module's name alone; B is zero. ConfigError if the model has no matching layer.
    """
    targets = target_layers(model, options)
    model.requires_grad_(False)
    inject_lora(model, targets, options)
    parameters: list[tuple[str, nn.Parameter]] = []
    for path, layer in layers(model).items():
        down, up = _weights(layer)
        _initialise(down, up, path, seed)
        parameters += zip(weight_names(path), (down, up), strict=True)
        if drops := drops_of(options, has_ranks=True):
            put_drops(layer, nn.Sequential(*drops))
    if options.rank_dropout or options.module_dropout:
        fuse_adapter(model)  # peft's own forward knows nothing of it
    return parameters


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that carry a LoRA, by official path, block by block; {} if there are none."""
    found = lora_layers(model)
    return {name: found[name] for name in sorted(found, key=sort_key)}


def state(model: nn.Module) -> dict[str, Tensor]:
    """`diffusion_model.<path>.lora_A.weight`, `.lora_B.weight` and `.alpha` of each layer: float32 copies on the CPU."""
    found: dict[str, Tensor] = {}
    for path, layer in layers(model).items():
        for key, weight in zip(_keys(path), _weights(layer), strict=True):
            found[key] = weight.detach().to("cpu", torch.float32, copy=True).contiguous()
        found[official_key(path, "alpha")] = torch.tensor(rank_and_alpha(layer)[1])
    return found


def matched(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[tuple[nn.Parameter, Tensor]]:
    """Each weight of the model's LoRA with its tensor. A missing `.alpha` counts as the rank, as in the host.

    ModelFileError if modules, ranks, widths or alphas differ.
    """
    pairs: list[tuple[nn.Parameter, Tensor]] = []
    expected: set[str] = set()
    for path, layer in layers(model).items():
        for key, weight in zip(_keys(path), _weights(layer), strict=True):
            expected.add(key)
            if key not in tensors:
                raise ModelFileError(f"The LoRA lacks '{key}', which this model trains: choose the same targets.")
            if tensors[key].shape != weight.shape:
                raise ModelFileError(
                    f"The LoRA's '{key}' has the shape {list(tensors[key].shape)}, the model's adapter "
                    f"{list(weight.shape)}: set the same rank and base model."
                )
            pairs.append((weight, tensors[key]))
        alpha_key = official_key(path, "alpha")
        expected.add(alpha_key)
        rank, alpha = rank_and_alpha(layer)
        stored = float(tensors[alpha_key]) if alpha_key in tensors else float(rank)
        if not math.isclose(stored, alpha, rel_tol=1e-6):
            raise ModelFileError(
                f"The LoRA was saved with alpha {stored:g} at {path}, the model's adapter has {alpha:g}: "
                f"set alpha to {stored:g}."
            )
    unknown = sorted(set(tensors) - expected)
    if unknown:
        raise ModelFileError(
            f"The LoRA holds '{unknown[0]}', which this model does not train: choose the same targets."
        )
    return pairs


def matrices(shape: LayerShape, rank: int, options: AdapterOptions) -> tuple[LayerShape, ...]:  # noqa: ARG001
    """A and B."""
    return (rank, shape[1]), (shape[0], rank)


def kept(shape: LayerShape, rank: int, options: AdapterOptions, element_size: int) -> KeptBytes:  # noqa: ARG001
    """x A^T, and A and B in the compute dtype where that is not their own."""
    factors = rank * sum(shape) * element_size if element_size < 4 else 0
    return KeptBytes(element_size * rank, factors)


def to_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """A state as a LoRA file that ComfyUI loads, in float32. RunError if a weight is not finite, or the disk refuses."""
    return write_lora(path, parse_modules(tensors)[0], metadata=metadata, dtype=torch.float32)


def from_file(path: Path) -> dict[str, Tensor]:
    """The state in a LoRA file of any trainer, float32. ModelFileError if it is none."""
    return to_tensors(read_lora(path).modules, torch.float32)


def _initialise(down: nn.Parameter, up: nn.Parameter, path: str, seed: int) -> None:
    digest = hashlib.sha256(f"{seed}/{path}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))  # mt19937 takes 32 bits
    bound = 1.0 / math.sqrt(down.shape[1])
    # drawn on the CPU, because every device has a stream of its own
    values = torch.empty(down.shape, dtype=torch.float32).uniform_(-bound, bound, generator=generator)
    down.data = values.to(down.device)
    up.data = torch.zeros(up.shape, dtype=torch.float32, device=up.device)


def _keys(path: str) -> tuple[str, str]:
    return official_key(path, "down"), official_key(path, "up")


def _weights(layer: nn.Module) -> tuple[nn.Parameter, nn.Parameter]:
    factors = factors_of(layer)
    return factors.down, factors.up


METHOD = AdapterKind(
    help="two low-rank matrices for each linear layer, which every loader of LoRAs reads",
    put_on=put_on,
    layers=layers,
    state=state,
    matched=matched,
    light_forward=fuse_adapter,
    matrices=matrices,
    kept=kept,
    to_file=to_file,
    from_file=from_file,
    is_up=lambda name: ".lora_B." in name,
)
