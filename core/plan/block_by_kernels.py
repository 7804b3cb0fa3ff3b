"""Memory of a block that runs by kernels of its own, predicted from sizes: the third kind beside eager and compiled ones.

What autograd keeps of it is counted to the byte: norms, GELU and what else is one pass over memory are made again (see
`memory.remaker`), so that products, attention and the residual stream remain. What its backward takes beside that was counted
with the allocator's numbers, and stands here in units, activations [B, L, D].
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from ..adapters.kind import ADAPTER_KINDS
from ..memory.recompute import Kept, attention_bytes
from .plan import Plan, image_tokens
from .sizes import Sizes, Trained, dropout_bytes, kept_of, targeted

_ON_TEXT = frozenset({"cross_attn.k", "cross_attn.v", "cross_attn.k_img", "cross_attn.v_img"})
_ATTENTION_UNITS, _CROSS_UNITS = 6.5, 4.0  # of a part's backward, beside the gradient that comes in
_EXCHANGED_UNITS = 3


@dataclass(frozen=True)
class KernelBlock:
    """Bytes that one block keeps and takes, for batches of one size."""

    by_part: Mapping[str, int]  # bytes kept of each part, beside its input
    unit: int  # bytes of an activation
    ratio: float  # ffn_dim / dim
    attention: int  # bytes of the self-attention, where it alone is kept
    once: Mapping[str, int]  # bytes among those of each part, however many tokens there are
    more_units: tuple[float, float] = (
        0.0,
        0.0,
    )  # of each part's backward for its adapters; of the feed-forward's alone
    in_pieces: float = 0.0  # units more, where the feed-forward is chunked
    exchanged: int = 0  # bytes of queries, keys and result once more, where GPUs that share a clip exchange them

    @property
    def kept(self) -> int:
        """Of a block that keeps all, beside its input: the inputs of its second and third part are among it."""
        return sum(self.by_part.values()) + 2 * self.unit + self.exchanged

    def kept_by(self, kept: Kept) -> int:
        """Of as many blocks as keep something."""
        return kept.linears * self.kept + (max(kept.attention, kept.linears) - kept.linears) * self.attention

    def own(self, plan: Plan, kept: Kept) -> float:
        """At a block's backward, whose peak is in the feed-forward: with what it has kept, or what it has computed again."""
        units = self.units()
        if plan.split_blocks:
            attention = 0 if kept.attention else self.attention
            taken = {part: self.by_part[part] + units[part] * self.unit for part in units}
            # The parts that were run again have their results until the end, and the gradient of the block is held.
            later = max(taken["ffn"], taken["cross_attn"]) + 3 * self.unit + attention
            return max(later, taken["self_attn"] + 3.5 * self.unit)
        attention = self.by_part["self_attn"] + self.exchanged
        whole = max(self.kept + units["ffn"] * self.unit, attention + units["self_attn"] * self.unit)
        if plan.ffn_pieces == 1 or kept.linears or kept.moved:
            return whole
        before = attention + self.by_part["cross_attn"] + (4 + self.in_pieces) * self.unit
        once = self.once["ffn"]
        piece = once + (self.by_part["ffn"] - once + units["ffn"] * self.unit) / plan.ffn_pieces
        return min(whole, before + max(piece, (_ATTENTION_UNITS - 1) * self.unit))

    def units(self) -> dict[str, float]:
        """Of each part's backward, with the gradient that comes in: the GELU made again, and its gradient, are wide."""
        found = {
            "self_attn": 1 + _ATTENTION_UNITS,
            "cross_attn": 1 + _CROSS_UNITS,
            "ffn": max(2 + self.ratio, 1 + 2 * self.ratio),
        }
        more, of_ffn = self.more_units
        return {part: units + more + (of_ffn if part == "ffn" else 0) for part, units in found.items()}


@lru_cache
def kernel_block(
    sizes: Sizes, trained: Trained, *, tokens: int, batch: int = 1, element_size: int = 2, is_shared: bool = False
) -> KernelBlock:
    """`tokens` of one clip, or of a GPU's part of it where clips are shared; `element_size` of the arithmetic's numbers.

    Of a shared clip the attention keeps what has arrived, which can't be made again from what was sent.
    """
    e, dim, lse = element_size, sizes.dim, 4 * sizes.num_heads
    own = {"self_attn": 4 * e * dim + lse, "cross_attn": 2 * e * dim + lse, "ffn": e * sizes.ffn_dim}
    keys = sizes.text_len + image_tokens(sizes)
    per_key, once = 2 * e * dim, dict.fromkeys(own, 0)
    adapted = targeted(sizes, trained)
    kind = ADAPTER_KINDS.get(trained.adapter)  # those that are not plain are differentiated by autograd
    if sizes.image_dim is not None:
        own["cross_attn"] += e * dim + lse + (e * dim if "cross_attn.o" in adapted else 0)
    # Which numbers of its input a plain one has left, a byte each; of others the result, too, which DoRA keeps anyway.
    mask = 1 if kind.is_plain else dropout_bytes(e) - (e if kind.scales_input else 0)
    for name, each in adapted.items():
        of_adapter, of_layer = kept_of(each, trained, e)
        if trained.dropout and kind.keeps_input:
            of_adapter += each.shape[1] * mask
        if not kind.is_plain:
            once[name.split(".")[0]] += of_layer
        if name in _ON_TEXT:
            per_key += of_adapter // (1 if sizes.image_dim is None else 2)
        else:
            own[name.split(".")[0]] += of_adapter
    fixed = {"self_attn": 4 * 3 * dim, "cross_attn": keys * per_key, "ffn": 4 * 3 * dim}
    by_part = {part: batch * (tokens * own[part] + fixed[part]) + once[part] for part in own}
    unit = batch * tokens * e * dim
    attention = attention_bytes(batch * tokens, dim, sizes.num_heads, e)
    ratio = sizes.ffn_dim / dim
    more, wide = kind.more_units
    # What a dropout has left of an input is made again for plain LoRAs; others keep it. What ranks or layers are multiplied
    # with takes more only of a kind that changes the base's own result.
    is_drawn = trained.options.rank_dropout or trained.options.module_dropout
    more += bool(trained.dropout and kind.is_plain)
    wide += bool(is_drawn and not kind.keeps_input)
    more_units = (more, wide * ratio)
    exchanged = _EXCHANGED_UNITS * unit if is_shared else 0
    return KernelBlock(by_part, unit, ratio, attention, once, more_units, 0.0 if kind.is_plain else 4.0, exchanged)
