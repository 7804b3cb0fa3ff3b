"""What it costs a run to give its device to another one, and to come back.

Of a run that waits, the adapter, the optimizer's state and what the process itself takes stay on the GPU. Its frozen weights
wait in main memory; swapped blocks are there already.
"""

from ..settings.memory import MasterKind
from .card import Card
from .estimate import held_ram, parked_bytes
from .plan import Plan, Task, is_graphed
from .run_costs import GRAPH

SWITCH = 0.3  # seconds, assumed: to free the memory, to take it again, and to put the features on the model
_RAM_MARGIN = 2 * 2**30  # of main memory, kept free


def parking_kind(num_bytes: int, ram: int, pinnable: int) -> MasterKind:
    """Where so many bytes of weights wait: in pinned memory, ordinary memory, or in a file where neither suffices."""
    if num_bytes <= pinnable - _RAM_MARGIN:
        return "pinned"
    return "pageable" if num_bytes <= ram - _RAM_MARGIN else "mapped"


def switch_seconds(task: Task, plan: Plan, card: Card, *, keeps_weights: bool, sizes: int) -> float:
    """Until the run can go on; `sizes` of batches, each of which may have a CUDA graph that is recorded again."""
    graphs = GRAPH * sizes * is_graphed(task, plan)
    if keeps_weights:
        return graphs
    waiting = parked_bytes(task, plan)
    if task.second_base:  # the weights are written over where they lie, so that graphs go on knowing them
        ram = card.free_ram - held_ram(task, plan)
        return waiting / card.copy_rate(parking_kind(2 * waiting, ram, min(ram, card.pinnable_ram)))
    return SWITCH + waiting / card.copy_rate(parking_kind(waiting, card.free_ram, card.pinnable_ram)) + graphs
