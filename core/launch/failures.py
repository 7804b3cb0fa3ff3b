"""Why a run over several GPUs has ended, in one sentence for people."""

import signal
from collections.abc import Callable, Sequence
from typing import Any

from ..gpu_failure import failed_line
from .exits import EXIT_LESS_MEMORY, EXIT_LOST_RANK

_WAITED = "caught collective operation timeout"  # of PyTorch's watchdog


def failure(ended: Sequence[Any], places: Sequence[Any], machine: int, printed: Callable[[int], str]) -> str:
    """One sentence about the ranks of machine number `machine` that ended first (`Ended`), on `places` (`Place`).

    `printed`: what the rank with a local number printed.
    """
    kept = "The last checkpoint is kept: start again to go on from there."
    if not ended:
        return f"the processes of the run could not be started. {kept}"
    told = next((end for end in ended if end.code not in (EXIT_LOST_RANK, EXIT_LESS_MEMORY)), ended[0])
    place = places[machine]
    who = f"rank {told.rank} ({place.devices[told.local_rank]} of {place.host})"
    if told.code < 0:
        return f"{who} {_killed(-told.code)}, and the others ended with it. {_by_nccl(printed(told.local_rank))}{kept}"
    line = _last_line(printed(told.local_rank))
    if told.code == EXIT_LOST_RANK:
        return f"{who} lost another rank of the run, which is gone or hangs: {line or 'it said no more'}. {kept}"
    if told.code == EXIT_LESS_MEMORY:
        return f"{who} has too little memory, also with the plan that takes the least. {kept}"
    return f"{who} ended with an error: {line or f'code {told.code}'}"


def _killed(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    why = " (when main memory runs out, the system kills so)" if name == "SIGKILL" else ""
    return f"was killed by {name}{why}"


def _by_nccl(printed: str) -> str:
    """What a process said that NCCL's thread has ended: its GPU failed, or nobody came to what all do together."""
    if any(_WAITED in line for line in printed.splitlines()):
        return "Before, it had waited for the others in vain: one of them hangs, or the GPUs don't reach each other. "
    line = failed_line(printed)
    return f"Before, its GPU had failed ({line}). " if line else ""


def _last_line(printed: str) -> str:
    """The last one that is not empty; nothing for none."""
    lines = [line for line in printed.splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def lost_machine(address: str) -> str:
    """Machine 0 of a run over several, whose store had this address, does not answer."""
    return (
        f"machine 0 ({address}) is no longer reached: it has ended, or the network is down. The last checkpoint is kept: start "
        "all machines again to go on from there."
    )
