"""Which rank of a run hangs, and when that is said. Time is a number here."""

from dataclasses import replace

import pytest
from wan_train.core.parallel.progress import RankPlace
from wan_train.core.parallel.standstill import MOST_BETWEEN_S, Hang, Standstill, StandstillLimits

SPINS = RankPlace("waits", "work", 7, 9)
IN_SUM = RankPlace("waits", "sum", 8, 9)
ON_HOST = RankPlace("own", "work", 7, 7)
VOTES = RankPlace("waits", "sum", 8, 8)
SAVES = RankPlace("elsewhere", "rest", 9, 9)
LIMITS = StandstillLimits()


class Clock:
    """Looks once a second."""

    def __init__(self):
        self.standstill, self.now = Standstill(LIMITS), 0.0

    def look(self, *places, passed=1.0):
        self.now += passed
        return self.standstill.look(dict(enumerate(places)), self.now)

    def until_found(self, *places, most=4000):
        """Seconds until it is said, and what."""
        for second in range(most):
            if found := self.look(*places):
                return second, found
        return most, None


@pytest.fixture
def clock():
    return Clock()


def test_a_gpu_that_spins_is_named_within_a_minute(clock):
    seconds, found = clock.until_found(IN_SUM, SPINS)
    assert LIMITS.still_s < seconds < 50
    assert (found.ranks, found.why) == ((1,), "gpu")


def test_a_host_that_votes_waits_for_a_gpu_that_spins(clock):
    assert clock.until_found(VOTES, SPINS)[1].ranks == (1,)


def test_a_host_within_its_step_is_given_much_longer(clock):
    seconds, found = clock.until_found(IN_SUM, ON_HOST, VOTES)
    assert seconds == pytest.approx(LIMITS.host_s, abs=5)
    assert (found.ranks, found.why) == ((1,), "host")


def test_a_gpu_that_spins_is_named_though_another_host_works(clock):
    assert clock.until_found(ON_HOST, SPINS)[1].ranks == (1,)


def test_nothing_is_said_while_a_rank_is_outside_of_its_steps(clock):
    assert clock.until_found(SAVES, VOTES)[1] is None
    assert clock.until_found(SAVES, SPINS)[1] is None


def test_nothing_is_said_while_anything_changes(clock):
    for number in range(4000):
        assert clock.look(IN_SUM, replace(SPINS, reached=number // 40, queued=9999)) is None


def test_a_step_larger_than_all_before_is_given_longer(clock):
    seconds, found = clock.until_found(replace(IN_SUM, is_first=True), SPINS)
    assert seconds == pytest.approx(LIMITS.first_s, abs=5)
    assert found.ranks == (1,)


def test_slow_gpus_are_given_ten_times_their_longest(clock):
    for _ in range(20):
        assert clock.look(IN_SUM, SPINS) is None
    clock.look(IN_SUM, replace(SPINS, reached=8))
    seconds, _ = clock.until_found(IN_SUM, SPINS)
    assert seconds == pytest.approx(10 * 19, abs=3)


def test_a_host_that_was_slow_makes_gpus_no_slower(clock):
    for _ in range(300):
        assert clock.look(IN_SUM, ON_HOST) is None
    assert clock.until_found(IN_SUM, SPINS)[0] < 50


def test_time_asleep_does_not_count(clock):
    clock.look(IN_SUM, SPINS)
    clock.look(IN_SUM, SPINS)
    assert clock.look(IN_SUM, SPINS, passed=100_000.0) is None
    assert clock.until_found(IN_SUM, SPINS)[0] > LIMITS.still_s - MOST_BETWEEN_S - 3


def test_all_that_wait_for_each_other_have_a_link_that_hangs(clock):
    _, found = clock.until_found(IN_SUM, VOTES)
    assert (found.ranks, found.why) == ((0, 1), "link")


def test_of_ranks_that_share_clips_those_in_the_exchange_are_named(clock):
    first, second = RankPlace("waits", "exchange", 20, 25, group=1), RankPlace("waits", "exchange", 20, 25, group=1)
    assert clock.until_found(IN_SUM, IN_SUM, first, second)[1].ranks == (2, 3)
    behind = replace(second, reached=18)
    _, found = Clock().until_found(IN_SUM, IN_SUM, first, behind)
    assert (found.ranks, found.why) == ((3,), "behind")
    other = replace(behind, group=2)  # with batches of its own
    assert Clock().until_found(IN_SUM, IN_SUM, first, other)[1].ranks == (2, 3)


@pytest.mark.parametrize(
    ("hang", "begin"),
    [
        (
            Hang((1,), "gpu", 46.0),
            "rank 1 (cuda:1) hangs: its GPU has not got on for 46 s, and the others wait for it; the",
        ),
        (
            Hang((0, 1), "gpu", 46.0),
            "rank 0 (cuda:0) and rank 1 (cuda:1) hang: their GPUs have not got on for 46 s; the",
        ),
        (Hang((1,), "host", 1501.0), "rank 1 (cuda:1) hangs: its process has not got on within a step for 1501 s, and"),
        (
            Hang((1,), "behind", 46.0),
            "rank 1 (cuda:1) hangs: for 46 s the others have waited for it in an exchange; the",
        ),
        (
            Hang((0, 1), "link", 46.0),
            "rank 0 (cuda:0) and rank 1 (cuda:1) hang: for 46 s they have waited for each other",
        ),
    ],
)
def test_the_sentence(hang, begin):
    said = hang.sentence(lambda rank: f"rank {rank} (cuda:{rank})")
    assert said.startswith(begin)
    assert said.endswith("; the last checkpoint is kept. Start the run again to go on.")
