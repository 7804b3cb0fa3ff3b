"""Block inputs that wait in main memory: the same gradients, less on the device, buffers used again."""

import gc
import queue
import weakref

import pytest
import torch
from wan_train.core.errors import ConfigError
from wan_train.core.memory.checkpointing import with_checkpointing
from wan_train.core.memory.offload import ActivationOffload, HostPool, _make
from wan_train.core.memory.streaming import stream_blocks
from wan_train.core.wan.model import call_block
from wan_train.tests.core.memory.helpers import (
    CLIP_CONFIG,
    CONFIG,
    CPU,
    SHAPES,
    assert_same,
    forward_loss,
    make_model,
    plain_steps,
    step,
    trainable,
)


def offloaded(model, indices=range(5), run_block=call_block):
    offload = ActivationOffload(CPU, [model.blocks[index] for index in indices])
    model.run_block = offload.wrap(with_checkpointing(run_block))
    return offload


@pytest.mark.parametrize("indices", [range(6), range(5), (1, 4), ()], ids=["all", "all but the last", "two", "none"])
def test_loss_and_gradients_are_bit_equal_over_steps_of_changing_shapes(indices):
    model = make_model()
    expected = plain_steps(model)
    offloaded(model, indices)
    for seed, shape in enumerate(SHAPES):
        assert_same(step(model, shape, seed), expected[seed])


@pytest.mark.parametrize(
    ("config", "dtype", "quant"),
    [(CONFIG, torch.bfloat16, "Q8_0"), (CLIP_CONFIG, torch.float32, None)],
    ids=["quantized bf16", "clip"],
)
def test_together_with_streaming(config, dtype, quant):
    model = make_model(config, dtype, quant)
    expected = plain_steps(model)
    count = config.num_layers
    streamer = stream_blocks(list(model.blocks), CPU, streamed=range(count), master="pageable")
    offload = ActivationOffload(CPU, list(model.blocks)[:-1], check_saved=streamer.check_saved)
    model.run_block = streamer.wrap(offload.wrap(with_checkpointing(call_block)))
    for seed, shape in enumerate(SHAPES):
        assert_same(step(model, shape, seed), expected[seed])
    streamer.close()


def test_inputs_are_gone_between_forward_and_backward():
    model = make_model()
    inputs = []

    def note(block, x, *others):
        inputs.append(weakref.ref(x))
        return call_block(block, x, *others)

    offloaded(model, (0, 1, 3, 4), note)
    loss = forward_loss(model, SHAPES[0])
    alive = [x() is not None for x in inputs]
    assert alive == [False, False, True, False, True, True]  # 2 and 5 are not told; 4 goes when the next one comes
    loss.backward()
    gc.collect()
    assert not any(x() is not None for x in inputs)


