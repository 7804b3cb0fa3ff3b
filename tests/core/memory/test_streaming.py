"""Streamed blocks train like resident ones, bit for bit; the order of fetches; what is refused."""

import copy
import threading
import time
from dataclasses import replace

import pytest
import torch
from torch import nn
from wan_train.core.errors import ConfigError
from wan_train.core.memory import streaming
from wan_train.core.memory.checkpointing import with_checkpointing
from wan_train.core.memory.master import BlockMaster, frozen_tensors, streamed_bytes
from wan_train.core.memory.offload import ActivationOffload
from wan_train.core.memory.streaming import BlockStreamer, stream_blocks
from wan_train.core.wan.model import call_block
from wan_train.tests.core.memory.helpers import (
    CLIP_CONFIG,
    CONFIG,
    CPU,
    SHAPES,
    SHORT_CONFIG,
    PoisoningStreamer,
    assert_same,
    break_off_anywhere,
    forward_loss,
    make_model,
    plain_steps,
    recording,
    step,
    take_gradients,
    trainable,
)
from wan_train.tests.core.memory.test_copies import LaggingStream

SIX_SHORT = replace(CONFIG, dim=16, ffn_dim=32)


def streamed(model, indices=(1, 2, 4), *, kind="pinned", **options):
    """`model` with streaming around checkpointing."""
    streamer = stream_blocks(list(model.blocks), CPU, streamed=indices, master=kind, **options)
    model.run_block = streamer.wrap(with_checkpointing(call_block))
    return streamer


def make_streamer(model, kind="pinned", **options):
    masters = {index: BlockMaster(model.blocks[index], kind, device=CPU) for index in options.pop("indices", (1, 2, 4))}
    return BlockStreamer(list(model.blocks), CPU, masters=masters, **options)


@pytest.mark.parametrize(
    ("kind", "indices", "slots"),
    [
        ("pinned", (1, 2, 4), 2),
        ("pinned", range(6), 1),
        ("pinned", (3,), 2),
        ("pageable", range(6), 3),
        ("mapped", (0, 3, 5), 2),
    ],
)
def test_loss_and_gradients_are_bit_equal_over_steps_of_changing_shapes(tmp_path, kind, indices, slots):
    model = make_model()
    expected = plain_steps(model)
    streamed(model, indices, slots=slots, kind=kind, folder=tmp_path if kind == "mapped" else None)
    for seed, shape in enumerate(SHAPES):
        assert_same(step(model, shape, seed), expected[seed])


@pytest.mark.parametrize(
    ("config", "dtype", "quant"),
    [(CONFIG, torch.bfloat16, None), (CONFIG, torch.float32, "Q8_0"), (CLIP_CONFIG, torch.float32, None)],
    ids=["bf16", "quantized", "clip"],
)
def test_other_weights_and_variants(config, dtype, quant):
    model = make_model(config, dtype, quant)
    expected = plain_steps(model)
    streamed(model, range(config.num_layers))
    for seed, shape in enumerate(SHAPES):
        assert_same(step(model, shape, seed), expected[seed])


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_only_the_slot_of_the_entered_block_is_read(slots):
    model = make_model()
    expected = plain_steps(model)
    masters = {index: BlockMaster(block, "pinned", device=CPU) for index, block in enumerate(model.blocks)}
    streamer = PoisoningStreamer(list(model.blocks), CPU, masters=masters, slots=slots)
    model.run_block = streamer.wrap(with_checkpointing(call_block))
    for seed, shape in enumerate(SHAPES):
        assert_same(step(model, shape, seed), expected[seed])


def test_two_forwards_before_one_backward():
    model = make_model()
    reference = copy.deepcopy(model)
    reference.run_block = with_checkpointing(call_block)
    streamed(model, range(6))
    results = []
    for each in (reference, model):
        (forward_loss(each, SHAPES[0], 0) + forward_loss(each, SHAPES[1], 1)).backward()
        results.append(take_gradients(each))
    assert_same(results[1], results[0])


MIXED = {  # kinds of six blocks; None: on the device
    "one of all": ["pinned"] * 3 + ["mapped"] + ["pinned"] * 2,
    "at the turns": ["mapped", *["pinned"] * 4, "mapped"],
    "every second": ["mapped", "pinned"] * 3,
    "three kinds": ["pageable", "mapped", "pinned", "pageable", "mapped", "pageable"],
    "some on the device": [None, "mapped", None, "pageable", "pinned", None],
    "most from files": ["mapped"] * 5 + ["pinned"],
}


