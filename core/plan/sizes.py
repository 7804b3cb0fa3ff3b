"""Bytes of the model and of its adapter, from the configuration alone: what a plan needs before anything is loaded.

Legend: D width, f feed-forward width, N out_features, K in_features, r rank.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple, Protocol

from ..adapters.kind import ADAPTER_KINDS, LORA, KeptBytes, LayerShape
from ..adapters.places import places
from ..memory.master import ALIGNMENT
from ..memory.precision import precision_kind
from ..optimizers import OPTIMIZERS
from ..settings.adapter import AdapterOptions

AVERAGED_AT_ONCE = 2**22  # numbers that an average of the weights is brought up to date by at once
HIGH_PRECISION = 4  # bytes of what is no block linear: the loader keeps it in fp32
ALL_TARGETS = ("self_attn", "cross_attn", "ffn")


class Sizes(Protocol):
    """The sizes of a model that decide its memory and time; `core.wan.config.WanConfig` is one."""

    @property
    def dim(self) -> int: ...
    @property
    def ffn_dim(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def in_dim(self) -> int: ...
    @property
    def out_dim(self) -> int: ...
    @property
    def text_dim(self) -> int: ...
    @property
    def text_len(self) -> int: ...
    @property
    def freq_dim(self) -> int: ...
    @property
    def patch_size(self) -> tuple[int, int, int]: ...
    @property
    def image_dim(self) -> int | None: ...
    @property
    def image_positions(self) -> int | None: ...


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The adapter and its optimizer."""

    adapter: str = LORA
    rank: int = 16
    targets: tuple[str, ...] = ALL_TARGETS
    dropout: bool = False
    optimizer: str = "adamw"
    options: AdapterOptions = AdapterOptions()  # noqa: RUF009  # frozen; its patterns, and what its kind looks at
    state_bytes: int | None = None  # for each parameter, of an optimizer whose options decide it
    average: bool = False  # whether an average of the weights (EMA) is kept


class Adapted(NamedTuple):
    """A block's linear that carries an adapter."""

    shape: tuple[int, int]  # out_features, in_features
    rank: int  # the largest of any block


def block_linears(sizes: Sizes) -> dict[str, tuple[int, int]]:
    """(out_features, in_features) of a block's linears, by their names in the block, in the block's order."""
    dim, ffn = sizes.dim, sizes.ffn_dim
    square = (dim, dim)
    found = {f"{group}.{name}": square for group in ("self_attn", "cross_attn") for name in "qkvo"}
    if sizes.image_dim is not None:
        found |= {"cross_attn.k_img": square, "cross_attn.v_img": square}
    return found | {"ffn.0": (ffn, dim), "ffn.2": (dim, ffn)}


