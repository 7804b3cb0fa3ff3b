"""Memory of a training step, predicted from sizes; with its time from `step_time`.

Weights and the adapter's state are counted to the byte, and so is what autograd keeps of a block. What a block's backward
takes beside that was counted once with the allocator's own numbers (torch 2.11) and stands here as multiples of one
activation [B, L, D], called a unit. How compiled blocks differ was fitted to steps that ran: see `constants.json`.

Shapes: B batch, L video tokens, S text tokens, I image tokens, D width, N heads.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from ..adapters.kind import ADAPTER_KINDS
from ..memory.adamw import offloaded_bytes
from ..memory.copies import NUM_STAGED
from ..memory.precision import precision_kind
from ..memory.recompute import Kept, attention_bytes, linears_bytes
from ..parallel.shards import gathered_bytes, sharded_bytes
from .block_by_kernels import KernelBlock, kernel_block
from .card import Card, Correction
from .constants import constants
from .plan import (
    Bucket,
    Plan,
    Task,
    block_weights,
    compute_size,
    dense_params,
    has_offloaded_state,
    image_tokens,
    input_bytes,
    is_compiled,
    is_graphed,
    is_quantized,
    kind_of,
    num_inputs,
    num_keys,
    num_offloaded,
    own_batches,
    own_tokens,
)
from .sizes import (
    Sizes,
    Trained,
    adapter_params,
    average_bytes,
    kept_of,
    optimizer_bytes,
    rest_bytes,
    targeted,
    update_bytes,
    working_bytes,
)
from .step_time import step_seconds

NUM_SLOTS = 2  # of the ring of streamed blocks
# Units that the exchanges of a shared clip take in a block of PyTorch's operators: the attention's result, sent back, is kept
# twice. In parts: gradients that are sent, beside those that have arrived.
_EXCHANGED, _EXCHANGED_BY_PART = 1.0, 1.5
_DENSE = 3  # times the largest linear, in the compute dtype, where a quantized base is dequantized
# Inputs that are on the device though all wait in main memory: at the last block, and at those before it, for which
# some are brought back ahead and some are still in use.
_ARRIVED = (3, 5)


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
    correction = correction or Correction()
    return Estimate(
        vram=estimate_vram(task, bucket, plan, correction),
        ram=estimate_ram(task, bucket, plan),
        seconds=correction.time * own_batches(task) * step_seconds(task, bucket, plan, card),
        exact_vram=_exact_vram(task, plan),
        exact_ram=_held_ram(task, plan),
    )


def estimate_vram(task: Task, bucket: Bucket, plan: Plan, correction: Correction) -> int:
    """The part of `estimate` that is the peak on the device."""
    return _exact_vram(task, plan) + round(correction.memory * _working_bytes(task, bucket, plan))


def estimate_ram(task: Task, bucket: Bucket, plan: Plan) -> int:
    """The part of `estimate` that is main memory."""
    offloaded = task.passes.most_waiting * num_offloaded(task, plan) * input_bytes(task, bucket, plan)
    return constants().runtime_ram + _held_ram(task, plan) + offloaded


@lru_cache
def saved_bytes(sizes: Sizes, trained: Trained, *, tokens: int, batch: int = 1, element_size: int = 2) -> int:
    """Bytes that autograd keeps of one block from its forward to its backward, without the block's input and weights."""
    return sum(saved_by_part(sizes, trained, tokens=tokens, batch=batch, element_size=element_size).values())


@lru_cache
def saved_by_part(
    sizes: Sizes, trained: Trained, *, tokens: int, batch: int = 1, element_size: int = 2
) -> Mapping[str, int]:
    """The bytes of `saved_bytes`, for each part of the block.

    Eager, with the light LoRA forward and an attention that never has its scores in memory. `tokens` of one clip;
    `element_size` 2 for bf16 and fp16, 4 for fp32. A dropout's mask is counted as large as its input, as the CPU has it.
    """
    e, dim, heads = element_size, sizes.dim, sizes.num_heads
    copy = 4 * dim if e < 4 else 0  # of the block's input, in fp32 for its norm; in fp32 it is the input itself
    rows = 8  # mean and inverse deviation
    self_attn = copy + rows + 2 * (4 * dim + 4) + 4 * e * dim + 4 * heads  # norms of q and k; q, k, v, out, logsumexp
    cross_attn = (4 * dim + rows) + (4 * dim + 4) + 2 * e * dim + 4 * heads  # norm3; norm of q; q, out, logsumexp
    ffn = 4 * dim + rows + e * sizes.ffn_dim
    adapted = targeted(sizes, trained)
    branches = [(sizes.text_len, ("k", "v")), (image_tokens(sizes), ("k_img", "v_img"))]
    if sizes.image_dim is not None:
        cross_attn += e * dim + 4 * heads  # the attention to the image
        cross_attn += e * dim if "cross_attn.o" in adapted else 0  # the sum of both
    on_keys = 0
    for keys, names in branches:
        per_key = 2 * e * dim  # k, v
        on_these = [adapted[f"cross_attn.{name}"] for name in names if f"cross_attn.{name}" in adapted]
        per_key += 4 * dim + 4 if f"cross_attn.{names[0]}" in adapted else 0  # the norm of k
        # x A^T of k and v; dropout's outputs, the text needs no mask
        per_key += sum(kept_of(each, trained, e).per_token + (e * dim if trained.dropout else 0) for each in on_these)
        on_keys += keys * per_key
    modulation = 4 * (3 + 1) * dim
    fixed = {"self_attn": modulation, "cross_attn": on_keys, "ffn": modulation}
    found: dict[str, int] = {}
    for part, per_token in {"self_attn": self_attn, "cross_attn": cross_attn, "ffn": ffn}.items():
        own = replace(trained, targets=(part,) if part in trained.targets else ())
        once = sum(kept_of(each, trained, e).once for each in targeted(sizes, own).values())
        found[part] = batch * (tokens * (per_token + _adapter_inputs(sizes, own, e)) + fixed[part]) + once
    return found


