"""The one place where memory and speed features are put on the model, in one order:

run_block = streaming(offload(compile(checkpointing(run_block)))), and the kind of attention. What is off is not there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import ConfigError
from ..memory.attention import Shape, choose_attention, sdpa_attention
from ..memory.checkpointing import with_checkpointing
from ..memory.compile import compiler_problem, use_compile_cache, with_compile
from ..memory.offload import ActivationOffload
from ..memory.recompute import with_selective_recompute
from ..memory.streaming import BlockStreamer, spread, stream_blocks
from ..wan.model import RunBlock, WanTransformer
from .batches import num_tokens
from .job import Job, MemoryOptions

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Features:
    """What has to be told of an end, or of an exception in the middle of a step."""

    streamer: BlockStreamer | None = None
    offload: ActivationOffload | None = None

    def reset(self) -> None:
        """After an exception in a step: forget what it left behind."""
        for feature in (self.offload, self.streamer):
            if feature is not None:
                feature.reset()

    def close(self) -> None:
        """The model is not called any more."""
        if self.streamer is not None:
            self.streamer.close()


def apply_features(
    model: WanTransformer, job: Job, device: torch.device, *, tell: Tell, scratch: Path | None, again: bool = False
) -> Features:
    """Put the job's memory options on `model`, which carries its adapter. ConfigError for what it cannot have.

    A model that is to be streamed may come in main memory, and is on `device` afterwards as far as it shall be. With
    `again`, a model whose features were taken off keeps its kind of attention.
    """
    options = job.memory
    compiled = options.compile != "off" and _can_compile(device, scratch, tell)
    if not again:
        _set_attention(model, job, device, compiled=compiled)
    run_block = model.run_block
    if options.checkpointing:
        run_block = _with_recompute(model, run_block, options)
    if compiled:
        run_block = with_compile(run_block, tell=tell, dynamic=options.compile == "dynamic")
    streamer = _make_streamer(model, options, device, scratch)
    offload = None
    if options.offload_inputs:
        inner = list(model.blocks)[:-1]  # the last one's input is needed again at once
        offload = ActivationOffload(device, inner, check_saved=None if streamer is None else streamer.check_saved)
        run_block = offload.wrap(run_block)
    if streamer is not None:
        run_block = streamer.wrap(run_block)
    model.run_block = run_block
    return Features(streamer, offload)


def _with_recompute(model: WanTransformer, run_block: RunBlock, options: MemoryOptions) -> RunBlock:
    if options.keep_attention:
        return with_selective_recompute(run_block, list(model.blocks), options.keep_attention)
    return with_checkpointing(run_block)


def _can_compile(device: torch.device, scratch: Path | None, tell: Tell) -> bool:
    if scratch is not None:
        use_compile_cache(scratch / "compiled")
    problem = compiler_problem(device)
    if problem is None:
        return True
    tell(f"{problem} The run goes on without compilation: the result is the same, each step takes longer.")
    return False


def _set_attention(model: WanTransformer, job: Job, device: torch.device, *, compiled: bool) -> None:
    name = job.memory.attention
    if name == "default":
        if device.type == "cuda":  # with the gradient's layout pinned, on which cuDNN's backend depends
            model.attend = sdpa_attention(None)
        return
    config = model.config
    longest = max(num_tokens(sample.shape) for sample in job.training_samples)
    shape = Shape(longest, config.num_heads, config.dim // config.num_heads, model.dtype, device)
    model.attend = choose_attention(name, shape, compiled=compiled).attend


def _make_streamer(
    model: WanTransformer, options: MemoryOptions, device: torch.device, scratch: Path | None
) -> BlockStreamer | None:
    if not options.streamed_blocks:
        model.blocks.to(device)  # they may have been streamed before
        return None
    if options.stream_from == "mapped" and scratch is None:
        raise ConfigError("stream_from is 'mapped', but there is no folder for the blocks: choose pinned or pageable.")
    for name, part in model.named_children():
        if name != "blocks":
            part.to(device)
    return stream_blocks(
        list(model.blocks),
        device,
        streamed=spread(options.streamed_blocks, len(model.blocks)),
        master=options.stream_from,
        folder=scratch / "blocks" if scratch is not None and options.stream_from == "mapped" else None,
    )
