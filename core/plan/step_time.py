"""How long a training step takes, predicted from sizes and a card's rates.

The traffic of element-wise operators and the number of kernels were counted once (torch 2.11), in units of one activation
[B, L, D]; those of compiled blocks were fitted to steps that ran: see `constants.json`.
"""

import math
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from ..adapters.kind import ADAPTER_KINDS
from ..memory.adamw import offloaded_bytes
from ..memory.recompute import moved_blocks
from .block_bytes import moved_bytes
from .card import LINK_LATENCY_S, Card
from .constants import constants
from .plan import (
    CLIP_TOKENS,
    Bucket,
    Plan,
    Task,
    block_weights,
    clip_tokens,
    compute_size,
    dense_params,
    has_offloaded_state,
    input_bytes,
    is_compiled,
    is_graphed,
    is_quantized,
    kept_of,
    kind_of,
    num_offloaded,
    own_batches,
    own_tokens,
)
from .sizes import Sizes, Trained, adapter_params, block_linears, targeted

_EXCHANGED = 4  # activations: queries, keys, values and the result
_MOVING_S = (
    1.5e-3  # seconds of the host for the copies of a block that keeps its results in main memory, each way; assumed
)
_PACKED = 4  # times that each is read or written to be sent, and when it has arrived


def step_seconds(task: Task, bucket: Bucket, plan: Plan, card: Card, block: "BlockTime | None" = None) -> float:
    """Of one batch: its forwards and backwards, each as long as the longest of computing, launching and copying.

    `block`: the time of one, where it is known.
    """
    layers = task.sizes.num_layers
    block = block or block_seconds(task, bucket, plan, card)
    weights = _weights_seconds(task, plan, card)
    reading = _reading_seconds(task, plan, card)
    unit = task.mean_seen * input_bytes(task, bucket, plan)
    inputs = num_offloaded(task, plan) * unit / card.to_device
    if plan.offload_linears:
        inputs += plan.offload_linears * moved_bytes(task, bucket, plan) / card.to_device
    recompute = _recompute_seconds(block, layers, plan) if plan.checkpointing else 0.0
    if plan.split_blocks:
        recompute += plan.keep_attention * block.cross_again + (layers - plan.keep_attention) * block.again
    if plan.ffn_pieces > 1 and not is_compiled(plan):
        recompute += (layers - plan.keep_linears - plan.offload_linears) * block.ffn_again
    num_trained = adapter_params(task.sizes, task.trained)
    update = num_trained * 28 / card.bandwidth + _adding_seconds(task, card, num_trained)
    if has_offloaded_state(task, plan):  # in and out at once
        update += offloaded_bytes(num_trained)[1] / card.to_device
    gathered = (layers - plan.streamed_blocks) * gather_seconds(task, plan, card)
    hosted = plan.offload_linears * _MOVING_S
    forward = forward_seconds(task, bucket, plan, card, block, inputs=inputs, hosted=hosted)
    # The forward's copies out run beside those in; in the backward both go in.
    down = max(layers * max(block.backward, block.launch_down) + recompute, layers * block.launch_down + hosted)
    down = max(down, weights + inputs, reading, gathered)
    passes = bucket.passes or task.passes
    without = passes.num_without / passes.copies  # which take one copy of the batch each
    return (passes.num_forwards + without) * forward + passes.num_forwards * down + update


def forward_seconds(
    task: Task,
    bucket: Bucket,
    plan: Plan,
    card: Card,
    block: "BlockTime | None" = None,
    *,
    inputs: float = 0.0,
    hosted: float = 0.0,
) -> float:
    """Of one forward, with the blocks as the plan has them.

    `inputs`: seconds in which what it keeps is copied away; `hosted`: of the host, for what of that are results.
    """
    layers, streamed = task.sizes.num_layers, plan.streamed_blocks
    block = block or block_seconds(task, bucket, plan, card)
    weights = _weights_seconds(task, plan, card)
    gathered = (layers - streamed) * gather_seconds(task, plan, card)
    first = weights / streamed if streamed else 0.0  # the first block's copy hides behind nothing
    reading = _reading_seconds(task, plan, card)
    up = max(layers * max(block.forward, block.launch_up), layers * block.launch_up + hosted)
    return max(up, weights, inputs, reading, gathered) + first


def _weights_seconds(task: Task, plan: Plan, card: Card) -> float:
    """Until all swapped blocks have come."""
    return plan.streamed_blocks * block_weights(task, plan) / card.copy_rate(plan.stream_from)


def _reading_seconds(task: Task, plan: Plan, card: Card) -> float:
    """Of the thread that stages blocks, for the forward or the backward: what lies in files, beside all else."""
    if not plan.mapped_blocks:
        return 0.0
    others = plan.streamed_blocks - plan.mapped_blocks
    staged = 0.0 if plan.stream_from == "pinned" else others / card.copy_rate(plan.stream_from)
    return block_weights(task, plan) * (plan.mapped_blocks / card.copy_rate("mapped") + staged)


