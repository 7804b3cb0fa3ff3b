import itertools
import random

import pytest
import torch
from wan_train.core.encoders.batches import TOKENS_AT_ONCE, encode_in_batches, group_by_length


def test_groups_are_of_similar_length_and_bounded():
    lengths = [random.Random(0).randint(1, 512) for _ in range(200)]
    groups = group_by_length(lengths)
    assert sorted(index for group in groups for index in group) == list(range(200))
    assert all(len(group) * max(lengths[i] for i in group) <= TOKENS_AT_ONCE for group in groups)
    padding = sum(max(lengths[i] for i in group) - lengths[j] for group in groups for j in group)
    assert padding < 0.1 * sum(lengths)
    for before, after in itertools.pairwise(groups):
        assert min(lengths[i] for i in before) >= max(lengths[i] for i in after)
        assert (len(before) + 1) * lengths[before[0]] > TOKENS_AT_ONCE  # one more would not have fitted
    assert group_by_length([]) == []


def test_results_are_in_the_order_of_the_rows():
    rows = [[index] * (1 + index * 37 % 50) for index in range(300)]
    calls = []

    def encode(batch):
        calls.append(len(batch))
        return [torch.tensor(row) for row in batch]

    contexts = encode_in_batches(rows, encode, lambda: None)
    assert [context.tolist() for context in contexts] == rows
    assert 1 < len(calls) < 10


def test_one_row_without_memory_is_tried_again_and_then_raised():
    freed = []

    def encode(batch):
        raise torch.OutOfMemoryError("provoked")

    with pytest.raises(torch.OutOfMemoryError):
        encode_in_batches([[1], [2]], encode, lambda: freed.append(1))
    assert len(freed) == 2  # once to halve, once for the single one


def test_other_errors_are_raised_at_once():
    calls = []

    def encode(batch):
        calls.append(1)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        encode_in_batches([[1], [2]], encode, lambda: None)
    assert calls == [1]
