"""The mode "kernels": blocks in plain Python by kernels of our own, put on a model and taken off it in one place each.

The element-wise arithmetic of the blocks, the products of their linear layers with the adapter's, and the checkpoint that
keeps little. Which blocks keep what is marked on them, as for `with_selective_recompute`.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from ..adapters.products import drop_products, use_products
from ..adapters.setup import adapter_modules, use_light_forward
from ..memory.chunking import chunked
from ..memory.offload import ActivationOffload
from ..memory.offload_results import ResultOffload
from ..memory.rerun import Keep, Rerun
from ..wan.layers import PARTS, WanBlock
from ..wan.model import RunBlock, WanTransformer, call_block, call_part
from ..wan.ops import PLAIN

_FUNCTIONS = ("forward", "run_part", "_kernel_runner")  # what `use_kernels` gives a block
_ATTEND = "attend_without_kernels"  # the model's attribute for the attention that it had before


def put_on(
    model: WanTransformer,
    *,
    own: Callable[[Tensor], Tensor] | None = None,
    offload: ActivationOffload | None = None,
    transposed: bool = False,
) -> Rerun:
    """Let the model, whose adapter and attention are on it, run by kernels; what runs its blocks then.

    `own`: gives a tensor that is kept as it is for the backward, or a copy where its memory may change until then. `offload`:
    moves what some blocks keep. `transposed`: weights of 8 bits are there column by column as well, as the backward's products
    want them.
    """
    from ..kernels.apply import use_kernels  # needs Triton
    from ..kernels.linears import keep_transposed, make_product

    vars(model)[_ATTEND] = model.attend
    ops, remaker = use_kernels(model)
    if own is not None:
        remaker.own = own
    use_products(model, partial(make_product, ops=ops), remaker.is_unread)
    if transposed:
        for block in model.blocks:
            keep_transposed(block)
    return Rerun(remaker, None if offload is None else ResultOffload(offload, remaker.own))


def take_off(model: WanTransformer) -> None:
    """The model as it was before `put_on`, but for its `run_block`; nothing where it was not put on."""
    attend = vars(model).pop(_ATTEND, None)
    if attend is None:
        return
    for block in model.blocks:
        for name in _FUNCTIONS:
            vars(block).pop(name, None)
    drop_products(model)
    if adapter_modules(model):
        use_light_forward(model)
    model.ops = PLAIN
    model.attend = attend


def whole_blocks(rerun: Rerun, *, checkpointing: bool, pieces: int = 1) -> RunBlock:
    """The block seam for blocks in one part, their feed-forward in `pieces`. Without checkpointing all keep all."""

    inner = Rerun(rerun.remaker)  # within a block's backward, which `rerun` is told of

    def run_piece(block: nn.Module, x: Tensor, part: str, *others: Tensor) -> Tensor:
        return inner(call_part, "nothing", last_layer(block, part), block, x, part, *others)

    run_lean = chunked(call_part, PARTS, pieces, run_again=run_piece) if pieces > 1 else call_block

    def run_block(block: nn.Module, x: Tensor, *others: Tensor) -> Tensor:
        keep = _keep(block) if checkpointing else "all"
        run = (
            call_block if keep in ("all", "moved") else run_lean
        )  # with all kept, there is nothing that pieces would save
        return rerun(run, keep, last_layer(block, PARTS[-1]), block, x, *others)

    return run_block


def parts_of_blocks(rerun: Rerun) -> RunBlock:
    """In the place of `with_recompute(call_part)`: (block, x, part, recomputed, ...) -> x, for `with_split`."""

    def run_part(block: nn.Module, x: Tensor, part: str, recomputed: bool, *others: Tensor) -> Tensor:
        keep: Keep = "all"
        if recomputed:
            keep = "attention" if part == "self_attn" else "nothing"
        return rerun(call_part, keep, last_layer(block, part), block, x, part, *others)

    return run_part


def _keep(block: nn.Module) -> Keep:
    if getattr(block, "keeps_linears", False):
        return "all"
    if getattr(block, "moves_linears", False):
        return "moved"
    return "attention" if getattr(block, "keeps_attention", False) else "nothing"


def last_layer(block: nn.Module, part: str) -> nn.Module | None:
    """The layer whose result need not be computed again at the end of `part`: only the feed-forward's is ever left out."""
    assert isinstance(block, WanBlock)
    return block.ffn[2] if part == "ffn" else None
