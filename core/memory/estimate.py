"""Memory and time of a training step, predicted from sizes and a card's rates.

Weights and the adapter's state are counted to the byte, and so is what autograd keeps of a block. What a block's backward
takes beside that, and the traffic of element-wise operators, were counted once with the allocator's and the dispatcher's
own numbers (torch 2.11) and stand here as multiples of one activation [B, L, D], called a unit.

Shapes: B batch, L video tokens, S text tokens, I image tokens, D width, N heads.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from .card import Card, Fit
from .master import MasterKind
from .recompute import attention_bytes
from .sizes import (
    PLAIN_BYTES,
    Sizes,
    Trained,
    adapter_params,
    block_bytes,
    block_linears,
    rest_bytes,
    state_bytes,
    targeted,
)

Compile = Literal["off", "static", "dynamic"]

NUM_SLOTS = 2  # of the ring of streamed blocks
CLIP_TOKENS = 257
RUNTIME_VRAM = 300 * 2**20  # workspaces of cuBLAS and cuDNN, batches read ahead
RUNTIME_RAM = 3 * 2**30  # Python, PyTorch and CUDA's libraries
COMPILED_SHARE = 0.7  # of an eager block's activations that a compiled one takes: 26 of 37.5 units at 14B, on an H100

# Bytes moved by element-wise operators in a block, in units, eager: (forward, backward).
_TRAFFIC = {2: (182.0, 304.0), 4: (61.0, 140.0)}
_COMPILED_TRAFFIC = (26.0, 40.0)
_KERNELS, _COMPILED_KERNELS = (131, 186), (35, 60)  # launched for a block: forward, backward


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the base is held and what is recomputed: fields have the names and meanings of the job's options."""

    precision: str = "bf16"
    checkpointing: bool = True
    keep_attention: int = 0
    offload_inputs: bool = False
    streamed_blocks: int = 0
    stream_from: MasterKind = "pinned"
    compile: Compile = "off"


@dataclass(frozen=True)
class Bucket:
    """Clips of one size: `shape` (C, F, H, W) of their latents, trained `batch` at a time in `share` of all batches."""

    shape: tuple[int, int, int, int]
    batch: int = 1
    share: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained."""

    sizes: Sizes
    trained: Trained = field(default_factory=Trained)
    element_size: int = 2  # of the arithmetic, where the precision leaves it open
    stored_block_bytes: int | None = None  # of the largest block, where the file decides (GGUF); else by precision
    accumulation: int = 1


@dataclass(frozen=True)
class Estimate:
    """Peaks and time of one optimizer step."""

    vram: int  # bytes on the device
    ram: int  # bytes of main memory
    seconds: float
    exact_vram: int  # the part of `vram` that is counted, not predicted: weights, adapter, its state
    exact_ram: int = 0  # the part of `ram` that is held all the time


def estimate(task: Task, bucket: Bucket, plan: Plan, card: Card, fit: Fit | None = None) -> Estimate:
    """What one step with clips of `bucket` takes under `plan` on `card`, corrected by `fit`."""
    fit = fit or Fit()
    exact = _resident_bytes(task, plan) + _adapter_bytes(task)
    working = _working_bytes(task, bucket, plan)
    held = _streamed_ram(task, plan)
    offloaded = (task.sizes.num_layers - 1) * _input_bytes(task, bucket, plan) if plan.offload_inputs else 0
    return Estimate(
        vram=exact + round(fit.memory * working),
        ram=RUNTIME_RAM + held + offloaded,
        seconds=fit.time * task.accumulation * _seconds(task, bucket, plan, card),
        exact_vram=exact,
        exact_ram=held,
    )


def num_tokens(sizes: Sizes, bucket: Bucket) -> int:
    """Tokens of one clip."""
    _, frames, height, width = bucket.shape
    patch = sizes.patch_size
    return (frames // patch[0]) * (height // patch[1]) * (width // patch[2])


def compute_size(task: Task, plan: Plan) -> int:
    """Bytes of an activation's number."""
    return PLAIN_BYTES.get(plan.precision, task.element_size)