def _adapter_inputs(sizes: Sizes, trained: Trained, element_size: int) -> int:
    """Bytes per token that the adapters of a block keep: their inputs where nothing else does, and x A^T."""
    on_text = {"cross_attn.k", "cross_attn.v", "cross_attn.k_img", "cross_attn.v_img"}
    on_video = {name: each for name, each in targeted(sizes, trained).items() if name not in on_text}
    total = sum(kept_of(each, trained, element_size).per_token for each in on_video.values())
    if not ADAPTER_KINDS.get(trained.adapter).keeps_input:
        return total
    if trained.dropout:  # each has an input and a mask of its own
        return total + element_size * sum(2 * each.shape[1] for each in on_video.values())
    # The input of q, k and v is one; that of an attention's last layer is kept as the attention's result.
    inputs = {_input_of(name): each.shape[1] for name, each in on_video.items() if not name.endswith("attn.o")}
    return total + element_size * sum(inputs.values())


def _input_of(layer: str) -> str:
    """A name for what a layer on the video reads."""
    return "self_attn" if layer.startswith("self_attn.") else layer


def backward_units(sizes: Sizes, precision: str, element_size: int) -> float:
    """Units that a block's backward takes at its peak beside what was kept, eager, the incoming gradient included.

    The peak is in the feed-forward part, whose gradients are ffn_dim wide, or at the recompute's end.
    """
    ratio = sizes.ffn_dim / sizes.dim
    if precision_kind(precision).multiplies_in_fp8:  # gradients are scaled in fp32 before they are quantized
        return 1 + max(10.8, 5 + 4.5 * ratio)
    return 1 + (max(8, 2 + 3 * ratio) if element_size < 4 else max(2, 1 + ratio))


def part_units(sizes: Sizes, precision: str, element_size: int) -> dict[str, float]:
    """As `backward_units`, for a block whose parts are checkpointed one by one; by part.

    Its attention's backward or the recompute's end, as CUDA's kernels have them: the CPU's norm takes 2 units more. In fp32
    the input of a part's norm is the part's own, and not kept once more as within a whole block.
    """
    if element_size < 4:
        attention = 10.8 if precision_kind(precision).multiplies_in_fp8 else 8.0
        return {
            "self_attn": attention,
            "cross_attn": attention,
            "ffn": backward_units(sizes, precision, element_size),
        }
    return {"self_attn": 5.0, "cross_attn": 4.0, "ffn": backward_units(sizes, precision, element_size) - 1}


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
    return _resident_bytes(task, plan) + adapter_bytes(task, plan)


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
    in_update = lasting + 4 * adapter_params(sizes, trained) + update_bytes(sizes, trained)
    return max(_backward_bytes(task, bucket, plan), round(in_update))


