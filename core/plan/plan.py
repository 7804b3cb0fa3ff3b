"""What is trained, on clips of which sizes, how the base is held, and the sizes that follow from these.

Shapes: C channels, F H W latent frames, height, width, B batch, L video tokens, D width.
"""

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

from ..adapters.kind import ADAPTER_KINDS
from ..facts import CLIP_TOKENS, num_tokens
from ..memory.precision import PrecisionKind, precision_kind
from ..memory.recompute import Kept
from ..objective.passes import ONE_FORWARD, Passes
from ..parallel.parts import largest_part
from ..settings.memory import BlockMode, CudaGraphs, MasterKind
from .sizes import Sizes, Trained, block_bytes, block_linears, can_offload


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the base is held and what is recomputed: fields have the names and meanings of the job's options.

    In the order in which a plan's line tells them (`words`).
    """

    precision: str = "bf16"
    checkpointing: bool = True
    shards: int = 1  # GPUs of a machine over which each block that is not swapped lies spread; 1: each has all of them
    streamed_blocks: int = 0
    stream_from: MasterKind = "pinned"
    mapped_blocks: int = 0
    split_blocks: bool = False
    ffn_pieces: int = 1
    offload_inputs: bool = False
    offload_optimizer: bool = False
    keep_attention: int = 0
    keep_linears: int = 0
    offload_linears: int = 0
    keep_transposed: bool = False  # no option: the weights of 8 bits are there a second time, column by column
    compile: BlockMode = "off"
    cuda_graphs: CudaGraphs = "auto"


@dataclass(frozen=True)
class Bucket:
    """Clips of one size: `shape` (C, F, H, W) of their latents, trained `batch` at a time in `share` of all batches."""

    shape: tuple[int, int, int, int]
    batch: int = 1
    share: float = 1.0
    seen: float = 1.0  # of its tokens, by the blocks that are looked at
    passes: Passes | None = None  # of such a batch, where they are fewer than `Task.passes`


@dataclass(frozen=True)
class Gpus:
    """The GPUs that one run is spread over."""

    count: int = 1
    context: int = 1  # of them, that share the tokens of each clip
    holders: int = 1  # of a machine, that hold swapped blocks in main memory together; 1: each has its own copy

    @property
    def side_by_side(self) -> int:
        """Batches that are trained at the same time."""
        return self.count // self.context


ONE_GPU = Gpus()


SecondBase = Literal["", "device", "host"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained."""

    sizes: Sizes
    trained: Trained = field(default_factory=Trained)
    element_size: int = 2  # of the arithmetic, where the precision leaves it open
    stored_block_bytes: int | None = None  # of the largest block, where the file decides (GGUF); else by precision
    rest_bytes: int | None = None  # of what is outside of the blocks; None: in fp32
    accumulation: int = 1  # batches of a step, on all GPUs together
    passes: Passes = ONE_FORWARD  # of a batch
    graphs: bool = False  # whether CUDA graphs are used where a plan allows it
    gpus: Gpus = ONE_GPU
    # How many blocks see which share of a clip's tokens (TREAD), in the blocks' order; (): all see all.
    seen: tuple[tuple[int, float], ...] = ()
    second_base: SecondBase = ""  # where the weights of another base wait that shares the adapter; "": there is none
    features: int = 0  # width of the features that hidden states are aligned with (CREPA); 0: they are not

    @property
    def mean_seen(self) -> float:
        """The share of a clip's tokens that a block sees, the mean over the blocks."""
        return sum(number * share for number, share in self.seen) / self.sizes.num_layers if self.seen else 1.0

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of a clip's tokens that each block sees."""
        seen = self.seen or ((self.sizes.num_layers, 1.0),)
        return tuple(share for number, share in seen for _ in range(number))


def clip_tokens(sizes: Sizes, bucket: Bucket) -> int:
    """Tokens of one clip, of those that are seen."""
    return round(num_tokens(bucket.shape, sizes.patch_size) * bucket.seen)


