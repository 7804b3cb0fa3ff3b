"""Two runs on one card: what a switch costs, and whether both have room there."""

from dataclasses import replace

from wan_train.core.plan.advice import explain
from wan_train.core.plan.alternating import beside_another
from wan_train.core.plan.estimate import parked_bytes
from wan_train.core.plan.planner import Planner
from wan_train.core.plan.switching import SWITCH, parking_kind, switch_seconds
from wan_train.core.settings.memory import MemoryOptions
from wan_train.tests.core.plan.test_planner import planner

GIB = 2**30


def on(gib, **changes) -> Planner:
    found = planner(**changes)
    card = replace(found.card, free=int(gib * GIB), total=int((gib + 1) * GIB), overhead=GIB, free_ram=200 * GIB,
                   pinnable_ram=200 * GIB)  # fmt: skip
    return replace(found, card=card, steps=1000)


def test_weights_wait_in_the_fastest_memory_that_suffices():
    assert parking_kind(10 * GIB, 64 * GIB, 64 * GIB) == "pinned"
    assert parking_kind(10 * GIB, 64 * GIB, 8 * GIB) == "pageable"
    assert parking_kind(10 * GIB, 11 * GIB, 8 * GIB) == "mapped"


def test_a_switch_takes_what_the_weights_take_to_come_back_and_swapped_blocks_nothing():
    found = on(80)
    plan = replace(found.plan, cuda_graphs="off")
    whole = switch_seconds(found.task, plan, found.card, keeps_weights=False, sizes=1)
    assert whole == SWITCH + parked_bytes(found.task, plan) / found.card.to_device
    swapped = replace(plan, streamed_blocks=found.task.sizes.num_layers)
    assert switch_seconds(found.task, swapped, found.card, keeps_weights=False, sizes=1) < SWITCH + 0.2 * (
        whole - SWITCH
    )
    assert switch_seconds(found.task, plan, found.card, keeps_weights=True, sizes=1) == 0.0


def test_both_stay_where_half_of_the_card_suffices_for_each():
    large = beside_another(on(300), 1, is_there=False)
    assert large.keeps_weights
    assert large.card.free <= 150 * GIB
    small = beside_another(on(24), 10, is_there=False)
    assert not small.keeps_weights
    assert small.card.free < 23 * GIB, "what the other process keeps there is left free"
    assert beside_another(on(24), 10, is_there=True).card.free == 24 * GIB


def test_the_promise_holds_what_switching_takes():
    found = beside_another(on(24), 10, is_there=False)
    choice = replace(found.choose(), seconds=4.0, switch_seconds=2.0, start_seconds=10.0, sizes_seconds=0.0)
    assert choice.run_seconds(1000) == 10 + 4000 + 99 * 2
    assert "switching every 10 steps, 2 s each and 5% of the time, 3 min 18 s" in explain(found, choice, steps=1000)


def test_who_switches_often_rather_swaps_blocks_all_the_time():
    """As they wait in main memory anyway, they need not be brought back."""
    seldom, often = (beside_another(on(24), every, is_there=True).choose() for every in (1000, 1))
    assert often.plan.streamed_blocks > seldom.plan.streamed_blocks
    assert seldom.seconds <= often.seconds


def test_without_a_plan_that_fits_it_is_said_as_for_a_run_alone():
    none = beside_another(replace(on(1), options=MemoryOptions(checkpointing=False)), 10, is_there=False)
    assert none.choose() is None
