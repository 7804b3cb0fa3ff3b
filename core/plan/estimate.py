"""Memory of a training step, predicted from sizes; with its time from `step_time`.

Weights and the adapter's state are counted to the byte. What each block keeps and takes is in `block_bytes`.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from ..adapters.kind import ADAPTER_KINDS
from ..memory.adamw import offloaded_bytes
from ..memory.copies import NUM_STAGED
from ..memory.offload_results import LEAST
from ..memory.recompute import Kept, moved_blocks
from ..parallel.shards import gathered_bytes, sharded_bytes, shared_ram
from .block_bytes import kept_bytes, kept_without_checkpointing, moved_bytes, own_bytes
from .card import Card, Correction
from .constants import constants
from .plan import (
    Bucket,
    Plan,
    Task,
    block_weights,
    compute_size,
    has_offloaded_state,
    input_bytes,
    is_graphed,
    is_quantized,
    keeping,
    kept_of,
    kind_of,
    num_inputs,
    num_offloaded,
    own_batches,
    own_tokens,
    transposed_bytes,
)
from .routed import num_present, past_route, positions, route_ends, routed_bytes
from .sizes import (
    HIGH_PRECISION,
    adapter_params,
    average_bytes,
    optimizer_bytes,
    rest_bytes,
    update_bytes,
    working_bytes,
)
from .step_time import BlockTime, block_seconds, step_seconds

NUM_SLOTS = 2  # of the ring of streamed blocks
_DENSE = 3  # times the largest linear, in the compute dtype, where a quantized base is dequantized
# Of the large pieces that an adapter takes for a moment: what comes on top, because the allocator can't use their places for
# others in between. LoHa's were 1.2 GB reserved beside what tensors took, in six blocks of 14B's width.
_HOLES = 0.25
_STAYING = 4 * LEAST  # of what a block keeps in main memory, the tensors that are too small to be moved


@dataclass(frozen=True)
class Estimate:
    """Peaks and time of one optimizer step."""

    vram: int  # bytes on the device
    ram: int  # bytes of main memory
    seconds: float
    exact_vram: int  # the part of `vram` that is counted, not predicted: weights, adapter, its state
    exact_ram: int = 0  # the part of `ram` that is held all the time


def estimate(task: Task, bucket: Bucket, plan: Plan, card: Card, correction: Correction | None = None) -> Estimate:
    """What one step with clips of `bucket` takes under `plan` on `card`, corrected by `correction`."""
    return SizeWork(task, bucket, plan, card, correction or Correction()).estimate(plan, held_by(task, plan))


class Peaks(NamedTuple):
    """Bytes on the device and of main memory."""

    vram: int
    ram: int
    moved: int = 0  # of `ram`: the results that blocks keep there, pinned


def held_by(task: Task, plan: Plan) -> Peaks:
    """What the plan takes all the time, whatever the size of clips: weights, the adapter and its state."""
    return Peaks(_exact_vram(task, plan), held_ram(task, plan))


class SizeWork:
    """What steps with clips of one size take, whose blocks are computed in one way, beside what is held.

    Where the frozen blocks lie makes no difference to it: all plans with the same `way_of` share it, so that it is worked out
    once for them.
    """

    def __init__(self, task: Task, bucket: Bucket, way: Plan, card: Card, correction: Correction) -> None:
        self._task, self._bucket, self._way, self._card, self._correction = task, bucket, way, card, correction
        self._peaks: dict[Kept, Peaks] = {}

    @cached_property
    def _block(self) -> BlockTime:
        return block_seconds(self._task, self._bucket, self._way, self._card)

    def peaks(self, kept: Kept) -> Peaks:
        """Where so many blocks keep something."""
        if kept not in self._peaks:
            task, bucket, plan = self._task, self._bucket, keeping(self._way, kept)
            offloaded = task.passes.most_waiting * num_offloaded(task, plan) * input_bytes(task, bucket, plan)
            moved = kept.moved * moved_bytes(task, bucket, plan) if kept.moved else 0
            moved *= task.passes.most_waiting
            vram = round(self._correction.memory * _working_bytes(task, bucket, plan))
            ram = constants().runtime_ram + round(task.mean_seen * offloaded) + moved
            self._peaks[kept] = Peaks(vram, ram, moved)
        return self._peaks[kept]

    def seconds(self, plan: Plan) -> float:
        """Of a batch under a plan that computes in this way."""
        return step_seconds(self._task, self._bucket, plan, self._card, self._block)

    def estimate(self, plan: Plan, held: Peaks) -> Estimate:
        """Of a plan that computes in this way and holds so much."""
        peaks = self.peaks(kept_of(plan))
        return Estimate(
            vram=held.vram + peaks.vram,
            ram=held.ram + peaks.ram,
            seconds=self._correction.time * own_batches(self._task) * self.seconds(plan),
            exact_vram=held.vram,
            exact_ram=held.ram,
        )


def _resident_bytes(task: Task, plan: Plan) -> int:
    block = block_weights(task, plan)
    resident = task.sizes.num_layers - plan.streamed_blocks
    if plan.shards > 1:
        shares = sharded_bytes(block, blocks=resident, ranks=plan.shards, slots=0)
        return shares + min(NUM_SLOTS, task.sizes.num_layers) * gathered_bytes(block, plan.shards) + _rest_bytes(task)
    return (resident + min(NUM_SLOTS, plan.streamed_blocks)) * block + _rest_bytes(task)


def _rest_bytes(task: Task) -> int:
    return rest_bytes(task.sizes) if task.rest_bytes is None else task.rest_bytes


def parked_bytes(task: Task, plan: Plan) -> int:
    """Frozen weights that lie on the device all the time, and wait in main memory while another run has it."""
    return (task.sizes.num_layers - plan.streamed_blocks) * block_weights(task, plan) + _rest_bytes(task)


def _exact_vram(task: Task, plan: Plan) -> int:
    beside = parked_bytes(task, plan) if task.second_base == "device" else 0
    turned = task.sizes.num_layers * transposed_bytes(task.sizes) if plan.keep_transposed else 0
    return _resident_bytes(task, plan) + turned + beside + adapter_bytes(task, plan)


def adapter_bytes(task: Task, plan: Plan) -> int:
    """fp32 weights, the optimizer's state and an average of the weights; gradients come and go."""
    number = adapter_params(task.sizes, task.trained)
    held = 4 * number + average_bytes(task.sizes, task.trained)
    if has_offloaded_state(task, plan):
        return held + offloaded_bytes(number)[0]
    return held + optimizer_bytes(task.sizes, task.trained)