def own_tokens(task: Task, bucket: Bucket) -> int:
    """Tokens of one clip on one GPU. Where GPUs share the clip: those of the GPU that has most."""
    tokens = clip_tokens(task.sizes, bucket)
    if task.gpus.context == 1:
        return tokens
    return largest_part(tokens, bucket.shape[1] // task.sizes.patch_size[0], task.gpus.context)


def own_batches(task: Task) -> int:
    """Batches of a step that a GPU trains, alone or with those that it shares clips with."""
    return -(-task.accumulation // task.gpus.side_by_side)


def kind_of(plan: Plan) -> PrecisionKind:
    """The plan's precision. ConfigError for one that is not known, or is still to be decided ("auto")."""
    return precision_kind(plan.precision)


def compute_size(task: Task, plan: Plan) -> int:
    """Bytes of an activation's number."""
    dtype = kind_of(plan).dtype
    return task.element_size if dtype is None else dtype.itemsize


def input_bytes(task: Task, bucket: Bucket, plan: Plan) -> int:
    """One unit: an activation [B, L, D], of the tokens that a GPU has."""
    return bucket.batch * own_tokens(task, bucket) * task.sizes.dim * compute_size(task, plan)


def block_weights(task: Task, plan: Plan) -> int:
    if task.stored_block_bytes is not None:
        return task.stored_block_bytes
    return block_bytes(task.sizes, plan.precision, compute_size(task, plan))


def is_quantized(task: Task, plan: Plan) -> bool:
    return task.stored_block_bytes is not None or kind_of(plan).dequantizes


def keeps_products(task: Task, plan: Plan) -> bool:
    """Whether single blocks can keep what their linear layers give; by PyTorch's operators those with a plain LoRA can."""
    return plan.compile == "kernels" or ADAPTER_KINDS.get(task.trained.adapter).is_plain


def is_compiled(plan: Plan) -> bool:
    """Whether blocks run by torch.compile."""
    return plan.compile in ("static", "dynamic")


def allows_graphs(plan: Plan) -> bool:
    """Whether a forward or backward can be one CUDA graph: no blocks or activations are moved meanwhile."""
    moves = plan.streamed_blocks or plan.shards > 1
    moves = moves or plan.offload_inputs or plan.offload_linears
    return plan.cuda_graphs != "off" and not (moves or plan.split_blocks)


def can_keep_transposed(task: Task, plan: Plan) -> bool:
    """Whether weights may be there transposed, too: the backward's products want them so, and nothing moves them."""
    is_needed = plan.compile == "kernels" and kind_of(plan).multiplies_in_fp8 and task.stored_block_bytes is None
    return is_needed and not (plan.streamed_blocks or plan.shards > 1 or task.second_base)


def is_graphed(task: Task, plan: Plan) -> bool:
    """Whether the host launches a forward or a backward as one CUDA graph."""
    return task.graphs and allows_graphs(plan)


def kept_of(plan: Plan) -> Kept:
    """How many of the plan's blocks keep something."""
    return Kept(plan.keep_attention, plan.keep_linears, plan.offload_linears)


def keeping(plan: Plan, kept: Kept) -> Plan:
    """The plan, of which so many blocks keep something."""
    if kept_of(plan) == kept:
        return plan
    return replace(plan, keep_attention=kept.attention, keep_linears=kept.linears, offload_linears=kept.moved)


def way_of(task: Task, plan: Plan) -> Plan:
    """How the plan's blocks are computed: the plan without what they keep, and without where the frozen ones lie."""
    return replace(
        plan,
        shards=1,
        streamed_blocks=0,
        stream_from="pinned",
        mapped_blocks=0,
        offload_optimizer=False,
        keep_attention=0,
        keep_linears=0,
        offload_linears=0,
        cuda_graphs="auto" if is_graphed(task, plan) else "off",  # which moving blocks has to do with
    )


def num_inputs(task: Task, plan: Plan) -> int:
    """Tensors that checkpointing keeps: the inputs of blocks, and a second one where a block in parts keeps its attention."""
    return task.sizes.num_layers + (plan.keep_attention if plan.split_blocks else 0)


def num_offloaded(task: Task, plan: Plan) -> int:
    """How many of these inputs wait in main memory with activation offload: all but those of the last block."""
    last = 2 if plan.split_blocks and plan.keep_attention else 1
    return num_inputs(task, plan) - last if plan.offload_inputs else 0


def has_offloaded_state(task: Task, plan: Plan) -> bool:
    """Whether the optimizer's moments wait in main memory: AdamW's can, those of 8 bits are small."""
    return plan.offload_optimizer and can_offload(task.trained)


def num_keys(sizes: Sizes) -> int:
    """Linears of a block that see the text or the image and not the video."""
    return 2 if sizes.image_dim is None else 4


def image_tokens(sizes: Sizes) -> int:
    return 0 if sizes.image_dim is None else sizes.image_positions or CLIP_TOKENS


@lru_cache
def transposed_bytes(sizes: Sizes) -> int:
    """Of a block, the second copy in 8 bits of the linears whose input has a gradient: the text and the image have none."""
    on_context = ("cross_attn.k", "cross_attn.v", "cross_attn.k_img", "cross_attn.v_img")
    return sum(out * inner for name, (out, inner) in block_linears(sizes).items() if name not in on_context)


@lru_cache
def dense_params(sizes: Sizes) -> int:
    """Weights of a block's linears."""
    return sum(out * inner for out, inner in block_linears(sizes).values())
