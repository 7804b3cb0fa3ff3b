"""The one place where memory and speed features are put on the model, in one order:

run_block = streaming(by_size(offload(compile(checkpointing(chunked(run_part)))))), and the kind of attention. In the field's
words: block swap around activation offload, around compiled blocks, around gradient checkpointing, around chunked
feed-forward. A feature that is off is not in the chain. Where the parts of a block are recomputed one by one, it is
run_block = streaming(by_size(split(compile(run_part), offload))). In the mode "kernels" one checkpoint of our own takes the
place of both compile and checkpointing; see `kernel_mode`. CUDA graphs go around the whole model, where no block is swapped,
offloaded or in parts. Where ranks share a sample's tokens (context parallel), the exchange is around the attention itself,
innermost of all: whatever runs a block again exchanges again, in every rank alike. Around all of it, several ranks note how far
they have come.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..errors import ConfigError
from ..facts import num_tokens
from ..memory.attention import load_attention
from ..memory.by_size import with_kept_by_size
from ..memory.checkpointing import with_checkpointing
from ..memory.chunking import chunked
from ..memory.compile import with_compile
from ..memory.graphs import Graphs
from ..memory.master import BlockMaster, HeldKind
from ..memory.masters import MasterMaker
from ..memory.offload import ActivationOffload, HostPool
from ..memory.order import spread, spread_mapped
from ..memory.recompute import Kept, mark_kept, with_selective_recompute
from ..memory.rerun import Rerun
from ..memory.split import with_recompute, with_split
from ..memory.streaming import BlockStreamer, hold_blocks
from ..parallel.world import ALONE, World
from ..plan.decision import COMPILED, Decision
from ..plan.plan import Bucket, Plan, allows_graphs, kept_of
from ..wan.layers import PARTS
from ..wan.model import RunBlock, WanTransformer, call_part
from ..wan.walk import Look
from . import kernel_mode

if TYPE_CHECKING:
    from ..parallel.context import TokenShare

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Features:
    """The features that are on a model: those that must be told when a step broke off, and when the model is done with."""

    streamer: BlockStreamer | None = None
    offload: ActivationOffload | None = None
    attention: str = ""  # its kind; "": PyTorch's own
    graphs: Graphs | None = None
    tokens: "TokenShare | None" = None  # of a sample, where ranks share them
    look: Look | None = None  # at what a block gives

    @contextmanager
    def whole_samples(self) -> Iterator[None]:
        """Within it this rank runs whole samples without the ranks that it shares them with: for what it does alone."""
        with nullcontext() if self.tokens is None else self.tokens.paused():
            yield

    def reset(self) -> None:
        """After a step broke off: forget what it left behind."""
        self.make_room()
        if self.look is not None:
            self.look.seen = None  # which holds all that the blocks before it have kept
        for feature in (self.offload, self.streamer):
            if feature is not None:
                feature.reset()

    def make_room(self) -> None:
        """Between two steps: give back what the next step makes anew."""
        if self.graphs is not None:
            self.graphs.release()

    def close(self) -> None:
        """The model is not called any more."""
        if self.streamer is not None:
            self.streamer.close()


def apply_features(
    model: WanTransformer,
    plan: Plan,
    decision: Decision,
    *,
    tell: Tell,
    scratch: Path | None,
    kept: Mapping[int, Kept] | None = None,
    masters: Mapping[int, BlockMaster] | MasterMaker | None = None,
    world: World = ALONE,
) -> Features:
    """Put `plan` on `model`, which carries its adapter, in the place of a plan that was there before.

    A model whose blocks are to be swapped may come in main memory, and is on the device afterwards as far as it shall be.
    `kept`: what the plan's blocks keep for each size of clips, by the tokens of a batch (see `with_kept_by_size`); None or
    nothing: the same for all. `masters`: those of the swapped blocks, or
    what makes them (see `make_masters`); by default as for a run on one GPU. The ranks of a machine call this alike. `world`:
    the ranks that may share the tokens of a sample. ConfigError for memory-mapped blocks where there is no folder for them,
    and for heads that the ranks can't share.
    """
    device = decision.device
    vars(model).pop("forward", None)  # graphs of before
    kernel_mode.take_off(model)
    mode = plan.compile
    if mode in COMPILED and plan.split_blocks and decision.dropout:
        tell("The run goes on without compilation: with split_blocks and dropout, compiled blocks would not drop the same "
             "when they are recomputed.")  # fmt: skip
        mode = "off"
    if (
        decision.attention or device.type == "cuda"
    ):  # with the gradient's layout pinned, on which cuDNN's backend depends
        model.attend = load_attention(decision.attention, device)
    model.tokens = tokens = _token_share(model, world)
    if isinstance(masters, Mapping) and masters:
        streamer = BlockStreamer(list(model.blocks), device, masters=masters)
    else:
        alone = make_masters(plan, len(model.blocks), device, scratch=scratch, tell=tell)
        streamer = _hold(model, masters if isinstance(masters, MasterMaker) else alone, device)
    most = _most([kept_of(plan), *(kept or {}).values()])
    offload = None
    if plan.offload_inputs or most.moved:
        moved = list(model.blocks)[:-1] if plan.offload_inputs else []  # the last block's input is needed again at once
        offload = ActivationOffload(device, moved, check_saved=None if streamer is None else streamer.check_saved)
    wrap = offload.wrap if offload is not None and plan.offload_inputs else None
    if mode == "kernels":
        own = None if streamer is None else streamer.own
        results = offload if most.moved else None
        rerun = kernel_mode.put_on(model, own=own, offload=results, transposed=plan.keep_transposed)
        run_block = _by_kernels(model, rerun, plan, wrap)
    else:
        compile_block = partial(with_compile, tell=tell, dynamic=mode == "dynamic") if mode in COMPILED else _as_it_is
        run_block = _by_checkpoints(model, compile_block, plan, most, wrap)
    if plan.checkpointing and kept and any(map(any, kept.values())):
        whole = None if tokens is None else tokens.whole
        run_block = with_kept_by_size(run_block, list(model.blocks), kept, whole=whole)
    if streamer is not None:
        run_block = streamer.wrap(run_block)
    if world.size > 1:
        run_block = world.progress.marking(run_block, list(model.blocks), are_gathered=plan.shards > 1)
    model.run_block = run_block
    graphs = None
    if allows_graphs(plan) and decision.graphs and not most.moved:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        graphs = Graphs(type(model).forward.__get__(model), trained, tell=tell, held=lambda: model.rope_tables)
        vars(model)["forward"] = graphs
    return Features(streamer, offload, decision.attention, graphs, tokens, model.look)


def _token_share(model: WanTransformer, world: World) -> "TokenShare | None":
    if world.context == 1:
        return None
    from ..parallel.context import TokenShare

    return TokenShare(world, model.config.num_heads)


def _by_kernels(
    model: WanTransformer, rerun: Rerun, plan: Plan, wrap: Callable[[RunBlock], RunBlock] | None
) -> RunBlock:
    """How blocks are run where they run by kernels; `wrap` is the offload's. They are marked anew for each size of clips."""
    mark_kept(list(model.blocks), kept_of(plan))
    if plan.split_blocks:
        return with_split(kernel_mode.parts_of_blocks(rerun), PARTS, wrap)
    whole = kernel_mode.whole_blocks(rerun, checkpointing=plan.checkpointing, pieces=plan.ffn_pieces)
    return whole if wrap is None else wrap(whole)


