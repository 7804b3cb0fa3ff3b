"""Which blocks are swapped, and the order in which they are needed."""

from itertools import pairwise

import pytest
from wan_train.core.errors import ConfigError
from wan_train.core.memory.order import spread, spread_mapped, travel, upcoming


def test_spread_is_even_and_of_the_right_number():
    assert spread(0, 40) == ()
    assert spread(1, 3) == (1,)
    assert spread(3, 6) == (1, 3, 5)
    assert spread(40, 40) == tuple(range(40))
    for count in range(1, 41):
        chosen = spread(count, 40)
        gaps = [b - a for a, b in pairwise(chosen)]
        assert len(set(chosen)) == count
        assert set(chosen) <= set(range(40))
        assert not gaps or max(gaps) - min(gaps) <= 1
    with pytest.raises(ConfigError, match="7 blocks cannot be streamed: the model has 6"):
        spread(7, 6)


def test_mapped_blocks_are_spread_among_the_streamed():
    assert spread_mapped(0, (1, 3, 5)) == ()
    assert spread_mapped(2, (1, 3, 5, 7)) == (3, 7)
    assert spread_mapped(3, (1, 3, 5)) == (1, 3, 5)
    assert spread_mapped(5, range(40)) == (4, 12, 20, 28, 36)
    with pytest.raises(ConfigError, match="4 blocks cannot come from files: 3 are streamed"):
        spread_mapped(4, (1, 3, 5))


def test_travel_goes_through_all_as_often_as_they_are_needed():
    some = (1, 3, 4)
    assert travel(some, 2, backward=False, returns=True, slots=1) == [3, 4, 3, 1]
    assert travel(some, 2, backward=False, returns=True, slots=2) == [3, 4, 1]
    assert travel(some, 3, backward=False, returns=False, slots=2) == [3, 4, 1, 3, 4]
    assert travel(some, 3, backward=True, returns=True, slots=1) == [3, 1, 3, 4]


def test_upcoming_is_the_order_of_the_calls():
    some = (1, 3, 4)
    assert upcoming(some, 0, backward=False, returns=True) == [1, 3, 4]
    assert upcoming(some, 3, backward=False, returns=True) == [3, 4, 1]
    assert upcoming(some, 5, backward=False, returns=True) == [4, 3, 1]
    assert upcoming(some, 5, backward=False, returns=False) == [1, 3, 4]
    assert upcoming(some, 4, backward=True, returns=True) == [4, 3, 1]
    assert upcoming(some, 2, backward=True, returns=True) == [1, 3, 4]
