"""Memory of one block in a training step, predicted from sizes: what it keeps from its forward, what its backward takes.

What autograd keeps of a block is counted to the byte. What its backward takes beside that was counted once with the
allocator's own numbers (torch 2.11) and stands here as multiples of one activation [B, L, D], called a unit. How compiled
blocks differ was fitted to steps that ran: see `constants.json`. Blocks that run by kernels are in `block_by_kernels`.

Shapes: B batch, L video tokens, S text tokens, I image tokens, D width, N heads.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from ..adapters.kind import ADAPTER_KINDS
from ..memory.precision import precision_kind
from ..memory.recompute import Kept, attention_bytes, linears_bytes
from .block_by_kernels import KernelBlock, kernel_block
from .constants import constants
from .plan import (
    Bucket,
    Plan,
    Task,
    compute_size,
    dense_params,
    image_tokens,
    input_bytes,
    is_compiled,
    is_quantized,
    kind_of,
    num_keys,
    own_tokens,
)
from .sizes import Sizes, Trained, dropout_bytes, kept_of, targeted

# Units that the exchanges of a shared clip take in a block of PyTorch's operators: the attention's result, sent back, is kept
# twice. In parts: gradients that are sent, beside those that have arrived.
EXCHANGED, EXCHANGED_BY_PART = 1.0, 1.5


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
    `element_size` 2 for bf16 and fp16, 4 for fp32.
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
    if trained.dropout:  # each has an input of its own
        return total + dropout_bytes(element_size) * sum(each.shape[1] for each in on_video.values())
    # The input of q, k and v is one; that of an attention's last layer is kept as the attention's result.
    inputs = {_input_of(name): each.shape[1] for name, each in on_video.items() if not name.endswith("attn.o")}
    return total + element_size * sum(inputs.values())


def _input_of(layer: str) -> str:
    """Layers that read the same tensor get the same name: q, k and v of the self-attention do."""
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


def own_bytes(task: Task, bucket: Bucket, plan: Plan, kept: Kept) -> float:
    """Bytes that one block takes at the peak of its backward, what it has kept included.

    `kept`: what blocks keep when the backward gets there.
    """
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
        exchanged = EXCHANGED * unit if task.gpus.context > 1 else 0
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
    """As `own_bytes`, with a chunked feed-forward: the peak is in a piece's recompute, or in the attention before it."""
    sizes, size = task.sizes, compute_size(task, plan)
    units = part_units(sizes, plan.precision, size)
    before = saved["self_attn"] + saved["cross_attn"]
    of_piece = (saved["ffn"] + units["ffn"] * unit) / plan.ffn_pieces
    # The gradient of the block, and that of the feed-forward's input, both beside what the parts before it have kept.
    return before + 2 * unit + max(of_piece, units["self_attn"] * unit, units["cross_attn"] * unit)


def _part_bytes(task: Task, bucket: Bucket, plan: Plan, kept: Kept) -> float:
    """As `own_bytes`, for a block whose parts are checkpointed one by one: the peak of the part that needs most.

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
        return eager + (EXCHANGED_BY_PART * unit if task.gpus.context > 1 and size < 4 else 0)
    fitted = constants()
    times = fitted.parts_kept if kept.attention else fitted.parts_again
    return times * eager + (fitted.fp8_compute * unit if kind_of(plan).multiplies_in_fp8 else 0)


def kept_without_checkpointing(task: Task, bucket: Bucket, plan: Plan) -> float:
    """Bytes that a block keeps from its forward where there is no gradient checkpointing."""
    sizes, size = task.sizes, compute_size(task, plan)
    tokens = own_tokens(task, bucket)
    saved = saved_bytes(sizes, task.trained, tokens=tokens, batch=bucket.batch, element_size=size)
    if plan.compile == "off" or size > 2:
        return saved + (EXCHANGED * input_bytes(task, bucket, plan) if task.gpus.context > 1 else 0)
    # A weight that the forward has brought into the compute dtype is kept for the backward by the compiler; not that of
    # the text's keys and values, since the text has no gradient.
    kept = dense_params(sizes) - num_keys(sizes) * sizes.dim**2
    dense = size * kept if is_quantized(task, plan) else 0
    return saved + constants().compiled_saved * input_bytes(task, bucket, plan) + dense


def moved_bytes(task: Task, bucket: Bucket, plan: Plan) -> int:
    """Bytes that a block keeps in main memory where it keeps its results there: all that it keeps, but some small tensors."""
    return round(task.mean_seen * _by_kernels(task, bucket, plan).kept)


def kept_bytes(task: Task, bucket: Bucket, plan: Plan, kept: Kept, *, own: bool = True) -> int:
    """Bytes that all checkpointed blocks keep beside their inputs.

    `own`: one of them is the block that `own_bytes` is asked for, and what that counts already is left out.
    """
    sizes, size = task.sizes, compute_size(task, plan)
    if plan.compile == "kernels":
        block = _by_kernels(task, bucket, plan)
        is_own = Kept() if plan.split_blocks or not own else Kept(min(kept.attention, 1), min(kept.linears, 1))
        return block.kept_by(kept) - block.kept_by(is_own)
    tokens = bucket.batch * own_tokens(task, bucket)
    attention = attention_bytes(tokens, sizes.dim, sizes.num_heads, size)
    keys = bucket.batch * (sizes.text_len + image_tokens(sizes))
    products = linears_bytes(tokens, keys, sizes.dim, sizes.ffn_dim, size)
    is_own = own and kept.attention > 0 and not plan.split_blocks
    num_products = kept.linears - (1 if own and kept.linears and plan.compile != "off" else 0)
    return (kept.attention - is_own) * attention + num_products * products
