"""What blocks hold at a backward where some of them see a share of the tokens alone (TREAD).

`done`: of blocks whose backward is done, from the last block on.
"""

from dataclasses import replace

from ..memory.recompute import Kept
from .block_bytes import kept_bytes, own_bytes
from .plan import Bucket, Plan, Task, input_bytes, own_tokens

# Inputs that are on the device though all wait in main memory: at the last block, and at those before it, for which
# some are brought back ahead and some are still in use.
_ARRIVED = (3, 5)


def num_present(task: Task, plan: Plan, done: int) -> int:
    """How many block inputs are on the device at a block's backward."""
    left = task.sizes.num_layers - done
    second = max(plan.keep_attention - done, 0) if plan.split_blocks else 0
    if plan.offload_inputs:
        return min(_ARRIVED[done > 0], left + second + 1)
    return left + second


def route_ends(task: Task) -> tuple[int, ...]:
    """How many are done at the last block of each run of blocks that see the same share."""
    shares = task.shares[::-1] if task.seen else ()
    return tuple(done for done, share in enumerate(shares) if not done or share != shares[done - 1])


def past_route(task: Task, bucket: Bucket, plan: Plan, share: float) -> int:
    """The gradient of the tokens that go past a block that sees a `share`: it waits for the beginning of the route."""
    return input_bytes(task, bucket, plan) if share < 1 else 0


def positions(task: Task, bucket: Bucket, left: int) -> float:
    """Bytes of the rotary tables of the routes that the first `left` blocks are on: in fp32, for each sample its own."""
    shares, head_dim = task.shares[:left], task.sizes.dim // task.sizes.num_heads
    begin = [share for number, share in enumerate(shares) if share < 1 and share != shares[number - 1]]
    return 4 * head_dim * bucket.batch * own_tokens(task, bucket) * sum(begin)


def routed_bytes(task: Task, bucket: Bucket, plan: Plan, kept: Kept, done: int) -> float:
    """With gradient checkpointing: what the block at its backward takes, and what it and those before it hold.

    `kept`: how many blocks, the last ones, keep their attention and their products in the forward.
    """
    shares, layers = task.shares, task.sizes.num_layers
    left = layers - done
    share = shares[left - 1]
    own, still = replace(bucket, seen=share), Kept(max(kept.attention - done, 0), max(kept.linears - done, 0))
    total = own_bytes(task, own, plan, still) + past_route(task, bucket, plan, share)
    total += _inputs(task, bucket, plan, done) + positions(task, bucket, left)
    for each in set(shares):
        number = Kept(*(sum(s == each for s in shares[layers - count : left]) for count in kept))
        total += kept_bytes(task, replace(bucket, seen=each), plan, number, own=False)
    one = Kept(min(still.attention, 1), min(still.linears, 1))
    return total + kept_bytes(task, own, plan, one) - kept_bytes(task, own, plan, one, own=False)


def _inputs(task: Task, bucket: Bucket, plan: Plan, done: int) -> float:
    """Bytes of the block inputs that are on the device: those nearest to the block, each of its own number of tokens."""
    left = task.sizes.num_layers - done
    present = num_present(task, plan, done)
    nearest = task.shares[:left][::-1]
    if not plan.offload_inputs and plan.split_blocks:  # a second one of those that keep their attention
        nearest = (*nearest, *nearest[: present - left])
    missing = max(present - len(nearest), 0)  # one that is still in use
    return (sum(nearest[:present]) + missing) * input_bytes(task, bucket, plan)