@lru_cache
def saved_bytes(sizes: Sizes, trained: Trained, *, tokens: int, batch: int = 1, element_size: int = 2) -> int:
    """Bytes that autograd keeps of one block from its forward to its backward, without the block's input and weights.

    Eager, with the light LoRA forward and an attention that never has its scores in memory. `tokens` of one clip;
    `element_size` 2 for bf16 and fp16, 4 for fp32. A dropout's mask is counted as large as its input, as the CPU has it.
    """
    e, dim, heads = element_size, sizes.dim, sizes.num_heads
    copy = 4 * dim if e < 4 else 0  # of the block's input, in fp32 for its norm; in fp32 it is the input itself
    rows = 8  # mean and inverse deviation
    self_attn = copy + rows + 2 * (4 * dim + 4) + 4 * e * dim + 4 * heads  # norms of q and k; q, k, v, out, logsumexp
    cross_attn = (4 * dim + rows) + (4 * dim + 4) + 2 * e * dim + 4 * heads  # norm3; norm of q; q, out, logsumexp
    ffn = 4 * dim + rows + e * sizes.ffn_dim
    per_token = self_attn + cross_attn + ffn + _adapter_inputs(sizes, trained, e)
    branches = [sizes.text_len]
    if sizes.image_dim is not None:
        branches.append(sizes.image_positions or CLIP_TOKENS)
        per_token += e * dim + 4 * heads  # the attention to the image
        per_token += e * dim if "cross_attn" in trained.targets else 0  # the sum of both
    per_key = 2 * e * dim  # k, v
    if "cross_attn" in trained.targets:  # the norm of k; x A^T of k and v; dropout's outputs, the text needs no mask
        per_key += 4 * dim + 4 + 2 * e * trained.rank + (2 * e * dim if trained.dropout else 0)
    modulation = 4 * (6 + 2) * dim
    factors = adapter_params(sizes, trained) // sizes.num_layers * e if e < 4 else 0  # A and B in the compute dtype
    return batch * (tokens * per_token + sum(branches) * per_key + modulation) + factors


def _adapter_inputs(sizes: Sizes, trained: Trained, element_size: int) -> int:
    """Bytes per token that the adapters of a block keep: their inputs where nothing else does, and x A^T."""
    on_text = {"cross_attn.k", "cross_attn.v", "cross_attn.k_img", "cross_attn.v_img"}
    on_video = {name: s for name, s in targeted(sizes, trained.targets).items() if name not in on_text}
    total = len(on_video) * trained.rank
    if trained.dropout:  # each has an input and a mask of its own
        return element_size * (total + sum(2 * inner for _, inner in on_video.values()))
    groups = {name.split(".")[0] for name in on_video}
    total += sizes.dim * len(groups) + (sizes.ffn_dim if "ffn" in groups else 0)
    return element_size * total


def backward_units(sizes: Sizes, precision: str, element_size: int) -> float:
    """Units that a block's backward takes at its peak beside what was kept, eager, the incoming gradient included.

    The peak is in the feed-forward part, whose gradients are ffn_dim wide, or at the recompute's end.
    """
    ratio = sizes.ffn_dim / sizes.dim
    if precision == "fp8_compute":  # gradients are scaled in fp32 before they are quantized
        return 1 + max(10.8, 5 + 4.5 * ratio)
    return 1 + (max(8, 2 + 3 * ratio) if element_size < 4 else max(2, 1 + ratio))


def _block_weights(task: Task, plan: Plan) -> int:
    if task.stored_block_bytes is not None:
        return task.stored_block_bytes
    return block_bytes(task.sizes, plan.precision, compute_size(task, plan))


def _resident_bytes(task: Task, plan: Plan) -> int:
    block = _block_weights(task, plan)
    resident = task.sizes.num_layers - plan.streamed_blocks
    return (resident + min(NUM_SLOTS, plan.streamed_blocks)) * block + rest_bytes(task.sizes)


def _adapter_bytes(task: Task) -> int:
    """fp32 weights and the optimizer's state; gradients come and go."""
    return adapter_params(task.sizes, task.trained) * (4 + state_bytes(task.trained))


def _input_bytes(task: Task, bucket: Bucket, plan: Plan) -> int:
    """One unit: an activation [B, L, D]."""
    return bucket.batch * num_tokens(task.sizes, bucket) * task.sizes.dim * compute_size(task, plan)


