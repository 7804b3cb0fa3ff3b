"""How a run that takes turns with another one on a device shares its memory with it, and one that goes through two experts."""

import math
from dataclasses import replace

from .estimate import adapter_bytes
from .planner import Planner


def beside_another(planner: Planner, every: int, *, is_there: bool) -> Planner:
    """For a run that hands the device over every `every` steps: with all of it in its turn, or half of it all the time.

    The one by which the run is over sooner. `is_there`: the other run has had its turn, so that what it keeps on the device is
    not free any more.
    """
    card = planner.card
    kept = 0 if is_there else card.overhead + adapter_bytes(planner.task, planner.plan)
    whole = replace(planner, card=replace(card, free=max(card.free - kept, 0)), alternate_every=every)
    both = min(card.total, card.free + card.overhead) - 2 * card.overhead
    halved = replace(whole, card=replace(card, free=min(card.free, max(both // 2, 0))), keeps_weights=True)
    return min((whole, halved), key=_run_seconds)


def two_bases(planner: Planner, every: int) -> Planner:
    """For a run that trains one LoRA through two experts, switching every `every` steps.

    The one that waits lies in main memory, or on the device: the one by which the run is over sooner.
    """
    apart = replace(planner, alternate_every=every, task=replace(planner.task, second_base="host"))
    beside = replace(
        planner, alternate_every=every, task=replace(planner.task, second_base="device"), keeps_weights=True
    )
    return min((apart, beside), key=_run_seconds)


def _run_seconds(planner: Planner) -> float:
    choice = planner.choose()
    return math.inf if choice is None else choice.run_seconds(planner.steps)