def _by_checkpoints(
    model: WanTransformer,
    compile_block: Callable[[RunBlock], RunBlock],
    plan: Plan,
    most: Kept,
    wrap: Callable[[RunBlock], RunBlock] | None,
) -> RunBlock:
    """How blocks are run by PyTorch's own operators, compiled or not; `wrap` is the offload's."""
    if plan.split_blocks:
        mark_kept(list(model.blocks), most)
        return with_split(compile_block(with_recompute(call_part)), PARTS, wrap)
    run_block = chunked(call_part, PARTS, plan.ffn_pieces) if plan.ffn_pieces > 1 else model.run_block
    run_block = compile_block(_with_recompute(run_block, model, most) if plan.checkpointing else run_block)
    return run_block if wrap is None else wrap(run_block)


def _with_recompute(run_block: RunBlock, model: WanTransformer, kept: Kept) -> RunBlock:
    if any(kept):
        return with_selective_recompute(run_block, list(model.blocks), kept, width=model.config.dim)
    return with_checkpointing(run_block)


def _as_it_is(run_block: RunBlock) -> RunBlock:
    return run_block


def _most(kept: Sequence[Kept]) -> Kept:
    """As much as any of `kept` has."""
    return Kept(*map(max, zip(*kept, strict=True)))


def make_masters(
    plan: Plan, num_blocks: int, device: torch.device, *, scratch: Path | None, tell: Tell, world: World = ALONE
) -> MasterMaker:
    """What makes the masters of the blocks that are not on the device, or not whole. The ranks of a machine do it together."""
    streamed = spread(plan.streamed_blocks, num_blocks)
    mapped = spread_mapped(plan.mapped_blocks, streamed)
    kinds: dict[int, HeldKind] = {index: "mapped" if index in mapped else plan.stream_from for index in streamed}
    if plan.shards > 1:
        kinds |= dict.fromkeys(sorted(set(range(num_blocks)) - set(streamed)), "sharded")
    return MasterMaker(kinds, device, folder=blocks_folder(plan, scratch), world=world, tell=tell)


def memory_for_inputs(plan: Plan, decision: Decision, buckets: Sequence[Bucket], dtype: torch.dtype) -> HostPool | None:
    """Buffers for the inputs of all blocks at the largest size, made from now on; None where the plan moves no inputs.

    Else the first step of each larger size would pin them anew. One or two blocks' are left out: a step makes what it lacks.
    """
    if not plan.offload_inputs:
        return None
    config = decision.info.config
    tokens = max(bucket.batch * num_tokens(bucket.shape, config.patch_size) for bucket in buckets)
    pool = HostPool(decision.device)
    pool.prepare(tokens * config.dim * dtype.itemsize, config.num_layers - 2)
    return pool


def _hold(model: WanTransformer, maker: MasterMaker, device: torch.device) -> BlockStreamer | None:
    for name, part in model.named_children():
        if name != "blocks":
            part.to(device)
    return hold_blocks(list(model.blocks), maker)


def blocks_folder(plan: Plan, scratch: Path | None) -> Path | None:
    """Where mapped blocks lie; None for others. ConfigError if there is no folder for them."""
    if not plan.streamed_blocks or (plan.stream_from != "mapped" and not plan.mapped_blocks):
        return None
    if scratch is None:
        asked = f"mapped_blocks is {plan.mapped_blocks}" if plan.mapped_blocks else "stream_from is 'mapped'"
        raise ConfigError(
            f"{asked}, but there is no folder for the blocks: have them come from pinned or pageable memory."
        )
    return scratch / "blocks"
