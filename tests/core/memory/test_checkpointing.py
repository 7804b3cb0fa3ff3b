import torch
from wan_train.core.memory.checkpointing import with_checkpointing
from wan_train.core.wan.model import call_block
from wan_train.tests.core.memory.helpers import SHAPES, assert_same, forward_loss, make_model, recording, step


def test_each_block_runs_again_in_the_backward_and_gradients_keep_their_bits():
    model = make_model()
    expected = step(model, SHAPES[0])
    calls = []
    model.run_block = with_checkpointing(recording(call_block, model.blocks, calls))
    assert_same(step(model, SHAPES[0]), expected)
    assert calls == [0, 1, 2, 3, 4, 5, 5, 4, 3, 2, 1, 0]


def test_nothing_is_kept_but_the_inputs_of_blocks():
    model = make_model()
    kept = {}
    for name, run_block in (("plain", call_block), ("checkpointed", with_checkpointing(call_block))):
        model.run_block = run_block
        sizes = []
        pack = lambda tensor, sizes=sizes: sizes.append(tensor.numel()) or tensor  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            forward_loss(model, SHAPES[0])
        kept[name] = sum(sizes)
    assert kept["checkpointed"] < kept["plain"] / 5


def test_without_gradients_blocks_run_once():
    model = make_model()
    calls = []
    model.run_block = with_checkpointing(recording(call_block, model.blocks, calls))
    with torch.no_grad():
        forward_loss(model, SHAPES[0])
    assert calls == [0, 1, 2, 3, 4, 5]
