"""GPUs of different kinds in one run: what they must do alike, and what each does in its own way.

Alike: the dtype of the arithmetic (gradients are added up, and with context parallel activations exchanged, as they are), and
how blocks run, since one plan is put on all of them. Each for itself: its kind of attention, the fastest that it has. Every
kind computes the same up to rounding, also where each rank attends with some of the heads.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..errors import ConfigError
from ..memory.precision import dtype_name
from ..parallel.world import World
from .decision import Decision


def alike(decision: Decision, world: World, precision: str) -> Decision:
    """`decision`, with which all ranks can train together; every rank calls it with its own.

    What another rank had to be warned of is added to the first one's warnings: it alone is heard. ConfigError where their
    dtypes differ; `precision` is the job's.
    """
    if world.size == 1:
        return decision
    told = world.tell((_name(world, decision.device), dtype_name(decision.dtype), decision.modes, decision.warnings))
    _check_dtypes([(name, dtype) for name, dtype, *_ in told], precision)
    common = tuple(mode for mode in decision.modes if all(mode in modes for _, _, modes, _ in told)) or ("off",)
    added = [
        f"{name}: {sentence}"
        for rank, (name, _, _, sentences) in enumerate(told)
        for sentence in sentences
        if rank != world.rank and sentence not in decision.warnings
    ]
    return replace(decision, modes=common, warnings=(*decision.warnings, *dict.fromkeys(added)))


def _name(world: World, device: torch.device) -> str:
    """Of a rank's device, for people."""
    card = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    return f"rank {world.rank} ({device}{card})"


def _check_dtypes(told: Sequence[tuple[str, str]], precision: str) -> None:
    first, dtype = told[0]
    other = next((each for each in told if each[1] != dtype), None)
    if other is None:
        return
    lesser = "fp32" if "fp32" in (dtype, other[1]) else "fp16"
    raise ConfigError(
        f"with precision {precision}, {first} computes in {dtype} and {other[0]} in {other[1]}, and GPUs that train together "
        f"must compute in the same dtype: set precision to {lesser}, which both have, or leave one of these GPUs out."
    )