def _working_bytes(task: Task, bucket: Bucket, plan: Plan) -> int:
    """The peak of all that a step makes: at the backward of the last block, or of the first, when all gradients are there."""
    sizes, size = task.sizes, compute_size(task, plan)
    unit = _input_bytes(task, bucket, plan)
    tokens = num_tokens(sizes, bucket)
    saved = saved_bytes(sizes, task.trained, tokens=tokens, batch=bucket.batch, element_size=size)
    transient = backward_units(sizes, plan.precision, size) * unit
    if plan.compile != "off":
        saved, transient = COMPILED_SHARE * saved, COMPILED_SHARE * transient
    gradients = 4 * adapter_params(sizes, task.trained)
    dense = 2 * size * sizes.ffn_dim * sizes.dim if _is_quantized(task, plan) else 0  # of the largest linear
    fixed = dense + RUNTIME_VRAM + transient
    if not plan.checkpointing:
        return round(fixed + sizes.num_layers * saved + gradients)
    kept = attention_bytes(bucket.batch * tokens, sizes.dim, sizes.num_heads, size)
    inputs = min(3, sizes.num_layers) if plan.offload_inputs else sizes.num_layers
    own = kept if plan.keep_attention else 0  # of the block in its backward, counted in `saved` as well
    early = inputs * unit + plan.keep_attention * kept - own + (gradients if task.accumulation > 1 else 0)
    late = min(inputs, 2) * unit + gradients
    return round(fixed + saved + max(early, late))


def _streamed_ram(task: Task, plan: Plan) -> int:
    block = _block_weights(task, plan)
    staging = 2 * block if plan.streamed_blocks and plan.stream_from != "pinned" else 0
    return staging + (0 if plan.stream_from == "mapped" else plan.streamed_blocks * block)


def _is_quantized(task: Task, plan: Plan) -> bool:
    return task.stored_block_bytes is not None or plan.precision not in (*PLAIN_BYTES, "auto", "fp8_compute")


def _seconds(task: Task, bucket: Bucket, plan: Plan, card: Card) -> float:
    """Of one batch: forward and backward, each as long as the longest of computing, launching and copying."""
    layers, streamed = task.sizes.num_layers, plan.streamed_blocks
    forward, attention, backward = _block_seconds(task, bucket, plan, card)
    weights = streamed * _block_weights(task, plan) / card.copy_rate(plan.stream_from)
    unit = _input_bytes(task, bucket, plan)
    inputs = (layers - 1) * unit / card.to_device if plan.offload_inputs else 0.0
    recompute = (layers * forward - plan.keep_attention * attention) if plan.checkpointing else 0.0
    update = adapter_params(task.sizes, task.trained) * 28 / card.bandwidth
    # The copies out run beside those in; in the backward both go in. The first block's copy hides behind nothing.
    first = weights / streamed if streamed else 0.0
    up = max(layers * forward, weights, inputs)
    down = max(layers * backward + recompute, weights + inputs)
    return up + down + first + update


def _block_seconds(task: Task, bucket: Bucket, plan: Plan, card: Card) -> tuple[float, float, float]:
    """(forward, the self-attention in it, backward without recompute) of one block."""
    sizes, size, compiled = task.sizes, compute_size(task, plan), plan.compile != "off"
    tokens, dim = num_tokens(sizes, bucket), sizes.dim
    linears = bucket.batch * _linear_flops(sizes, tokens) / card.matmul_rate(plan.precision, size)
    self_attention = bucket.batch * 4 * tokens**2 * dim / card.attention
    cross_attention = bucket.batch * 4 * tokens * sizes.text_len * dim / card.attention
    attention = self_attention + cross_attention
    unit = _input_bytes(task, bucket, plan)
    traffic = _COMPILED_TRAFFIC if compiled else _TRAFFIC[size]
    adapters = sum(inner + 2 * out for out, inner in targeted(sizes, task.trained.targets).values()) / dim
    dense = 0.0
    if _is_quantized(task, plan):  # read, written and read again in the compute dtype
        dense = _block_weights(task, plan) + 3 * size * sum(out * inner for out, inner in block_linears(sizes).values())
    up = ((traffic[0] + adapters) * unit + dense) / card.bandwidth
    down = ((traffic[1] + 2 * adapters) * unit + dense) / card.bandwidth
    kernels = _COMPILED_KERNELS if compiled else _KERNELS
    forward = max(linears + attention + up, kernels[0] * card.launch_s)
    backward = max(linears + 2.5 * attention + down, kernels[1] * card.launch_s)
    return forward, self_attention, backward


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