def gather_seconds(task: Task, plan: Plan, card: Card) -> float:
    """Seconds until the other GPUs' shares of one block have arrived, where the base is spread over the GPUs."""
    return block_weights(task, plan) * (plan.shards - 1) / plan.shards / card.link_rate if plan.shards > 1 else 0.0


def exchange_seconds(task: Task, bucket: Bucket, plan: Plan, card: Card) -> float:
    """Of a block's self-attention where GPUs share a clip, forward or backward: four activations are sent, and packed."""
    context = task.gpus.context
    if context == 1:
        return 0.0
    unit = input_bytes(task, bucket, plan)
    sent = _EXCHANGED * unit * (context - 1) / context / card.link_rate
    return sent + _EXCHANGED * _PACKED * unit / card.bandwidth + _EXCHANGED * LINK_LATENCY_S


def _adding_seconds(task: Task, card: Card, num_trained: int) -> float:
    """Of the gradients that the GPUs add up in fp32, around a ring; what of it hides behind the backward is not counted."""
    count = task.gpus.count
    return 2 * 4 * num_trained * (count - 1) / count / card.link_rate / own_batches(task) if count > 1 else 0.0


class BlockTime(NamedTuple):
    """Seconds of one block."""

    forward: float
    attention: float  # of it, self-attention
    products: float  # of it, products that may be kept
    last: float  # of it, the product that no gradient needs, which is not computed again
    dense: float  # to bring a quantized base into the compute dtype once more, where products are computed again
    backward: float  # without recompute
    again: float  # of a block in parts, what is recomputed a second time: linears of all but the last, cross-attention
    cross_again: float  # of it, the cross-attention
    ffn_again: float  # of a block whose feed-forward goes in pieces, uncompiled, that
    launch_up: float  # of the host, for the forward
    launch_down: float


def _recompute_seconds(block: BlockTime, layers: int, plan: Plan) -> float:
    """Of all blocks: those that keep their products keep their attention too; those in main memory run by kernels."""
    num_attention = max(plan.keep_attention, plan.keep_linears)
    again = block.forward - block.last
    moved = moved_blocks(kept_of(plan), layers) if plan.offload_linears else ()
    first = sum(number < layers - num_attention for number in moved)
    kinds = [
        (layers - num_attention - first, again + block.dense),
        (num_attention - plan.keep_linears - len(moved) + first, again + block.dense - block.attention),
    ]
    if plan.compile != "kernels":  # by which nothing is run again where all is kept
        kinds.append((plan.keep_linears, again - block.attention - block.products))
    return sum(number * max(seconds, block.launch_up) for number, seconds in kinds)


def block_seconds(task: Task, bucket: Bucket, plan: Plan, card: Card) -> BlockTime:
    """Of a block, the mean over all: some may see a share of the tokens alone.

    The same for all plans that compute in one way (`way_of`).
    """
    if not task.seen:
        return _block_seconds(task, bucket, plan, card)
    layers = task.sizes.num_layers
    each = [(number, _block_seconds(task, replace(bucket, seen=share), plan, card)) for number, share in task.seen]
    fields = zip(*(block for _, block in each), strict=True)
    return BlockTime(
        *(sum(number * value for (number, _), value in zip(each, values, strict=True)) / layers for values in fields)
    )


def _block_seconds(task: Task, bucket: Bucket, plan: Plan, card: Card) -> BlockTime:
    sizes, size, eager = task.sizes, compute_size(task, plan), plan.compile == "off"
    tokens, dim = own_tokens(task, bucket), sizes.dim
    rate = _product_rate(plan, card, size) / bucket.batch
    linears, last = _linear_flops(sizes, tokens) / rate, 2 * tokens * dim * sizes.ffn_dim / rate
    attention_rate = constants().sustained_attention * card.attention / bucket.batch
    self_attention = 4 * tokens * clip_tokens(sizes, bucket) * dim / attention_rate
    cross_attention = 4 * tokens * sizes.text_len * dim / (constants().cross_rate * attention_rate)
    attention = self_attention + cross_attention
    up, down, dense = _traffic_seconds(task, bucket, plan, card)
    exchange = exchange_seconds(task, bucket, plan, card)
    graphed = is_graphed(task, plan)
    launch_s = _launch_seconds(task, plan, card, graphed=graphed)
    kernels = _launches(plan, graphed=graphed)
    if graphed:  # the GPU itself loses it between kernels
        up, down = up + kernels[0] * launch_s, down + kernels[1] * launch_s
    square = 2 * tokens * dim**2 / rate  # one of its linears
    cross_again = 2 * square + cross_attention + constants().part_traffic_cross_attn * up
    return BlockTime(
        forward=linears + attention + exchange + up,
        attention=self_attention,
        products=linears - last,
        last=0.0 if eager else last,
        dense=dense if is_compiled(plan) else 0.0,
        backward=linears + 2.5 * attention + exchange + down,
        again=cross_again + 4 * square + exchange + constants().part_traffic_self_attn * up,
        cross_again=cross_again,
        ffn_again=(2 if eager else 1) * last + constants().part_traffic_ffn * up,
        launch_up=kernels[0] * launch_s,
        launch_down=kernels[1] * launch_s,
    )


