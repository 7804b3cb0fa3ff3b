"""Results of blocks that wait in main memory: the gradients of blocks that keep them on the device, to the bit."""

import copy
import gc
import math
import weakref

import pytest
import torch
from wan_train.core.errors import ConfigError
from wan_train.core.memory import offload, offload_results
from wan_train.core.memory.offload import ActivationOffload, Parked
from wan_train.core.memory.recompute import Kept, mark_kept, moved_blocks
from wan_train.core.memory.streaming import stream_blocks
from wan_train.core.train import kernel_mode
from wan_train.tests.core.memory.helpers import (
    CLIP_CONFIG,
    CONFIG,
    CPU,
    SHAPES,
    assert_same,
    forward_loss,
    make_model,
    step,
    take_gradients,
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

    def free_bytes(self):
        pools = self.offload._pool, self.offload._others
        return sum(buffer.bytes.numel() for pool in pools for buffer in pool._free)


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


ADAPTERS = [
    {"targets": ("self_attn",)},
    {**ALL, "dropout": 0.5},
    {**ALL, "dropout": 0.2, "rank_dropout": 0.3, "module_dropout": 0.2},
    {**ALL, "kind": "tlora", "rank": 6},
    {**ALL, "kind": "dora", "dropout": 0.2},
    {**ALL, "kind": "loha"},
    {**ALL, "kind": "lokr", "dropout": 0.2},
    {**ALL, "kind": "oft", "rank": 4},
    {**ALL, "quant": "Q8_0"},
]


@pytest.mark.parametrize("adapter", ADAPTERS, ids=str)
def test_every_adapter(adapter):
    run = both(Kept(0, 1, 3), adapter=adapter, streamed=(0, 3), inputs=True)
    assert run.free_bytes() == run.offload.bytes_on_host > 0


def test_tokens_of_an_image():
    both(Kept(0, 0, 3), config=CLIP_CONFIG, inputs=True)


def test_it_is_what_blocks_give_that_run_again():
    model = make_model(**ALL)
    again = Run(copy.deepcopy(model), Kept())
    moved = Run(model, Kept(3, 0, 4))
    for found, expected in zip(moved.steps(), again.steps(), strict=True):
        assert_same(found, expected)


def test_a_tensor_moves_once_however_many_keep_it():
    """Raw queries are kept by a block's function and by the attention, what attention gives by it and by the projection."""
    run = Run(make_model(**ALL), Kept(0, 0, 1))
    run.steps(SHAPES[:1])
    tokens, width = 12, CONFIG.dim
    large = [buffer for buffer in run.offload._others._free if buffer.bytes.numel() >= 4 * tokens * width]
    # q, k, v, attention, the inputs of the second and third part, q and attention of the second, and the wide one.
    assert len(large) == 9
    assert sum(buffer.bytes.numel() for buffer in large) == 4 * tokens * (8 * width + CONFIG.ffn_dim)


def test_nothing_of_a_block_stays_on_the_device():
    """As whoever holds what the block has kept: that is all in main memory, but for the run's result."""
    run = Run(make_model(**ALL), Kept(0, 0, CONFIG.num_layers), inputs=True)
    size = 12 * CONFIG.dim  # numbers of [tokens, width]

    def activations():
        gc.collect()
        large = [each for each in gc.get_objects() if type(each) is torch.Tensor and each.numel() >= size]
        return {each.untyped_storage().data_ptr() for each in large if each.is_floating_point()}

    before = activations()
    loss = forward_loss(run.model, SHAPES[0])
    run.offload.leaving.release()
    parked = [each for each in gc.get_objects() if type(each) is Parked]
    on_host = {each._buffer.bytes.untyped_storage().data_ptr() for each in parked}
    left = activations() - before - on_host
    assert len(on_host) > 9 * CONFIG.num_layers
    assert len(left) <= 3  # what the head keeps
    loss.backward()


def test_a_smaller_step_after_a_larger_one_has_its_own_room():
    run = Run(make_model(**ALL), Kept(0, 0, 3))
    run.steps(sorted(SHAPES, key=math.prod, reverse=True))
    assert (run.offload.leaving.room, run.offload.leaving.num_bytes) == (0, 0)


def test_small_ones_stay(monkeypatch):
    monkeypatch.setattr(offload_results, "LEAST", 4 * 12 * CONFIG.dim + 1)
    run = Run(make_model(**ALL), Kept(0, 0, 2))
    run.steps(SHAPES[:1])
    assert run.offload.bytes_on_host == 2 * 4 * 12 * CONFIG.ffn_dim


def test_without_gradients_nothing_moves():
    run = Run(make_model(**ALL), Kept(0, 0, 3))
    with torch.no_grad():
        forward_loss(run.model, SHAPES[0])
    assert run.offload.bytes_on_host == 0


def test_none_of_it_is_on_the_device_between_forward_and_backward():
    """But for what leaves: of one block at most."""
    run = Run(make_model(**ALL), Kept(0, 0, 5))
    run.steps(SHAPES[:1])
    room = run.offload.bytes_on_host / 5
    loss = forward_loss(run.model, SHAPES[0])
    assert 0 < run.offload.leaving.num_bytes <= room
    assert run.free_bytes() == 0
    loss.backward()
    assert run.offload.leaving.num_bytes == 0 or run.free_bytes() == run.offload.bytes_on_host


def test_in_the_backward_one_block_comes_ahead(monkeypatch):
    """At each moment no more than two blocks have theirs on the device."""
    run = Run(make_model(**ALL), Kept(0, 0, 5))
    run.steps(SHAPES[:1])
    room, seen, alive = run.offload.bytes_on_host / 5, [], weakref.WeakSet()
    park, fetch = offload.ActivationOffload.park, offload.Parked.fetch

    def count():
        here = sum(part.num_bytes for part in alive if part.is_fetched)
        seen.append(here)

    def parked(self, x):
        found = park(self, x)
        alive.add(found)
        return found

    def fetched(self):
        fetch(self)
        count()

    monkeypatch.setattr(offload.ActivationOffload, "park", parked)
    monkeypatch.setattr(offload.Parked, "fetch", fetched)
    run.steps(SHAPES[:1])
    assert room < max(seen) <= 2 * room


def test_backwards_that_break_off_leave_nothing():
    run = Run(make_model(**ALL), Kept(0, 1, 4), inputs=True, streamed=(1, 3))
    expected = run.steps(SHAPES[:1])[0]
    taken = run.offload.bytes_on_host
    for count in range(1, 5):
        loss, calls = forward_loss(run.model, SHAPES[0]), iter(range(count))
        back = offload_results.ResultOffload.return_to

        def failing(self, results, calls=calls, back=back):
            if next(calls, None) is None:
                raise MemoryError
            back(self, results)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(offload_results.ResultOffload, "return_to", failing)
            with pytest.raises(MemoryError):
                loss.backward()
        del loss
        for parameter in run.model.parameters():
            parameter.grad = None
        run.offload.reset()
        run.streamer.reset()
        torch.zeros(1, requires_grad=True).sum().backward()  # what is left in autograd's own queue goes with the next
        gc.collect()
        assert run.free_bytes() == run.offload.bytes_on_host == taken
        assert run.offload.leaving.num_bytes == 0
    assert_same(run.steps(SHAPES[:1])[0], expected)


def test_forwards_without_a_backward_leave_nothing():
    run = Run(make_model(**ALL), Kept(0, 0, 4))
    expected = run.steps(SHAPES[:1])[0]
    loss = forward_loss(run.model, SHAPES[0])
    del loss
    gc.collect()
    assert run.free_bytes() == run.offload.bytes_on_host
    assert_same(run.steps(SHAPES[:1])[0], expected)


def test_two_forwards_before_their_backwards():
    model = make_model(**ALL)
    there, moved = Run(copy.deepcopy(model), Kept(6, 6)), Run(model, Kept(0, 0, 4), inputs=True)
    found = []
    for run in (there, moved):
        (forward_loss(run.model, SHAPES[0]) + forward_loss(run.model, SHAPES[1], 1)).backward()
        found.append(take_gradients(run.model, all_learn=False))
    assert_same(*found)


def test_they_lie_evenly_among_those_that_keep_theirs_otherwise():
    assert sorted(moved_blocks(Kept(40, 0, 20), 40)) == list(range(0, 40, 2))
    assert sorted(moved_blocks(Kept(40, 10, 3), 40)) == [0, 10, 20]
    assert moved_blocks(Kept(), 40) == frozenset()
    assert moved_blocks(Kept(0, 0, 6), 6) == frozenset(range(6))
    with pytest.raises(ConfigError, match="each keeps its results in one place"):
        moved_blocks(Kept(0, 4, 3), 6)
    with pytest.raises(ConfigError, match="offload_linears must be from 0 to 6"):
        mark_kept(list(make_model().blocks), Kept(0, 0, 7))