def _backward_bytes(task: Task, bucket: Bucket, plan: Plan) -> int:
    """The peak of the backwards: at that of the last block that keeps as much, or of the first block.

    What blocks keep and their inputs are less from block to block, and the gradients more. A block that keeps less than
    those after it takes more itself.
    """
    sizes = task.sizes
    gradients = 4 * adapter_params(sizes, task.trained)
    fixed = constants().runtime_vram + constants().graph_vram * is_graphed(task, plan) + _weights_again(task, plan)
    fixed += _other_passes(task, bucket, plan) + working_bytes(sizes, task.trained, compute_size(task, plan))
    if not plan.checkpointing and plan.compile != "kernels":
        own = _own_bytes(task, bucket, plan, Kept())
        return round(fixed + own + (sizes.num_layers - 1) * _saved_bytes(task, bucket, plan) + gradients)
    layers, linears = sizes.num_layers, plan.keep_linears if plan.checkpointing else sizes.num_layers
    attention = max(plan.keep_attention, linears)
    fixed += gradients if task.gpus.count > 1 else 0  # the buffers in which several GPUs add theirs up
    at_start = gradients if task.accumulation > 1 or is_graphed(task, plan) else 0
    peaks: list[float] = []
    for done in {0, linears, attention, layers - 1}:  # blocks whose backward is done
        if done < layers:
            kept = Kept(max(attention - done, 0), max(linears - done, 0))
            present = max(at_start, gradients * (done + (done == layers - 1)) / layers)
            held = _inputs(task, plan, done) * input_bytes(task, bucket, plan) + _kept_bytes(task, bucket, plan, kept)
            peaks.append(_own_bytes(task, bucket, plan, kept) + held + present)
    return round(fixed + max(peaks))


def _other_passes(task: Task, bucket: Bucket, plan: Plan) -> float:
    """What forwards take beside the one whose backward is at its peak: what those keep that wait for theirs, too.

    A forward without a gradient takes less than a block's backward, but beside graphs, whose memory it can't have.
    """
    beside_graphs = task.passes.num_without > 0 and is_graphed(task, plan)
    total = _own_bytes(task, bucket, plan, Kept()) if beside_graphs else 0.0
    waiting = task.passes.most_waiting - 1
    if not waiting:
        return total
    if not plan.checkpointing and plan.compile != "kernels":
        return total + waiting * task.sizes.num_layers * _saved_bytes(task, bucket, plan)
    linears = plan.keep_linears if plan.checkpointing else task.sizes.num_layers
    kept = Kept(max(plan.keep_attention, linears), linears)
    held = (num_inputs(task, plan) - num_offloaded(task, plan)) * input_bytes(task, bucket, plan)
    return total + waiting * (held + _kept_bytes(task, bucket, plan, kept))


def _weights_again(task: Task, plan: Plan) -> int:
    """What weights take that are brought into another form for a product: dequantized, or transposed."""
    largest = task.sizes.ffn_dim * task.sizes.dim
    if plan.compile == "kernels" and kind_of(plan).multiplies_in_fp8:
        return largest
    if not is_quantized(task, plan):
        return 0
    by_kernel = kind_of(plan).kernel_weight is not None and task.stored_block_bytes is None
    one_pass = plan.compile == "kernels" and by_kernel
    return (1 if one_pass else _DENSE) * compute_size(task, plan) * largest


def _by_kernels(task: Task, bucket: Bucket, plan: Plan) -> KernelBlock:
    tokens, size = own_tokens(task, bucket), compute_size(task, plan)
    return kernel_block(
        task.sizes,
        task.trained,
        tokens=tokens,
        batch=bucket.batch,
        element_size=size,
        is_shared=task.gpus.context > 1,
    )


def _inputs(task: Task, plan: Plan, done: int) -> int:
    """Those on the device at the backward of a block, when `done` blocks are through."""
    left = task.sizes.num_layers - done
    second = max(plan.keep_attention - done, 0) if plan.split_blocks else 0
    if plan.offload_inputs:
        return min(_ARRIVED[done > 0], left + second + 1)
    return left + second


def _own_bytes(task: Task, bucket: Bucket, plan: Plan, kept: Kept) -> float:
    """What a block takes at its backward's peak, with what it has kept; `kept` at this point."""
    sizes, size = task.sizes, compute_size(task, plan)
    unit = input_bytes(task, bucket, plan)
    if plan.compile == "kernels":
        return _by_kernels(task, bucket, plan).own(plan, kept)
    if plan.split_blocks:
        return _part_bytes(task, bucket, plan, kept)
    tokens = own_tokens(task, bucket)
    by_part = saved_by_part(sizes, task.trained, tokens=tokens, batch=bucket.batch, element_size=size)
    saved = sum(by_part.values())
    if plan.compile == "off" or size > 2:
        exchanged = _EXCHANGED * unit if task.gpus.context > 1 else 0
        if plan.ffn_pieces > 1 and not kept.linears:
            return _eager_pieces(task, plan, by_part, unit) + exchanged
        return saved + backward_units(sizes, plan.precision, size) * unit + exchanged
    fitted = constants()
    units = backward_units(sizes, "bf16", size) + fitted.compiled_peak
    units += fitted.compiled_peak_ffn * sizes.ffn_dim / sizes.dim
    units += fitted.fp8_compute if kind_of(plan).multiplies_in_fp8 else 0.0
    if plan.checkpointing:
        units += max(0.0 if kept.attention else fitted.attention_again, fitted.products_kept if kept.linears else 0.0)
    less = (1 - 1 / plan.ffn_pieces) * (by_part["ffn"] + fitted.pieces_peak * unit)
    return max(saved + units * unit - less, unit)


