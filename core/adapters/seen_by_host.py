"""What ComfyUI's own loaders make of a LoRA's file as it is."""

import math
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from ..wan.limits import shown
from .keys import is_known_to_host, is_read_by_host


def host_notes(path: Path, keys: Iterable[str], scales: Collection[float]) -> tuple[str, ...]:
    """A sentence for each way in which the host reads a LoRA's file otherwise than it is meant; () where it does not.

    `scales`: alpha / rank of its modules, as its trainer meant them.
    """
    keys = tuple(keys)
    notes = unknown_names(path, [key for key in keys if not is_read_by_host(key)])
    if not any(key.endswith(".alpha") for key in keys):
        others = [scale for scale in scales if scale != 1]
        if others:
            times = max(
                (1 / scale if scale else math.inf for scale in others),
                key=lambda ratio: max(abs(ratio), 1 / abs(ratio)),
            )
            notes.append(
                f"{path.name} states its strength (alpha) in its header or beside it alone, which ComfyUI ignores: there it has"
                f" {times:.3g} times the strength that it was trained with; write the file anew, which puts alphas into it."
            )
    return tuple(notes)


def other_notes(path: Path, names: Iterable[str]) -> tuple[str, ...]:
    """The same for an adapter of another kind, by its modules' names."""
    return tuple(unknown_names(path, [name for name in names if not is_known_to_host(name)]))


def unknown_names(path: Path, unknown: Sequence[str]) -> list[str]:
    """The sentence for names that the host's loaders pass over; none where there are none."""
    if not unknown:
        return []
    return [
        f"{path.name} has names of tensors that ComfyUI's loaders do not know, such as '{shown(unknown[0])}': there they"
        " have no effect; write the file anew, which gives them the names that every loader knows."
    ]