def _working_bytes(task: Task, bucket: Bucket, plan: Plan) -> int:
    """The peak of all that a step makes: at a backward, or in the update, which comes when activations are gone."""
    sizes, trained = task.sizes, task.trained
    lasting = constants().runtime_vram + constants().graph_vram * is_graphed(task, plan)
    lasting += _scratch_bytes(task, plan)
    in_update = lasting + 4 * adapter_params(sizes, trained) + update_bytes(sizes, trained)
    at_start = lasting + 4 * adapter_params(sizes, trained) + _widened_bytes(task)
    return max(_backward_bytes(task, bucket, plan), round(in_update), round(at_start))


def _widened_bytes(task: Task) -> int:
    """The time's projection, the largest weight outside of the blocks: of 16 bits, it is made fp32 for its one product."""
    is_stored_so = task.rest_bytes is not None and task.rest_bytes < rest_bytes(task.sizes)
    return HIGH_PRECISION * 6 * task.sizes.dim**2 if is_stored_so else 0


def _backward_bytes(task: Task, bucket: Bucket, plan: Plan) -> int:
    """The peak of the backwards: at that of the last block that keeps as much, or of the first block.

    What blocks keep and their inputs are less from block to block, and the gradients more. A block that keeps less than
    those after it takes more itself.
    """
    sizes = task.sizes
    gradients = 4 * adapter_params(sizes, task.trained)
    fixed = constants().runtime_vram + constants().graph_vram * is_graphed(task, plan) + _weights_again(task, plan)
    fixed += _other_passes(task, bucket, plan)
    fixed += (1 + _HOLES) * working_bytes(sizes, task.trained, compute_size(task, plan))
    if not plan.checkpointing and plan.compile != "kernels":
        if task.seen:
            return round(fixed + max(_routed_without_checkpointing(task, bucket, plan)) + gradients)
        own = own_bytes(task, bucket, plan, Kept())
        return round(fixed + own + (sizes.num_layers - 1) * kept_without_checkpointing(task, bucket, plan) + gradients)
    layers, linears = sizes.num_layers, plan.keep_linears if plan.checkpointing else sizes.num_layers
    attention = max(plan.keep_attention, linears)
    moved = moved_blocks(kept_of(plan), layers) if plan.offload_linears else frozenset[int]()
    if moved:  # one block's leave or arrive
        fixed += moved_bytes(task, bucket, plan) + len(moved) * _STAYING
    fixed += gradients if task.gpus.count > 1 else 0  # the buffers in which several GPUs add theirs up
    at_start = gradients if task.accumulation > 1 or is_graphed(task, plan) else 0
    peaks: list[float] = []
    for done in {0, linears, attention, layers - 1, *route_ends(task)}:  # blocks whose backward is done
        if done < layers:
            elsewhere = sum(layers - attention <= block < layers - done for block in moved)
            kept = Kept(max(attention - done, 0) - elsewhere, max(linears - done, 0), plan.offload_linears)
            present = max(at_start, gradients * (done + (done == layers - 1)) / layers)
            if task.seen:
                peaks.append(routed_bytes(task, bucket, plan, Kept(attention, linears), done) + present)
                continue
            held = num_present(task, plan, done) * input_bytes(task, bucket, plan)
            held += kept_bytes(task, bucket, plan, kept, own=layers - done - 1 not in moved)
            peaks.append(own_bytes(task, bucket, plan, kept) + held + present)
    return round(fixed + max(peaks))


