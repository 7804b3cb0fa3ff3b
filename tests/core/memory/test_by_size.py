"""What is kept by the size of clips: the same gradients, and as many blocks as each size may."""

import copy

from wan_train.core.memory.by_size import kept_for, with_kept_by_size
from wan_train.core.memory.recompute import Kept, with_selective_recompute
from wan_train.core.wan.model import call_block
from wan_train.tests.core.memory.helpers import CONFIG, SHAPES, assert_same, make_model, plain_steps, step


def tokens(shape):
    return shape[0] * shape[2] * (shape[3] // 2) * (shape[4] // 2)


def test_each_size_keeps_its_own_number_and_gradients_are_the_same():
    model = make_model()
    expected = plain_steps(model)
    model = copy.deepcopy(model)
    blocks = list(model.blocks)
    kept = {tokens(shape): each for shape, each in zip(SHAPES, (Kept(5, 2), Kept(1), Kept(0, 3)), strict=True)}
    assert len(kept) == 3
    selective = with_selective_recompute(call_block, blocks, Kept(), width=CONFIG.dim)
    model.run_block = with_kept_by_size(selective, blocks, kept)
    for seed, shape in enumerate(SHAPES):
        assert_same(step(model, shape, seed), expected[seed])
        for name in ("attention", "linears"):
            count = getattr(kept[tokens(shape)], name)
            marks = [getattr(block, f"keeps_{name}") for block in blocks]
            assert sum(marks) == count
            assert marks == sorted(marks)  # the last ones


def test_sizes_between_keep_what_the_next_larger_one_may():
    small, large = Kept(40, 12), Kept(12)
    kept = {100: small, 1000: large}
    assert [kept_for(kept, size) for size in (50, 100, 101, 1000, 1001)] == [small, small, large, large, Kept()]