def test_buffers_are_used_again_and_grow_to_the_largest_shape():
    model = make_model()
    offload = offloaded(model, range(5))
    sizes = []
    for shape in SHAPES:
        step(model, shape)
        sizes.append(offload.bytes_on_host)
    tokens = [shape[0] * shape[2] * shape[3] * shape[4] // 4 for shape in SHAPES]
    assert sizes == [5 * max(tokens[: i + 1]) * model.config.dim * 4 for i in range(len(tokens))]
    held = {buffer.bytes.data_ptr() for buffer in offload._pool._free}
    assert len(held) == 5
    step(model, SHAPES[2])
    assert {buffer.bytes.data_ptr() for buffer in offload._pool._free} == held


def test_each_input_is_fetched_one_block_ahead(monkeypatch):
    model = make_model()
    offload = offloaded(model, range(6))
    journal = []
    copy, stream = offload._stream.copy, offload._stream
    names = {}

    def noted(target, source, after):
        out = source.data_ptr() not in names
        name = names.setdefault(target.data_ptr(), len(names)) if out else names[source.data_ptr()]
        journal.append(("out" if out else "in", name))
        return copy(target, source, after)

    monkeypatch.setattr(stream, "copy", noted)

    def note(block, *inputs):
        journal.append(("run", list(model.blocks).index(block)))
        return call_block(block, *inputs)

    model.run_block = offload.wrap(with_checkpointing(note))
    step(model, SHAPES[0])
    forward = [event for index in range(6) for event in (("out", index), ("run", index))]
    backward = [("in", 5), ("in", 4), ("run", 5), ("in", 3), ("run", 4), ("in", 2), ("run", 3), ("in", 1), ("run", 2)]
    assert journal == [*forward, *backward, ("in", 0), ("run", 1), ("run", 0)]


def test_a_second_backward_through_the_same_graph():
    model = make_model()
    expected = plain_steps(model, SHAPES[:1])[0]
    offloaded(model)
    loss = forward_loss(model, SHAPES[0])
    loss.backward(retain_graph=True)
    for parameter in trainable(model):
        parameter.grad = None
    loss.backward()
    gradients = [parameter.grad for parameter in trainable(model)]
    assert_same(gradients, expected)


@pytest.mark.parametrize("count", [1, 5, 7, 9])
def test_an_exception_in_the_middle_then_reset_then_equal_again(count):
    model = make_model()
    expected = plain_steps(model, SHAPES[:2])
    calls = []

    def failing(block, *inputs):
        calls.append(block)
        if len(calls) == count:
            raise MemoryError
        return call_block(block, *inputs)

    offload = offloaded(model, range(5), failing)
    with pytest.raises(MemoryError):
        step(model, SHAPES[0])
    for parameter in trainable(model):
        parameter.grad = None
    offload.reset()
    gc.collect()
    assert_same(step(model, SHAPES[1], 1), expected[1])
    assert len(offload._pool._free) == 5  # those of the broken step have come back


def test_without_checkpointing_streaming_is_refused_still():
    model = make_model()
    streamer = stream_blocks(list(model.blocks), CPU, streamed=(1, 2))
    offload = ActivationOffload(CPU, list(model.blocks), check_saved=streamer.check_saved)
    model.run_block = streamer.wrap(offload.wrap(call_block))
    with pytest.raises(ConfigError, match="only with checkpointing"):
        forward_loss(model, SHAPES[0])


def test_sampling_parks_nothing():
    model = make_model()
    offload = offloaded(model)
    with torch.no_grad():
        forward_loss(model, SHAPES[0])
    assert offload.bytes_on_host == 0


def test_without_checkpointing_the_gradients_are_the_same():
    model = make_model()
    expected = plain_steps(model, SHAPES[:1])[0]
    offload = ActivationOffload(CPU, list(model.blocks))
    model.run_block = offload.wrap(call_block)
    assert_same(step(model, SHAPES[0]), expected)
    assert offload.bytes_on_host == 5 * 12 * model.config.dim * 4  # the first has nothing to train below it


def test_buffers_that_are_made_beforehand_are_used_for_every_size():
    model = make_model()
    pool = HostPool(CPU)
    tokens = max(shape[0] * shape[2] * shape[3] * shape[4] // 4 for shape in SHAPES)
    pool.prepare(tokens * model.config.dim * 4, 5)
    expected = plain_steps(make_model(), SHAPES)
    offload = ActivationOffload(CPU, list(model.blocks)[:5])
    offload.use(pool)
    model.run_block = offload.wrap(with_checkpointing(call_block))
    held = set()
    for seed, (shape, plain) in enumerate(zip(SHAPES, expected, strict=True)):
        assert_same(step(model, shape, seed), plain)
        held |= {buffer.bytes.data_ptr() for buffer in pool._free}
    assert len(held) == 5
    assert offload.bytes_on_host == 5 * tokens * model.config.dim * 4


def test_what_cannot_be_made_beforehand_is_made_by_the_step():
    pool = HostPool(CPU)
    pool.prepare(2**62, 3)  # no machine has so much
    buffer = pool.take(16, lambda: None)
    assert buffer.bytes.numel() == 16
    assert pool.num_bytes == 16


def test_no_more_is_made_for_a_pool_that_is_gone():
    made, pool = queue.SimpleQueue(), HostPool(CPU)
    of_this = weakref.ref(pool)
    del pool
    _make(CPU, 16, 3, made, of_this)
    assert made.get() is None
