"""Batches dealt to ranks: evenly by what they cost, the same on every rank, refused where they do not go round."""

import itertools
import random

import pytest
from wan_train.core.errors import ConfigError
from wan_train.core.parallel.deal import batch_cost, check_deal, deal


def loads(costs, dealt):
    return [sum(costs[place] for place in places) for places in dealt]


@pytest.mark.parametrize("equal_counts", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_every_batch_goes_to_one_rank(seed, equal_counts):
    draws = random.Random(seed)
    ranks = draws.choice([2, 3, 4])
    costs = [draws.choice([1.0, 8.0, 60.0]) for _ in range(ranks * draws.randint(1, 4))]
    dealt = deal(costs, ranks, equal_counts=equal_counts)
    assert sorted(itertools.chain(*dealt)) == list(range(len(costs)))
    assert all(dealt)
    if equal_counts:
        assert len({len(places) for places in dealt}) == 1
    else:
        assert dealt == [sorted(places) for places in dealt]


@pytest.mark.parametrize("seed", range(5))
def test_the_slowest_rank_is_within_four_thirds_of_the_best_there_is(seed):
    draws = random.Random(seed)
    costs = [draws.uniform(1, 10) for _ in range(7)]
    best = min(
        max(loads(costs, [[p for p, r in enumerate(who) if r == rank] for rank in range(3)]))
        for who in itertools.product(range(3), repeat=len(costs))
    )
    assert max(loads(costs, deal(costs, 3))) <= 4 / 3 * best


def test_one_rank_has_all_in_their_order():
    assert deal([3.0, 1.0, 2.0], 1) == [[0, 1, 2]]


def test_with_equal_counts_what_is_trained_at_the_same_time_is_alike():
    costs = [1.0, 9.0, 1.0, 9.0]
    dealt = deal(costs, 2, equal_counts=True)
    assert [[costs[place] for place in places] for places in dealt] == [[9.0, 1.0], [9.0, 1.0]]


def test_a_long_clip_costs_more_than_its_tokens():
    """FLOP of a block's forward, written out: its linears, and q k and the sum over v."""

    def flop(tokens, dim=5120, ffn_dim=13824):
        linears = 2 * tokens * (4 * dim * dim + 2 * dim * dim + 2 * dim * ffn_dim)
        return linears + 2 * (2 * tokens * tokens * dim)

    costs = [batch_cost(tokens, 1, dim=5120, ffn_dim=13824) for tokens in (1000, 30000)]
    assert costs[1] / costs[0] == pytest.approx(flop(30000) / flop(1000))
    assert batch_cost(1000, 3, dim=5120, ffn_dim=13824) == pytest.approx(3 * costs[0])


def test_batches_that_do_not_go_round_are_refused():
    check_deal(4, 4, equal_counts=True)
    check_deal(5, 4)
    with pytest.raises(
        ConfigError, match=r"a step has 1 batch, and there are 2 GPUs .* gradient_accumulation to 2 or more"
    ):
        check_deal(1, 2)
    with pytest.raises(ConfigError, match=r"5 batches for 4 GPUs.* multiple of 4"):
        check_deal(5, 4, equal_counts=True)
