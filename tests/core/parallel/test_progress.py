"""Where a rank is in its step, as the others see it."""

from contextlib import suppress

import pytest
import torch
from torch import nn
from wan_train.core.parallel.progress import Progress, RankPlace


def marks(progress):
    place = progress.place()
    return place.mark, place.reached


@pytest.fixture
def progress():
    """That of a rank whose first step is over."""
    found = Progress()
    found.ended(1)
    return found


def test_a_step_from_its_own_work_to_its_end(progress):
    assert progress.place() == RankPlace()
    with progress.step():
        assert progress.place() == RankPlace("own", "work", 1, 1)
        progress.mark("sum")
        with progress.waiting():
            assert progress.place() == RankPlace("waits", "sum", 2, 2)
        assert progress.place().doing == "host"
    assert progress.place() == RankPlace("elsewhere", "rest", 3, 3)
    with progress.waiting():
        assert progress.place().doing == "waits"


def test_a_step_that_breaks_off_is_left(progress):
    with suppress(ValueError), progress.step():
        raise ValueError
    assert progress.place() == RankPlace("elsewhere", "rest", 2, 2, is_first=True)


def test_outside_of_steps_nothing_is_marked():
    progress = Progress()
    progress.mark("work")
    with progress.exchanging():
        pass
    assert marks(progress) == ("rest", 0)


def test_an_exchange_is_followed_by_work(progress):
    with progress.step():
        with progress.exchanging():
            assert progress.place() == RankPlace("waits", "exchange", 2, 2)
        assert progress.place() == RankPlace("own", "work", 3, 3)


def test_links_that_are_opened_before_the_first_step_are_not_known_either():
    progress = Progress()
    with progress.waiting():
        assert progress.place() == RankPlace("waits", is_first=True)


def test_a_step_is_the_first_until_one_as_large_is_over():
    progress, found = Progress(), []
    for tokens in (100, 80, 120, 100, 120):
        with progress.step():
            progress.begun(tokens)
            found.append(progress.place().is_first)
        progress.ended(tokens)
        assert not progress.place().is_first
    assert found == [True, False, True, False, False]


def test_a_step_that_is_not_over_counts_while_the_next_is_queued():
    progress = Progress()
    progress.begun(100)
    progress.begun(80)
    assert progress.place().is_first
    progress.ended(100)
    assert not progress.place().is_first


def test_after_a_step_that_broke_off_all_sizes_are_new():
    progress = Progress()
    progress.ended(100)
    with pytest.raises(RuntimeError), progress.step():
        raise RuntimeError
    progress.begun(100)
    assert progress.place().is_first


@pytest.mark.parametrize(
    ("place", "doing"),
    [
        (RankPlace("own", "work", 4, 9), "gpu"),  # its host, which is ahead, waits for it
        (RankPlace("waits", "work", 4, 5), "gpu"),
        (RankPlace("elsewhere", "work", 4, 5), "gpu"),
        (RankPlace("own", "sum", 4, 9), "waits"),
        (RankPlace("elsewhere", "exchange", 4, 5), "waits"),
        (RankPlace("own", "exchange", 4, 4), "host"),
        (RankPlace("own", "work", 4, 4), "host"),
        (RankPlace("waits", "sum", 4, 4), "waits"),
        (RankPlace("elsewhere", "sum", 4, 4), "elsewhere"),
        (RankPlace("waits", "rest", 4, 5), "elsewhere"),  # a preview, say
    ],
)
def test_who_is_waited_for(place, doing):
    assert place.doing == doing
    assert RankPlace.read(place.written()) == place


@pytest.mark.parametrize(("are_gathered", "expected"), [(False, ["work"] * 4), (True, ["exchange"] * 12)])
def test_blocks_are_marked_in_the_forward_and_in_the_backward_and_give_the_same(are_gathered, expected):
    class Noted(Progress):
        def mark(self, mark="work"):
            super().mark(mark)
            seen.append(mark)

    seen, progress = [], Noted()
    blocks = [nn.Linear(4, 4) for _ in range(6)]

    def run(run_block):
        x = torch.ones(2, 4, requires_grad=True)
        y = x
        for block in blocks:
            y = run_block(block, y)
        y.square().sum().backward()
        return y.detach(), x.grad

    plain = run(lambda block, x: block(x))
    with progress.step():
        seen.clear()
        marked = run(progress.marking(lambda block, x: block(x), blocks, are_gathered=are_gathered))
        assert seen == expected
        assert marks(progress) == (expected[-1], 1 + len(expected))
    assert all(torch.equal(a, b) for a, b in zip(plain, marked, strict=True))
