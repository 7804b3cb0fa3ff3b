"""Results of blocks that wait in main memory: the gradients of blocks that keep them on the device, to the bit."""

import copy

import pytest
import torch
from wan_train.core.memory import offload_results
from wan_train.core.memory.offload import ActivationOffload
from wan_train.core.memory.recompute import Kept, mark_kept
from wan_train.core.memory.streaming import stream_blocks
from wan_train.core.train import kernel_mode
from wan_train.tests.core.memory.helpers import (
    CONFIG,
    CPU,
    SHAPES,
    assert_same,
    make_model,
    step,
)

pytest.importorskip("triton")
ALL = {"targets": ("self_attn", "cross_attn", "ffn")}


@pytest.fixture(autouse=True)
def arithmetic(monkeypatch):
    """The blocks' own functions on the CPU; in a small model all that is kept is large."""
    from wan_train.tests.core.kernels import reference

    reference.put_in_place(monkeypatch)
    monkeypatch.setattr(offload_results, "LEAST", 1)


class Run:
    """A model by kernels, whose blocks keep what `kept` says."""

    def __init__(self, model, kept, *, inputs=False, streamed=(), checkpointing=True):
        self.model, blocks = model, list(model.blocks)
        self.streamer = stream_blocks(blocks, CPU, streamed=streamed) if streamed else None
        check = None if self.streamer is None else self.streamer.check_saved
        self.offload = ActivationOffload(CPU, blocks[:-1] if inputs else [], check_saved=check)
        own = None if self.streamer is None else self.streamer.own
        rerun = kernel_mode.put_on(model, own=own, offload=self.offload if kept.moved else None)
        model.run_block = kernel_mode.whole_blocks(rerun, checkpointing=checkpointing)
        if inputs:
            model.run_block = self.offload.wrap(model.run_block)
        if self.streamer is not None:
            model.run_block = self.streamer.wrap(model.run_block)
        mark_kept(blocks, kept)

    def steps(self, shapes=SHAPES, **options):
        torch.manual_seed(5)
        return [step(self.model, shape, seed, all_learn=False, **options) for seed, shape in enumerate(shapes)]

    @property
    def free(self):
        return self.offload._pool._free

    def free_bytes(self):
        return sum(buffer.bytes.numel() for buffer in self.free)


def both(kept, *, config=CONFIG, adapter=None, **options):
    """Steps with all kept on the device, and with as many blocks' results moved."""
    model = make_model(config, **(adapter or ALL))
    there = Run(copy.deepcopy(model), Kept(config.num_layers, config.num_layers), **options)
    moved = Run(model, kept, **options)
    for found, expected in zip(moved.steps(), there.steps(), strict=True):
        assert_same(found, expected)
    return moved


@pytest.mark.parametrize("kept", [Kept(0, 0, 1), Kept(0, 0, 3), Kept(6, 2, 3), Kept(6, 0, 6), Kept(2, 2, 4)], ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"inputs": True}, {"streamed": range(6)}, {"streamed": (1, 4), "inputs": True}],
    ids=["alone", "with inputs", "with block swap", "with both"],
)
def test_gradients_are_bit_equal(kept, options):
    run = both(kept, **options)
    assert run.offload.bytes_on_host > 0
    assert run.free_bytes() == run.offload.bytes_on_host  # all have come back
