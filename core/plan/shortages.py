"""Where memory ran out although a plan was expected to fit: kept for the next run of its kind, which plans below it.

A kind is a card, a model, its precision, what is trained and the sizes of the clips. What is kept is forgotten when the
version changes (see `Learnt.version`), and when a plan that takes more has since come to its end.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..adapters.kind import LORA
from ..safe_json import as_table
from .kept import read_kept, write_kept
from .plan import Task
from .sizes import adapter_params

_SHORTAGES = "shortages"


@dataclass(frozen=True)
class Met:
    """What earlier runs of the same kind have shown: how much of the free memory a plan may take."""

    share: float = 1.0  # of the free memory, that a plan may be expected to take
    failed: float = 1.0  # of it, that the least plan was to take which did not fit
    graphs: bool = True  # whether CUDA graphs were no part of the trouble

    def after(self, taken: int, lower: int, free: int) -> "Met":
        """With one more: a plan that was to take `taken` of `free` bytes did not fit, and `lower` shall be tried next."""
        return replace(self, share=min(self.share, lower / max(free, 1)), failed=min(self.failed, taken / max(free, 1)))

    def is_refuted(self, taken: int, free: int) -> bool:
        """Whether a plan that was to take `taken` of `free` bytes, and did fit, says otherwise."""
        return self.share < 1.0 and taken >= self.failed * free * (1 - 1e-6)


def kind_of(task: Task, shapes: Mapping[tuple[int, ...], int], precision: str, budget: float = 0.0) -> str:
    """The kind of a run; `shapes` with the batch of each, `budget` in GB."""
    sizes, trained = task.sizes, task.trained
    model = f"{sizes.dim}x{sizes.num_layers}x{sizes.ffn_dim} in {sizes.in_dim}"
    adapter = f"{adapter_params(sizes, trained)} {trained.optimizer} {'dropout' if trained.dropout else ''}"
    adapter += "" if trained.adapter == LORA else f" {trained.adapter}"
    adapter += "" if task.gpus.context == 1 else f" shared by {task.gpus.context}"
    clips = sorted(f"{batch}*{'x'.join(map(str, shape))}" for shape, batch in shapes.items())
    return f"{model}; {precision}; {adapter}; {task.accumulation}; {' '.join(clips)}; {budget:g} GB"


def read_met(path: Path, kind: str, version: str) -> Met:
    """What is kept at `path` of runs of this kind; nothing if it is of another `version`, or damaged."""
    try:
        found = _read(path, version)[kind]
        met = Met(float(found["share"]), float(found["failed"]), bool(found["graphs"]))
    except (KeyError, TypeError, ValueError):
        return Met()
    return met if 0.0 < met.share <= 1.0 else Met()


def write_met(path: Path, kind: str, version: str, met: Met) -> None:
    """Keep `met`; what says nothing is forgotten. RunError if the folder cannot be written."""
    known = _read(path, version)
    known.pop(kind, None)
    if met != Met():
        known[kind] = asdict(met)
    write_kept(path, version, {_SHORTAGES: known})


def _read(path: Path, version: str) -> dict[str, Any]:
    return as_table(read_kept(path, version).get(_SHORTAGES))
