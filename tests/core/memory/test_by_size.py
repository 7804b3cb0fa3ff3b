"""Attention kept by the size of clips: the same gradients, and as many blocks as each size may."""

import copy

from wan_train.core.memory.by_size import kept_for, with_attention_by_size
from wan_train.core.memory.recompute import with_selective_recompute
from wan_train.core.wan.model import call_block
from wan_train.tests.core.memory.helpers import SHAPES, assert_same, make_model, plain_steps, step


def tokens(shape):
    return shape[0] * shape[2] * (shape[3] // 2) * (shape[4] // 2)


def test_each_size_keeps_its_own_number_and_gradients_are_the_same():
    model = make_model()
    expected = plain_steps(model)
    model = copy.deepcopy(model)
    blocks = list(model.blocks)
    kept = {tokens(shape): count for shape, count in zip(SHAPES, (5, 1, 0), strict=True)}
    assert len(kept) == 3
    selective = with_selective_recompute(call_block, blocks, 0)
    model.run_block = with_attention_by_size(selective, blocks, kept)
    for seed, shape in enumerate(SHAPES):
        assert_same(step(model, shape, seed), expected[seed])
        marks = [block.keeps_attention for block in blocks]
        assert sum(marks) == kept[tokens(shape)]
        assert marks == sorted(marks)  # the last ones


def test_sizes_between_keep_what_the_next_larger_one_may():
    kept = {100: 40, 1000: 12}
    assert [kept_for(kept, size) for size in (50, 100, 101, 1000, 1001)] == [40, 40, 12, 12, 0]
