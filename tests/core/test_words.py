"""Words that depend on a number."""

import pytest
from wan_train.core.words import counted, some


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0 steps"), (1, "1 step"), (1.0, "1 step"), (2, "2 steps"), (1500, "1,500 steps"), (16.72, "16.7 steps")],
)
def test_a_number_of_things(number, said):
    assert counted(number, "step") == said


def test_a_plural_without_s():
    assert [counted(number, "batch", "batches") for number in (1, 2)] == ["1 batch", "2 batches"]
    assert [counted(number, "weight is", "weights are") for number in (1, 2)] == ["1 weight is", "2 weights are"]


def test_a_part_of_them():
    assert some(1, 40, "layer", "is", "are") == "1 of 40 layers is"
    assert some(2, 40, "layer", "is", "are") == "2 of 40 layers are"
    assert some(1, 1, "layer", "is", "are") == "1 of 1 layer is"
