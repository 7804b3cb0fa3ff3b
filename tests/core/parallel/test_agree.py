"""Where ranks must take the same way: shortages of memory, requests of a person, and who comes first."""

from pathlib import Path

from wan_train.core.parallel.agree import Agreement, Verdict, Votes, in_turn
from wan_train.core.parallel.world import ALONE


def votes_of(world, shortages, changed):
    votes = Votes(world)
    mine = shortages[world.rank]
    return votes.settle(mine, f"of {world.rank}", is_changed=lambda: changed[world.rank]), votes.any(world.rank == 1)


def answers_of(world, asked, flags):
    agreement = Agreement(world, {name: (lambda who=who: world.rank == who) for name, who in asked.items()})
    before = {name: agreement.answer(name) for name in asked}
    go = agreement.look(flags[world.rank])
    return before, go, {name: agreement.answer(name) for name in asked}


def turns(world, path):
    def act():
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(f"{world.rank}\n")
        return world.rank

    found = in_turn(world, act)
    world.wait_for_all()
    return found, Path(path).read_text(encoding="utf-8").split()[0]


def test_nobody_short(ranks):
    assert ranks(2)(votes_of, (None, None), (True, True)) == [(None, True)] * 2


def test_one_that_is_short_is_heard_by_all(ranks):
    verdict = Verdict("vram", "of 1", False)
    assert ranks(2)(votes_of, (None, "vram"), (False, False)) == [(verdict, True)] * 2
    verdict = Verdict("ram", "of 0", True)
    assert ranks(2)(votes_of, ("ram", None), (False, True)) == [(verdict, True)] * 2


def test_the_gpus_memory_comes_before_the_machines(ranks):
    verdict = Verdict("vram", "of 1", False)
    assert ranks(2)(votes_of, ("ram", "vram"), (False, False)) == [(verdict, True)] * 2


def test_alone_a_vote_is_ones_own():
    votes = Votes(ALONE)
    assert votes.settle(None) is None
    assert votes.settle("ram", "why", is_changed=lambda: True) == Verdict("ram", "why", True)
    assert votes.any(True)
    assert not votes.any(False)


def test_what_one_rank_is_asked_all_do(ranks):
    asked = {"stop": 1, "save": 0, "preview": 7}
    nothing, found = dict.fromkeys(asked, False), {"stop": True, "save": True, "preview": False}
    assert ranks(2)(answers_of, asked, (False, False)) == [(nothing, True, found)] * 2
    asked = {"stop": 7}
    assert ranks(2)(answers_of, asked, (False, False)) == [({"stop": False}, False, {"stop": False})] * 2
    assert ranks(2)(answers_of, asked, (False, True)) == [({"stop": False}, True, {"stop": False})] * 2


def test_alone_an_answer_is_that_of_now():
    found = []
    agreement = Agreement(ALONE, {"stop": lambda: bool(found)})
    assert not agreement.answer("stop")
    found.append(1)
    assert agreement.asker("stop")()
    assert agreement.look(True)
    assert not agreement.look(False)


def test_the_first_goes_first(ranks, tmp_path):
    assert ranks(2)(turns, str(tmp_path / "order")) == [(0, "0"), (1, "0")]
