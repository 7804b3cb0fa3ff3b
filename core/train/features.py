"""The one place where memory and speed features are put on the model, in one order:

run_block = streaming(by_size(offload(compile(checkpointing(chunked(run_part)))))), and the kind of attention. What is off
is not there. With blocks in parts, run_block = streaming(by_size(split(compile(run_part), offload))). By kernels, a
checkpoint of our own stands in the place of both compile and checkpointing; see `kernel_mode`. Around the whole model go CUDA
graphs, where nothing is streamed, offloaded or in parts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ..adapters.peft_hooks import finish_importing_adapters
from ..errors import ConfigError
from ..memory.attention import Decided, Shape, choose_attention, is_traceable, load_attention, sdpa_attention
from ..memory.by_size import with_kept_by_size
from ..memory.checkpointing import with_checkpointing
from ..memory.chunking import chunked
from ..memory.compile import compiler_problem, use_compile_cache, use_triton_cache, with_compile
from ..memory.graphs import Graphs
from ..memory.master import BlockMaster
from ..memory.offload import ActivationOffload
from ..memory.recompute import Kept, mark_kept, with_selective_recompute
from ..memory.rerun import Rerun
from ..memory.split import with_recompute, with_split
from ..memory.streaming import BlockStreamer, spread, spread_mapped, stream_blocks
from ..plan.planning import compile_mode, may_use_graphs
from ..plan.sizes import Sizes
from ..settings.job import Job
from ..settings.memory import Compile, MemoryOptions
from ..wan.layers import PARTS
from ..wan.model import RunBlock, WanTransformer, call_part
from . import kernel_mode
from .batches import num_tokens

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Features:
    """What has to be told of an end, or of an exception in the middle of a step; and what was chosen."""

    streamer: BlockStreamer | None = None
    offload: ActivationOffload | None = None
    attention: str = ""  # its kind; none: as PyTorch chooses, or as it was
    graphs: Graphs | None = None

    def reset(self) -> None:
        """After an exception in a step: forget what it left behind."""
        self.make_room()
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
    job: Job,
    device: torch.device,
    *,
    tell: Tell,
    scratch: Path | None,
    again: bool = False,
    kept: Mapping[int, Kept] | None = None,
    masters: Mapping[int, BlockMaster] | None = None,
) -> Features:
    """Put the job's memory options on `model`, which carries its adapter. ConfigError for what it cannot have.

    A model that is to be streamed may come in main memory, and is on `device` afterwards as far as it shall be. With
    `again`, a model whose features were taken off keeps its kind of attention. `kept`: the job's keep_attention and
    keep_linears for each size of clips, by the tokens of a batch (see `with_kept_by_size`); None or nothing: the same for
    all. `masters`: those of the streamed blocks, where they have been made.
    """
    options = job.memory
    vars(model).pop("forward", None)  # graphs of before
    kernel_mode.take_off(model)
    mode = usable_mode(job, device, scratch, tell)
    compiled = mode in ("static", "dynamic")
    if compiled and options.split_blocks and job.adapter.dropout:
        tell("The run goes on without compilation: with split_blocks and dropout, compiled blocks would not drop the same "
             "when they are recomputed.")  # fmt: skip
        compiled = False
    attention = "" if again else _set_attention(model, job, device, compiled=compiled)
    streamer = _make_streamer(model, options, device, scratch, masters)
    offload = None
    if options.offload_inputs:
        moved = list(model.blocks)[:-1]  # the last block's input is needed again at once
        offload = ActivationOffload(device, moved, check_saved=None if streamer is None else streamer.check_saved)
    most = _most([_kept_of(options), *(kept or {}).values()])
    wrap = None if offload is None else offload.wrap
    if mode == "kernels":
        rerun = kernel_mode.put_on(model, own=None if streamer is None else streamer.own)
        run_block = _by_kernels(model, rerun, options, most, wrap)
    else:
        compile_block = partial(with_compile, tell=tell, dynamic=mode == "dynamic") if compiled else _as_it_is
        run_block = _by_checkpoints(model, compile_block, options, most, wrap)
    if options.checkpointing and kept and any(map(any, kept.values())):
        run_block = with_kept_by_size(run_block, list(model.blocks), kept)
    if streamer is not None:
        run_block = streamer.wrap(run_block)
    model.run_block = run_block
    graphs = None
    if streamer is None and offload is None and not options.split_blocks and may_use_graphs(job, model.config, device):
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        graphs = Graphs(type(model).forward.__get__(model), trained, tell=tell, held=lambda: model.rope_tables)
        vars(model)["forward"] = graphs
    return Features(streamer, offload, attention, graphs)


def _by_kernels(
    model: WanTransformer, rerun: Rerun, options: MemoryOptions, most: Kept, wrap: Callable[[RunBlock], RunBlock] | None
) -> RunBlock:
    """How blocks are run where they run by kernels; `wrap` is the offload's."""
    mark_kept(list(model.blocks), most)
    if options.split_blocks:
        return with_split(kernel_mode.parts_of_blocks(rerun), PARTS, wrap)
    whole = kernel_mode.whole_blocks(rerun, checkpointing=options.checkpointing, pieces=options.ffn_pieces)
    return whole if wrap is None else wrap(whole)