def mixed(model, kinds, folder, *, streamer=BlockStreamer, **options):
    """`model` with blocks streamed from different places."""
    masters = {
        index: BlockMaster(model.blocks[index], kind, device=CPU, folder=folder if kind == "mapped" else None)
        for index, kind in enumerate(kinds)
        if kind is not None
    }
    made = streamer(list(model.blocks), CPU, masters=masters, **options)
    model.run_block = made.wrap(with_checkpointing(call_block))
    return made


@pytest.mark.grid(2)
@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("kinds", MIXED.values(), ids=MIXED)
def test_blocks_from_different_places_give_the_same_bits(tmp_path, monkeypatch, kinds, slots):
    """On a device whose copies lag behind, and a disk that is slow to begin."""
    monkeypatch.setattr(streaming, "open_stream", lambda _: LaggingStream())
    model = make_model(SIX_SHORT)
    expected = plain_steps(model)
    streamer = mixed(model, kinds, tmp_path, slots=slots)
    fill = streamer._staged._fill

    def slowly(*args):
        time.sleep(0.002)
        fill(*args)

    streamer._staged._fill = slowly
    for seed, shape in enumerate(SHAPES):
        with torch.no_grad():
            forward_loss(model, shape, seed)
        assert_same(step(model, shape, seed), expected[seed])
    streamer.close()


def test_of_mixed_blocks_only_the_slot_of_the_entered_one_is_read(tmp_path):
    model = make_model()
    expected = plain_steps(model)
    streamer = mixed(model, MIXED["three kinds"], tmp_path, streamer=PoisoningStreamer)
    for seed, shape in enumerate(SHAPES):
        assert_same(step(model, shape, seed), expected[seed])
    streamer.close()


def test_a_block_that_is_not_needed_any_more_does_not_come_late(tmp_path):
    streamer = mixed(make_model(), MIXED["one of all"], tmp_path)
    busy = threading.Event()
    streamer._staged._thread.submit(busy.wait, 60)
    streamer.enter(2, backward=False, returns=True)  # 3 is to come next, from its file
    streamer.enter(1, backward=True, returns=True)  # 1 and 0 instead
    busy.set()
    streamer._staged._thread.submit(int).result(60)
    for slot in streamer.slots:
        assert torch.equal(slot.bytes, streamer.masters[slot.block].bytes)
    assert {slot.block for slot in streamer.slots} == {0, 1}
    streamer.close()


def test_files_are_read_while_other_blocks_compute(tmp_path):
    """Before the ring has a place for them: the buffers have the next two at every block."""
    model = make_model()
    streamer = mixed(model, ["pinned", "mapped", "pinned", "pinned", "mapped", "pinned"], tmp_path)
    sources = {id(master.bytes): index for index, master in streamer.masters.items()}
    held = []

    def look(block, *inputs):
        held.append({sources[id(staged.source)] for staged in streamer._staged._staged if staged is not None})
        return call_block(block, *inputs)

    model.run_block = streamer.wrap(with_checkpointing(look))
    step(model, SHAPES[0])
    assert held == [{1, 4}] * 12  # 1 and 4 are read once, and stay
    others = mixed(make_model(), ["mapped", "pinned", "mapped", "mapped", "pinned", "mapped"], tmp_path)
    others.enter(1, backward=False, returns=True)  # 2 goes to the ring
    ahead = [staged.source for staged in others._staged._staged]
    assert any(each is others.masters[3].bytes for each in ahead)
    others.close()


def test_mixed_blocks_after_an_exception_while_reading(tmp_path):
    model = make_model()
    expected = plain_steps(model)
    streamer = mixed(model, MIXED["every second"], tmp_path)
    step(model, SHAPES[2], 2)
    content = streamer.masters[4].bytes
    streamer.masters[4].bytes = torch.zeros(content.numel() + 1, dtype=torch.uint8)  # more than the buffers take
    with pytest.raises(RuntimeError, match="must match the size"):
        step(model, SHAPES[0])
    for parameter in trainable(model):
        parameter.grad = None
    streamer.reset()
    streamer.masters[4].bytes = content
    for seed, shape in enumerate(SHAPES):
        assert_same(step(model, shape, seed), expected[seed])
    streamer.close()
    model.run_block = with_checkpointing(call_block)
    assert_same(step(model, SHAPES[0]), expected[0])