def _eager_pieces(task: Task, plan: Plan, saved: Mapping[str, int], unit: int) -> float:
    """What a block takes whose feed-forward goes in pieces, each recomputed by itself: then, or at the parts before it."""
    sizes, size = task.sizes, compute_size(task, plan)
    units = part_units(sizes, plan.precision, size)
    before = saved["self_attn"] + saved["cross_attn"]
    of_piece = (saved["ffn"] + units["ffn"] * unit) / plan.ffn_pieces
    # The gradient of the block, and that of the feed-forward's input, both beside what the parts before it have kept.
    return before + 2 * unit + max(of_piece, units["self_attn"] * unit, units["cross_attn"] * unit)


def _part_bytes(task: Task, bucket: Bucket, plan: Plan, kept: Kept) -> float:
    """What the part of a block that takes most takes at its backward's peak.

    Until the backward gets there, the parts before it have their inputs, and the self-attention what it gave; the gradient
    of the block is held to the end.
    """
    sizes, size = task.sizes, compute_size(task, plan)
    unit, tokens = input_bytes(task, bucket, plan), own_tokens(task, bucket)
    saved = saved_by_part(sizes, task.trained, tokens=tokens, batch=bucket.batch, element_size=size)
    compiled = is_compiled(plan) and size < 4
    units = part_units(sizes, "bf16" if compiled else plan.precision, size)
    taken = {part: saved[part] + units[part] * unit for part in saved}
    attention = 0
    if not kept.attention:  # else it is counted as kept
        attention = attention_bytes(bucket.batch * tokens, sizes.dim, sizes.num_heads, size)
    eager = max(
        taken["ffn"] + 2 * unit + attention, taken["cross_attn"] + 2 * unit + attention, taken["self_attn"] + unit
    )
    if not compiled:
        return eager + (_EXCHANGED_BY_PART * unit if task.gpus.context > 1 and size < 4 else 0)
    fitted = constants()
    times = fitted.parts_kept if kept.attention else fitted.parts_again
    return times * eager + (fitted.fp8_compute * unit if kind_of(plan).multiplies_in_fp8 else 0)


def _saved_bytes(task: Task, bucket: Bucket, plan: Plan) -> float:
    """Bytes that a block keeps that is not computed again."""
    sizes, size = task.sizes, compute_size(task, plan)
    tokens = own_tokens(task, bucket)
    saved = saved_bytes(sizes, task.trained, tokens=tokens, batch=bucket.batch, element_size=size)
    if plan.compile == "off" or size > 2:
        return saved + (_EXCHANGED * input_bytes(task, bucket, plan) if task.gpus.context > 1 else 0)
    # A weight that the forward has brought into the compute dtype is kept for the backward by the compiler; not that of
    # the text's keys and values, since the text has no gradient.
    kept = dense_params(sizes) - num_keys(sizes) * sizes.dim**2
    dense = size * kept if is_quantized(task, plan) else 0
    return saved + constants().compiled_saved * input_bytes(task, bucket, plan) + dense


def _kept_bytes(task: Task, bucket: Bucket, plan: Plan, kept: Kept) -> int:
    """What checkpointed blocks keep beside their inputs, without what `_own_bytes` has of it."""
    sizes, size = task.sizes, compute_size(task, plan)
    if plan.compile == "kernels":
        block = _by_kernels(task, bucket, plan)
        is_own = Kept() if plan.split_blocks else Kept(min(kept.attention, 1), min(kept.linears, 1))
        return block.kept_by(kept) - block.kept_by(is_own)
    tokens = bucket.batch * own_tokens(task, bucket)
    attention = attention_bytes(tokens, sizes.dim, sizes.num_heads, size)
    keys = bucket.batch * (sizes.text_len + image_tokens(sizes))
    products = linears_bytes(tokens, keys, sizes.dim, sizes.ffn_dim, size)
    is_own = kept.attention > 0 and not plan.split_blocks
    num_products = kept.linears - (1 if kept.linears and plan.compile != "off" else 0)
    return (kept.attention - is_own) * attention + num_products * products


def _held_ram(task: Task, plan: Plan) -> int:
    state = offloaded_bytes(adapter_params(task.sizes, task.trained))[1] if has_offloaded_state(task, plan) else 0
    return _streamed_ram(task, plan) + state


def _streamed_ram(task: Task, plan: Plan) -> int:
    held = 0 if plan.stream_from == "mapped" else plan.streamed_blocks - plan.mapped_blocks
    is_staged = plan.streamed_blocks and (plan.stream_from != "pinned" or plan.mapped_blocks)
    return (held + (NUM_STAGED if is_staged else 0)) * block_weights(task, plan)