def _launches(plan: Plan, *, graphed: bool) -> tuple[int, int]:
    these = constants()
    if plan.compile == "kernels" and graphed:
        return these.kernels_graphed_forward, these.kernels_graphed_backward
    if plan.compile == "kernels":
        return these.kernels_launches_forward, these.kernels_launches_backward
    if plan.compile == "off":
        return these.launches_forward, these.launches_backward
    return these.compiled_launches_forward, these.compiled_launches_backward


def _launch_seconds(task: Task, plan: Plan, card: Card, *, graphed: bool) -> float:
    these = constants()
    launch_s = these.graph_gap_s if graphed else card.launch_s
    if kind_of(plan).multiplies_in_fp8:
        launch_s *= these.kernels_fp8_launches if plan.compile == "kernels" else these.fp8_launches
    launch_s *= these.quantized_launches if is_compiled(plan) and not graphed and is_quantized(task, plan) else 1.0
    return launch_s * (these.split_launches if plan.split_blocks else 1 + these.piece_launches * (plan.ffn_pieces - 1))


def _product_rate(plan: Plan, card: Card, size: int) -> float:
    is_fp8 = kind_of(plan).multiplies_in_fp8 and card.matmul_fp8
    return card.matmul_rate(plan.precision, size) * (constants().sustained_fp8 if is_fp8 else constants().sustained)


def _traffic_seconds(task: Task, bucket: Bucket, plan: Plan, card: Card) -> tuple[float, float, float]:
    """Of element-wise operators, forward and backward: what they read and write. And for the weights' part of it.

    Eager blocks, and those by kernels, bring their weights into the compute dtype in both. Compiled ones keep them from the
    forward, or from a recompute that leaves out the products; steps that compute these again take as long as if they did it
    once more.
    """
    sizes, size = task.sizes, compute_size(task, plan)
    unit = input_bytes(task, bucket, plan)
    traffic, quantizing = _traffic(plan, size)
    adapters = _adapter_widths(sizes, task.trained) / sizes.dim
    dense = 0.0
    compiled, eager = is_compiled(plan), plan.compile == "off"
    if is_quantized(task, plan):  # read, and written in the compute dtype; eager scaled in a second pass
        dense = block_weights(task, plan) + (3 if eager else 1) * size * dense_params(sizes)
        if not compiled:  # each piece for itself
            dense *= 1 + (plan.ffn_pieces - 1) * 2 * sizes.dim * sizes.ffn_dim / dense_params(sizes)
    of_kind = _kind_bytes(sizes, task.trained)
    up = ((traffic[0] + quantizing[0] + adapters) * unit + dense + of_kind / 3) / card.bandwidth
    again = 0.0 if compiled else dense
    if plan.compile == "kernels" and kind_of(plan).multiplies_in_fp8 and not plan.keep_transposed:
        again += 2 * dense_params(sizes)  # transposed
    down = ((traffic[1] + quantizing[1] + 2 * adapters) * unit + again + 2 * of_kind / 3) / card.bandwidth
    return up, down, dense / card.bandwidth


def _traffic(plan: Plan, size: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Memory traffic of a block in activations read or written, for its forward and its backward; more with fp8 products."""
    these = constants()
    quantizing = (0.0, 0.0)
    if kind_of(plan).multiplies_in_fp8:
        quantizing = these.fp8_traffic_forward, these.fp8_traffic_backward
        if plan.compile == "kernels":
            quantizing = these.kernels_fp8_traffic_forward, these.kernels_fp8_traffic_backward
    if plan.compile == "kernels":
        return (these.kernels_traffic_forward, these.kernels_traffic_backward), quantizing
    if plan.compile != "off":
        return (these.compiled_traffic_forward, these.compiled_traffic_backward), quantizing
    if size < 4:
        return (these.traffic_16_forward, these.traffic_16_backward), quantizing
    return (these.traffic_32_forward, these.traffic_32_backward), quantizing


@lru_cache
def _adapter_widths(sizes: Sizes, trained: Trained) -> int:
    """What the adapters of a block read and write for a token in the forward, in numbers."""
    return sum(inner + 2 * out for (out, inner), _ in targeted(sizes, trained).values())


@lru_cache
def _kind_bytes(sizes: Sizes, trained: Trained) -> float:
    """What kinds of adapters move that make a matrix as large as a layer's weights, in a block: forward and backward."""
    traffic = ADAPTER_KINDS.get(trained.adapter).weight_traffic
    return traffic and traffic * sum(math.prod(shape) for shape, _ in targeted(sizes, trained).values())


@lru_cache
def _linear_flops(sizes: Sizes, tokens: int) -> int:
    """Of a block's linears in the forward, for one clip; a multiply-add is two."""
    on_keys = ("cross_attn.k", "cross_attn.v", "cross_attn.k_img", "cross_attn.v_img")
    total = 0
    for name, (out, inner) in block_linears(sizes).items():
        rows = tokens
        if name in on_keys:
            rows = CLIP_TOKENS if name.endswith("_img") else sizes.text_len
        total += 2 * rows * out * inner
    return total