@pytest.mark.parametrize("kinds", [MIXED["at the turns"], MIXED["three kinds"]])
def test_mixed_blocks_broken_off_anywhere_then_reset(tmp_path, monkeypatch, kinds):
    monkeypatch.setattr(streaming, "open_stream", lambda _: LaggingStream())
    model = make_model()
    expected = plain_steps(model, SHAPES[:1])[0]
    streamer = mixed(model, kinds, tmp_path)
    break_off_anywhere(model, streamer, expected)
    streamer.close()


def test_the_memory_of_mixed_blocks_is_accounted_for(tmp_path):
    model = make_model()
    size = streamed_bytes(model.blocks[1])
    for kinds, held in (("one of all", 5 + 2), ("three kinds", 4 + 2), ("some on the device", 2 + 2)):
        streamer = mixed(copy.deepcopy(model), MIXED[kinds], tmp_path)
        assert streamer.bytes_on_host == held * size
        streamer.close()


class Journal:
    """Notes the fetches of a streamer, by block."""

    def __init__(self, streamer):
        self.fetches = []
        sources = {master.bytes.data_ptr(): index for index, master in streamer.masters.items()}
        for loader in (streamer._pinned, streamer._staged):
            if loader is not None:
                self._note(loader, sources)

    def _note(self, loader, sources):
        start = loader.start

        def noted(target, source, after):
            self.fetches.append(sources[source.data_ptr()])
            return start(target, source, after)

        loader.start = noted

    def take(self):
        taken, self.fetches = self.fetches, []
        return taken


def test_blocks_are_fetched_one_ahead_and_those_at_the_turns_stay():
    model = make_model()
    streamer = streamed(model, range(6))
    journal, calls = Journal(streamer), []
    model.run_block = streamer.wrap(with_checkpointing(recording(call_block, model.blocks, calls)))
    step(model, SHAPES[0])
    assert calls == [0, 1, 2, 3, 4, 5, 5, 4, 3, 2, 1, 0]
    assert journal.take() == [0, 1, 2, 3, 4, 5, 3, 2, 1, 0]  # 5 and 4 are still there
    step(model, SHAPES[0])
    assert journal.take() == [2, 3, 4, 5, 3, 2, 1, 0]  # and so are 0 and 1


def test_sampling_goes_round_and_training_goes_on_after_it():
    model = make_model()
    streamer = streamed(model, (1, 3, 4, 5))
    journal = Journal(streamer)
    with torch.no_grad():
        first = forward_loss(model, SHAPES[0])
        assert journal.take() == [1, 3, 4, 5, 1]  # 5 is in the other slot
        second = forward_loss(model, SHAPES[0])
    assert torch.equal(first, second)
    assert journal.take() == [3, 4, 5, 1]
    assert_same(step(model, SHAPES[0]), plain_steps(make_model(), SHAPES[:1])[0])


def test_next_block_is_on_its_way_while_one_runs():
    model = make_model()
    streamer = streamed(model, (0, 2, 4))
    held = []

    def look(block, *inputs):
        held.append({slot.block for slot in streamer.slots})
        return call_block(block, *inputs)

    model.run_block = streamer.wrap(with_checkpointing(look))
    step(model, SHAPES[0])
    assert held[:6] == [{0, 2}, {2, 4}, {2, 4}, {4, 2}, {4, 2}, {4, 2}]
    assert held[6:] == [{4, 2}, {4, 2}, {2, 0}, {2, 0}, {0, 2}, {0, 2}][: len(held) - 6]


def test_ring_memory_stays_the_same_and_is_accounted_for(tmp_path):
    model = make_model()
    size = streamed_bytes(model.blocks[1])
    resident = sum(tensor.nbytes for tensor in frozen_tensors(model.blocks[1]))
    assert resident <= size < resident + 256 * len(frozen_tensors(model.blocks[1]))
    with torch.device("meta"):
        assert streamed_bytes(copy.deepcopy(model.blocks[1]).to("meta")) == size
    for kind, on_host in (("pinned", 3 * size), ("pageable", 5 * size), ("mapped", 2 * size)):
        other = copy.deepcopy(model)
        streamer = streamed(other, kind=kind, folder=tmp_path if kind == "mapped" else None)
        assert (streamer.bytes_on_device, streamer.bytes_on_host) == (2 * size, on_host)
        slots = [slot.bytes.data_ptr() for slot in streamer.slots]
        for shape in SHAPES:
            step(other, shape)
        assert [slot.bytes.data_ptr() for slot in streamer.slots] == slots
        pointers = {tensor.untyped_storage().data_ptr() for tensor in frozen_tensors(other.blocks[2])}
        assert len(pointers) == 1  # all of it is one run of bytes, in a slot or the master