def _by_checkpoints(
    model: WanTransformer,
    compile_block: Callable[[RunBlock], RunBlock],
    options: MemoryOptions,
    most: Kept,
    wrap: Callable[[RunBlock], RunBlock] | None,
) -> RunBlock:
    """How blocks are run by PyTorch's own operators, compiled or not; `wrap` is the offload's."""
    if options.split_blocks:
        mark_kept(list(model.blocks), most)
        return with_split(compile_block(with_recompute(call_part)), PARTS, wrap)
    run_block = chunked(call_part, PARTS, options.ffn_pieces) if options.ffn_pieces > 1 else model.run_block
    run_block = compile_block(_with_recompute(run_block, model, most) if options.checkpointing else run_block)
    return run_block if wrap is None else wrap(run_block)


def _with_recompute(run_block: RunBlock, model: WanTransformer, kept: Kept) -> RunBlock:
    if any(kept):
        return with_selective_recompute(run_block, list(model.blocks), kept, width=model.config.dim)
    return with_checkpointing(run_block)


def _as_it_is(run_block: RunBlock) -> RunBlock:
    return run_block


def _most(kept: Sequence[Kept]) -> Kept:
    """As much as any of `kept` has."""
    return Kept(max(each.attention for each in kept), max(each.linears for each in kept))


def _kept_of(options: MemoryOptions) -> Kept:
    return Kept(options.keep_attention, options.keep_linears)


def usable_mode(job: Job, device: torch.device, scratch: Path | None, tell: Tell) -> Compile:
    """How blocks are run for the job on `device`: as it says if that works there, else uncompiled, which `tell` is told."""
    mode = compile_mode(job, device)
    if mode == "kernels":
        return mode if can_use_kernels(device, scratch, tell) else "off"
    return mode if mode != "off" and can_compile(device, scratch, tell) else "off"


def can_use_kernels(device: torch.device, scratch: Path | None, tell: Tell) -> bool:
    """Whether blocks can run by kernels on `device`; if not, `tell` is given the reason, and what is lost."""
    from ..kernels.available import kernels_problem

    if scratch is not None:
        use_triton_cache(scratch / "compiled" / "triton")
    problem = kernels_problem(device)
    if problem is None:
        return True
    tell(
        f"{problem} The run goes on by PyTorch's own operators: the result is the same up to rounding, but a step takes a "
        "quarter longer for clips, up to twice as long for pictures, and a block twice the memory."
    )
    return False


def can_compile(device: torch.device, scratch: Path | None, tell: Tell) -> bool:
    """Whether blocks can be compiled for `device`; if not, `tell` is given the reason."""
    if scratch is not None:
        use_compile_cache(scratch / "compiled")
    finish_importing_adapters()
    problem = compiler_problem(device)
    if problem is None:
        return True
    tell(f"{problem} The run goes on without compilation: the result is the same, each step takes longer.")
    return False


def use_decided(model: WanTransformer, job: Job, device: torch.device, decided: Decided) -> bool:
    """Put the kind of attention on `model` that was found to be the fastest before; False if it can't be compiled."""
    try:
        attend = load_attention(decided.name, device)
    except (ConfigError, ImportError):  # its package has gone since
        return False
    shape = attention_shape(job, model.config, model.dtype, device)
    if compile_mode(job, device) in ("static", "dynamic") and not decided.traceable and not is_traceable(attend, shape):
        return False
    model.attend = attend
    return True


def _set_attention(model: WanTransformer, job: Job, device: torch.device, *, compiled: bool) -> str:
    name = job.memory.attention
    if name == "default" or (name == "auto" and device.type != "cuda"):
        if device.type == "cuda":  # with the gradient's layout pinned, on which cuDNN's backend depends
            model.attend = sdpa_attention(None)
        return ""
    shape = attention_shape(job, model.config, model.dtype, device)
    choice = choose_attention(name, shape, compiled=compiled)
    model.attend = choice.attend
    return choice.name


def attention_shape(job: Job, sizes: Sizes, dtype: torch.dtype, device: torch.device) -> Shape:
    """What the job's longest clip attends to."""
    longest = max(num_tokens(sample.shape) for sample in job.training_samples)
    return Shape(longest, sizes.num_heads, sizes.dim // sizes.num_heads, dtype, device)


def _make_streamer(
    model: WanTransformer,
    options: MemoryOptions,
    device: torch.device,
    scratch: Path | None,
    masters: Mapping[int, BlockMaster] | None,
) -> BlockStreamer | None:
    if not options.streamed_blocks:
        model.blocks.to(device)  # they may have been streamed before
        return None
    if masters:
        return BlockStreamer(list(model.blocks), device, masters=masters)
    for name, part in model.named_children():
        if name != "blocks":
            part.to(device)
    streamed = spread(options.streamed_blocks, len(model.blocks))
    return stream_blocks(
        list(model.blocks),
        device,
        streamed=streamed,
        master=options.stream_from,
        mapped=spread_mapped(options.mapped_blocks, streamed),
        folder=blocks_folder(options, scratch),
    )


def blocks_folder(options: MemoryOptions, scratch: Path | None) -> Path | None:
    """Where mapped blocks lie; None for others. ConfigError if there is no folder for them."""
    if not options.streamed_blocks or (options.stream_from != "mapped" and not options.mapped_blocks):
        return None
    if scratch is None:
        asked = f"mapped_blocks is {options.mapped_blocks}" if options.mapped_blocks else "stream_from is 'mapped'"
        raise ConfigError(
            f"{asked}, but there is no folder for the blocks: have them come from pinned or pageable memory."
        )
    return scratch / "blocks"