@lru_cache
def block_bytes(sizes: Sizes, precision: str, element_size: int, *, rank: int = 32) -> int:
    """Bytes of a block's frozen tensors, in the layout in which they are streamed.

    `element_size` of the arithmetic, which the biases have too; `rank` of the correction in int4_svd and ara. ConfigError
    for a precision that is not known.
    """
    dim, weight_bytes = sizes.dim, precision_kind(precision).weight_bytes
    parameters = [6 * dim * HIGH_PRECISION]  # modulation
    buffers: list[int] = []
    for name, (out, inner) in block_linears(sizes).items():
        stored = weight_bytes((out, inner), element_size, rank)
        if len(stored) == 1:
            parameters += stored
        else:
            buffers += stored
        parameters.append(out * element_size)
        if name in ("self_attn.q", "self_attn.k", "cross_attn.q", "cross_attn.k", "cross_attn.k_img"):
            parameters.append(dim * HIGH_PRECISION)  # their norms
        if name == "self_attn.o":
            parameters += [dim * HIGH_PRECISION] * 2  # norm3
    tensors = parameters + buffers
    return sum(-(-size // ALIGNMENT) * ALIGNMENT for size in tensors[:-1]) + tensors[-1]


@lru_cache
def rest_bytes(sizes: Sizes) -> int:
    """Bytes of all that is outside the blocks: embeddings and head."""
    dim, patch = sizes.dim, math.prod(sizes.patch_size)
    linears = [
        (sizes.in_dim * patch, dim),
        (sizes.text_dim, dim),
        (dim, dim),
        (sizes.freq_dim, dim),
        (dim, dim),
        (dim, 6 * dim),
        (dim, patch * sizes.out_dim),
    ]
    count = 2 * dim  # the head's modulation
    if sizes.image_dim is not None:
        linears += [(sizes.image_dim, sizes.image_dim), (sizes.image_dim, dim)]
        count += 2 * sizes.image_dim + 2 * dim + (sizes.image_positions or 0) * sizes.image_dim
    return HIGH_PRECISION * (count + sum(inner * out + out for inner, out in linears))


def num_params(sizes: Sizes) -> int:
    """Parameters of the model without an adapter."""
    return (rest_bytes(sizes) + sizes.num_layers * _plain_block(sizes)) // HIGH_PRECISION


@lru_cache
def targeted(sizes: Sizes, trained: Trained) -> Mapping[str, Adapted]:
    """The linears of a block that carry an adapter, by their names in it: of any block, since patterns may tell them apart."""
    shapes = block_linears(sizes)
    found: dict[str, Adapted] = {}
    for path, rank in _ranks(sizes, trained).items():
        name = path.split(".", 2)[2]
        found[name] = Adapted(shapes[name], max(rank, found[name].rank if name in found else 0))
    return {name: found[name] for name in shapes if name in found}


@lru_cache
def adapter_params(sizes: Sizes, trained: Trained) -> int:
    """Trainable numbers of the whole model."""
    return sum(rows * columns for rows, columns in _matrices(sizes, trained))


@lru_cache
def _matrices(sizes: Sizes, trained: Trained) -> tuple[LayerShape, ...]:
    """Shapes of everything that is trained."""
    of_layer, shapes = ADAPTER_KINDS.get(trained.adapter).matrices, block_linears(sizes)
    ranks = _ranks(sizes, trained).items()
    return tuple(
        shape for path, rank in ranks for shape in of_layer(shapes[path.split(".", 2)[2]], rank, trained.options)
    )


def kept_of(layer: Adapted, trained: Trained, element_size: int) -> KeptBytes:
    """What autograd keeps for the adapter of one layer, beside the layer's input."""
    return ADAPTER_KINDS.get(trained.adapter).kept(layer.shape, layer.rank, trained.options, element_size)


def dropout_bytes(element_size: int) -> int:
    """What a dropout keeps of each number: the result and its mask, one byte on a GPU.

    In fp32 the mask is counted as on a CPU, where it is as large as the number.
    """
    return element_size + (1 if element_size < 4 else element_size)


def working_bytes(sizes: Sizes, trained: Trained, element_size: int) -> int:
    """What the backward of one layer's adapter takes for a moment, beside gradients: that of the largest."""
    working = ADAPTER_KINDS.get(trained.adapter).working
    return max((working(layer.shape, element_size) for layer in targeted(sizes, trained).values()), default=0)


def _ranks(sizes: Sizes, trained: Trained) -> dict[str, int]:
    """By official name of each layer that carries an adapter."""
    options = replace(trained.options, rank=trained.rank, targets=trained.targets) if trained.targets else None
    paths = layer_paths(sizes)
    return {path: place.rank for path, place in places(options, paths).items()} if options else {}


def layer_paths(sizes: Sizes) -> tuple[str, ...]:
    """Official names of all linears of the blocks."""
    return tuple(f"blocks.{index}.{name}" for index in range(sizes.num_layers) for name in block_linears(sizes))


def state_bytes(trained: Trained) -> int:
    """Bytes that the optimizer keeps for one parameter, beside what it keeps for rows and columns."""
    if trained.state_bytes is not None:
        return trained.state_bytes
    found = OPTIMIZERS.get(trained.optimizer).state_bytes
    assert isinstance(found, int), "an optimizer whose options decide it"
    return found


@lru_cache
def optimizer_bytes(sizes: Sizes, trained: Trained) -> int:
    """Bytes of the optimizer's state."""
    of_edges = OPTIMIZERS.get(trained.optimizer).edge_bytes
    edges = sum(map(sum, _matrices(sizes, trained)))
    return state_bytes(trained) * adapter_params(sizes, trained) + of_edges * edges


def update_bytes(sizes: Sizes, trained: Trained) -> int:
    """Bytes that an update takes for a moment: its own, and copies of weights and state where a bad one needs them."""
    method, number = OPTIMIZERS.get(trained.optimizer), adapter_params(sizes, trained)
    copies = 0 if method.skips_bad_steps or method.waits else 4 * number + optimizer_bytes(sizes, trained)
    return copies + method.update_bytes * number


def average_bytes(sizes: Sizes, trained: Trained) -> int:
    """Bytes of an average of the weights, and of the room that it is brought up to date in."""
    number = adapter_params(sizes, trained)
    return 4 * (number + min(AVERAGED_AT_ONCE, number)) if trained.average else 0


def can_offload(trained: Trained) -> bool:
    """Whether the optimizer's state may wait in main memory; see `adamw.py`."""
    return OPTIMIZERS.get(trained.optimizer).can_offload


def _plain_block(sizes: Sizes) -> int:
    linears = sum(out * inner + out for out, inner in block_linears(sizes).values())
    norms = 4 + 2 + (sizes.image_dim is not None)  # of queries and keys, twice; norm3; the image's keys
    return HIGH_PRECISION * (linears + (6 + norms) * sizes.dim)