def test_weights_that_lay_elsewhere_are_freed():
    model = make_model()
    old = {tensor.untyped_storage().data_ptr() for tensor in frozen_tensors(model.blocks[1])}
    weights = {name: tensor.clone() for name, tensor in model.blocks[1].state_dict().items()}
    names = list(model.state_dict())
    streamer = streamed(model)
    assert old.isdisjoint(tensor.untyped_storage().data_ptr() for tensor in frozen_tensors(model.blocks[1]))
    assert list(model.state_dict()) == names
    step(model, SHAPES[0])
    streamer.reset()
    for name, tensor in model.blocks[1].state_dict().items():
        assert torch.equal(tensor, weights[name])


def test_layout_keeps_dtypes_strides_and_alignment():
    block = nn.Module()
    block.register_buffer("scale", torch.tensor(0.5))
    block.register_buffer("transposed", torch.randn(6, 10).t())
    block.register_buffer("packed", torch.arange(7, dtype=torch.uint8))
    block.register_buffer("eight", torch.randn(3, 5).to(torch.float8_e4m3fn))
    block.register_buffer("repeated", torch.tensor([[1.0, 2.0]]).expand(4, 2))
    block.register_buffer("empty", torch.empty(0, 3))
    before = {name: tensor.clone() for name, tensor in block.named_buffers()}
    master = BlockMaster(block, "pageable", device=CPU)
    slot = torch.empty(master.layout.num_bytes + 99, dtype=torch.uint8)
    slot[: master.layout.num_bytes] = master.bytes
    master.bind(master.layout.views(slot))
    for name, tensor in block.named_buffers():
        assert torch.equal(
            tensor.view(torch.uint8) if name == "eight" else tensor,
            before[name].view(torch.uint8) if name == "eight" else before[name],
        )
        assert (tensor.data_ptr() - slot.data_ptr()) % 256 == 0 or tensor.numel() == 0
        assert tensor.untyped_storage().data_ptr() == slot.data_ptr()
    assert block.get_buffer("transposed").stride() == (1, 10)


def test_an_exception_in_the_middle_then_reset_then_equal_again():
    model = make_model()
    expected = plain_steps(model)
    streamer = streamed(model, range(6))

    class OutOfMemoryError(RuntimeError):
        pass

    def failing_at(count):
        calls = []

        def run(block, *inputs):
            calls.append(block)
            if len(calls) == count:
                raise OutOfMemoryError
            return call_block(block, *inputs)

        return run

    for count in (1, 4, 6, 7, 9, 12):  # in the forward, at the turn, in the backward
        model.run_block = streamer.wrap(with_checkpointing(failing_at(count)))
        with pytest.raises(OutOfMemoryError):
            step(model, SHAPES[0])
        for parameter in trainable(model):
            parameter.grad = None
        streamer.reset()
        assert all(slot.block is None for slot in streamer.slots)
        model.run_block = streamer.wrap(with_checkpointing(call_block))
        assert_same(step(model, SHAPES[1], 1), expected[1])


def test_without_checkpointing_training_is_refused_and_sampling_is_not():
    model = make_model()
    expected = plain_steps(model, SHAPES[:1])[0]
    streamer = streamed(model)
    model.run_block = streamer.wrap(call_block)
    with torch.no_grad():
        loss = forward_loss(model, SHAPES[0])
    with pytest.raises(ConfigError, match="only with checkpointing"):
        forward_loss(model, SHAPES[0])
    model.run_block = streamer.wrap(with_checkpointing(call_block))
    assert torch.equal(loss, forward_loss(model, SHAPES[0]))
    assert_same(step(model, SHAPES[0]), expected)