def _routed_without_checkpointing(task: Task, bucket: Bucket, plan: Plan) -> list[float]:
    """As in `_backward_bytes`, where blocks see different shares of the tokens: at the last block of each kind."""
    shares = task.shares
    kept = {s: kept_without_checkpointing(task, replace(bucket, seen=s), plan) for s in set(shares)}
    found: list[float] = []
    for done in route_ends(task):
        *before, share = shares[: len(shares) - done]
        own = own_bytes(task, replace(bucket, seen=share), plan, Kept())
        beside = past_route(task, bucket, plan, share) + positions(task, bucket, len(shares) - done)
        found.append(own + sum(kept[s] for s in before) + beside)
    return found


def _other_passes(task: Task, bucket: Bucket, plan: Plan) -> float:
    """What forwards take beside the one whose backward is at its peak: what those keep that wait for theirs, too.

    A forward without a gradient takes less than a block's backward, but beside graphs, whose memory it can't have.
    """
    beside_graphs = task.passes.num_without > 0 and is_graphed(task, plan)
    total = max(own_bytes(task, bucket, plan, Kept()), _widened_bytes(task)) if beside_graphs else 0.0
    total += _aligned_bytes(task, bucket)
    waiting = task.passes.most_waiting - 1
    if not waiting:
        return total
    if not plan.checkpointing and plan.compile != "kernels":
        return total + waiting * task.sizes.num_layers * kept_without_checkpointing(task, bucket, plan)
    linears = plan.keep_linears if plan.checkpointing else task.sizes.num_layers
    kept = Kept(max(plan.keep_attention, linears), linears)
    held = (num_inputs(task, plan) - num_offloaded(task, plan)) * input_bytes(task, bucket, plan)
    return total + waiting * (held + kept_bytes(task, bucket, plan, kept))


def _aligned_bytes(task: Task, bucket: Bucket) -> int:
    """What aligning hidden states with features keeps in float32.

    For each token the input and output of its norm; what is projected, resized and normed of it; and the gradient of that.
    """
    per_token = 4 * (2 * task.sizes.dim + 5 * task.features) if task.features else 0
    return bucket.batch * own_tokens(task, bucket) * per_token


def _weights_again(task: Task, plan: Plan) -> int:
    """Bytes of the second copy of a weight that a product needs, dequantized or transposed; and that an adapter looks at."""
    largest, scratch = task.sizes.ffn_dim * task.sizes.dim, _scratch_bytes(task, plan)
    if not scratch and not plan.keep_transposed:
        return _DENSE * compute_size(task, plan) * largest if is_quantized(task, plan) else 0
    looks = ADAPTER_KINDS.get(task.trained.adapter).reads_weights
    return scratch + (HIGH_PRECISION * largest if looks else 0)


def _scratch_bytes(task: Task, plan: Plan) -> int:
    """Bytes of the one matrix in which blocks by kernels have a weight of 8 bits for its product; there all the time."""
    if plan.compile != "kernels" or (plan.keep_transposed and ADAPTER_KINDS.get(task.trained.adapter).is_plain):
        return 0  # adapters that are not plain may want the gradient of what they make of the text, too
    largest, kind = task.sizes.ffn_dim * task.sizes.dim, kind_of(plan)
    if kind.multiplies_in_fp8:
        return largest
    by_kernel = is_quantized(task, plan) and kind.kernel_weight is not None and task.stored_block_bytes is None
    return compute_size(task, plan) * largest if by_kernel else 0


def held_ram(task: Task, plan: Plan) -> int:
    """Main memory that is held all the time: what is swapped or offloaded, not what waits for its turn."""
    state = offloaded_bytes(adapter_params(task.sizes, task.trained))[1] if has_offloaded_state(task, plan) else 0
    return _streamed_ram(task, plan) + state


def pinned_ram(task: Task, plan: Plan) -> int:
    """Of `held_ram`, what is pinned."""
    return held_ram(task, plan) if plan.stream_from == "pinned" else 0


def _streamed_ram(task: Task, plan: Plan) -> int:
    """Main memory of swapped blocks, of both bases where two take turns. Where the ranks of a machine hold them together, this
    process's share of it."""
    held = 0 if plan.stream_from == "mapped" else plan.streamed_blocks - plan.mapped_blocks
    is_staged = plan.streamed_blocks and (plan.stream_from != "pinned" or plan.mapped_blocks)
    held *= 2 if task.second_base else 1
    holders, block = task.gpus.holders, block_weights(task, plan)
    return -(-shared_ram(block, swapped=held, staged=NUM_STAGED if is_staged else 0, ranks=holders) // holders)