def test_only_streamed_blocks_need_checkpointing():
    model = make_model()
    expected = plain_steps(model)
    streamer = streamed(model, (1, 3))
    plain, checkpointed = streamer.wrap(call_block), streamer.wrap(with_checkpointing(call_block))
    chosen = {model.blocks[index] for index in (1, 3)}
    model.run_block = lambda block, *inputs: (checkpointed if block in chosen else plain)(block, *inputs)
    for seed, shape in enumerate(SHAPES):
        assert_same(step(model, shape, seed), expected[seed])


def test_a_copy_is_refused_until_it_has_a_streamer_of_its_own():
    model = make_model()
    expected = plain_steps(model)
    streamed(model)
    step(model, SHAPES[0])
    other = copy.deepcopy(model)
    with pytest.raises(ConfigError, match="needs one of its own"):
        step(other, SHAPES[1])
    streamed(other, (0, 5))
    for each in (other, model):
        assert_same(step(each, SHAPES[1], 1), expected[1])


def test_sampling_in_inference_mode_leaves_training_possible():
    model = make_model()
    expected = plain_steps(model, SHAPES[:1])[0]
    with torch.inference_mode():
        streamed(model, range(6))
        forward_loss(model, SHAPES[1])
    assert_same(step(model, SHAPES[0]), expected)


@pytest.mark.parametrize("kind", ["pinned", "pageable"])
def test_closed_streamer_leaves_the_weights_in_main_memory(kind):
    model = make_model()
    expected = plain_steps(model, SHAPES[:1])[0]
    streamer = streamed(model, range(6), kind=kind)
    step(model, SHAPES[1])
    streamer.close()
    assert streamer.bytes_on_device == 0
    model.run_block = with_checkpointing(call_block)
    assert_same(step(model, SHAPES[0]), expected)


def test_blocks_compiled_with_their_checkpoints():
    """The block is not called again then: the compiled backward reads the weights through the tensor objects."""
    from torch._dynamo.testing import CompileCounterWithBackend

    model = make_model(SHORT_CONFIG)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager_decomp_partition")
    compiled = torch.compile(with_checkpointing(call_block), fullgraph=True, dynamic=False, backend=counter)
    model.run_block = compiled
    expected = step(model, SHAPES[0])
    frames = counter.frame_count
    masters = {index: BlockMaster(block, "pinned", device=CPU) for index, block in enumerate(model.blocks)}
    streamer = PoisoningStreamer(list(model.blocks), CPU, masters=masters)
    offload = ActivationOffload(CPU, list(model.blocks), check_saved=streamer.check_saved)
    model.run_block = streamer.wrap(offload.wrap(compiled))
    for _ in range(2):
        assert_same(step(model, SHAPES[0]), expected)
    assert offload.bytes_on_host == 3 * 12 * 32 * 4
    assert counter.frame_count == frames <= 2


# Settings ---------------------------------------------------------------------------------------------------------


def test_stream_blocks_takes_some_from_files(tmp_path):
    model = make_model()
    streamer = stream_blocks(
        list(model.blocks), CPU, streamed=(1, 2, 4), master="pageable", mapped=(2,), folder=tmp_path
    )
    assert {index: master.kind for index, master in streamer.masters.items()} == {
        1: "pageable",
        2: "mapped",
        4: "pageable",
    }
    assert len(list(tmp_path.iterdir())) == 1
    streamer.close()


def test_settings_that_cannot_be_are_refused(tmp_path):
    model = make_model()
    for masters in ({}, {6: BlockMaster(model.blocks[0], "pinned", device=CPU)}):
        with pytest.raises(ConfigError, match="some of 0 to 5"):
            BlockStreamer(list(model.blocks), CPU, masters=masters)
    with pytest.raises(ConfigError, match="slots must be at least 1, got 0"):
        make_streamer(model, slots=0)
    with pytest.raises(ConfigError, match="got 'disk'"):
        BlockMaster(model.blocks[0], "disk", device=CPU)
    with pytest.raises(ConfigError, match="A folder is needed"):
        BlockMaster(model.blocks[0], "mapped", device=CPU)
    with pytest.raises(ConfigError, match="A folder is needed"):
        BlockMaster(model.blocks[0], "pinned", device=CPU, folder=tmp_path)

    class Wrapped(nn.Parameter):
        pass

    model.blocks[0].modulation = Wrapped(torch.zeros(1), requires_grad=False)
    with pytest.raises(ConfigError, match="type Wrapped cannot be streamed"):
        BlockMaster(model.blocks[0], "pinned", device=CPU)
