"""Two runs on one card: what a switch costs, and whether both have room there."""

from dataclasses import replace

import pytest
from wan_train.core.plan.advice import explain
from wan_train.core.plan.alternating import beside_another, two_bases
from wan_train.core.plan.estimate import estimate, parked_bytes
from wan_train.core.plan.planner import Planner
from wan_train.core.plan.switching import SWITCH, parking_kind, switch_seconds
from wan_train.core.settings.memory import MemoryOptions
from wan_train.tests.core.plan.test_planner import IMAGE, SMALL, planner

GIB = 2**30


def on(gib) -> Planner:
    """Of a small model, on a card with so much free."""
    found = planner(IMAGE, precision="bf16", sizes=SMALL, vram=gib)
    card = replace(found.card, total=found.card.free + GIB, overhead=GIB, free_ram=64 * GIB, pinnable_ram=64 * GIB)
    return replace(found, card=card, steps=1000)


def test_weights_wait_in_the_fastest_memory_that_suffices():
    assert parking_kind(10 * GIB, 64 * GIB, 64 * GIB) == "pinned"
    assert parking_kind(10 * GIB, 64 * GIB, 8 * GIB) == "pageable"
    assert parking_kind(10 * GIB, 11 * GIB, 8 * GIB) == "mapped"


def test_a_switch_takes_what_the_weights_take_to_come_back_and_swapped_blocks_nothing():
    found = on(12)
    plan = replace(found.plan, cuda_graphs="off")
    whole = switch_seconds(found.task, plan, found.card, keeps_weights=False, sizes=1)
    assert whole == SWITCH + parked_bytes(found.task, plan) / found.card.to_device
    swapped = replace(plan, streamed_blocks=found.task.sizes.num_layers)
    assert switch_seconds(found.task, swapped, found.card, keeps_weights=False, sizes=1) < SWITCH + 0.2 * (
        whole - SWITCH
    )
    assert switch_seconds(found.task, plan, found.card, keeps_weights=True, sizes=1) == 0.0


def test_both_stay_where_half_of_the_card_suffices_for_each():
    large = beside_another(on(12), 10, is_there=False)
    assert large.keeps_weights
    assert large.card.free <= 5.5 * GIB, "half of 13, less what each process takes"
    small = beside_another(on(2.6), 10, is_there=False)
    assert not small.keeps_weights
    assert 1.5 * GIB < small.card.free < 1.6 * GIB, "what the other process keeps there is left free"
    assert beside_another(on(2.6), 10, is_there=True).card.free == int(2.6 * GIB)


def test_the_promise_holds_what_switching_takes():
    found = beside_another(on(3), 10, is_there=True)
    choice = replace(found.choose(), seconds=4.0, switch_seconds=2.0, start_seconds=10.0, sizes_seconds=0.0)
    assert choice.run_seconds(1000) == 10 + 4000 + 99 * 2
    assert "switching every 10 steps, 2 s each and 5% of the time, 3 min 18 s" in explain(found, choice, steps=1000)


def test_who_switches_often_rather_swaps_blocks_all_the_time():
    """As they wait in main memory anyway, they need not be brought back."""
    seldom, often = (beside_another(on(1.5), every, is_there=True).choose() for every in (1000, 1))
    assert often.plan.streamed_blocks > seldom.plan.streamed_blocks == 0
    assert often.switch_seconds < seldom.switch_seconds


def test_without_a_plan_that_fits_it_is_said_as_for_a_run_alone():
    none = beside_another(replace(on(0.5), options=MemoryOptions(checkpointing=False)), 10, is_there=False)
    assert none.choose() is None


def test_of_two_experts_with_one_adapter_one_waits_on_the_card_where_there_is_room():
    large = two_bases(on(12), 10)
    assert (large.keeps_weights, large.task.second_base) == (True, "device")
    found = large.choose()
    assert found.switch_seconds == 0.0
    alone = replace(large, task=replace(large.task, second_base="")).describe(found.plan)
    assert found.vram - alone.vram == parked_bytes(large.task, found.plan), "both are on the card"
    small = two_bases(on(1.5), 10)
    assert (small.keeps_weights, small.task.second_base) == (False, "host")
    assert small.choose().vram <= small.limits().vram


def test_the_other_experts_swapped_blocks_take_main_memory_and_no_time():
    found = two_bases(on(1.5), 10)
    (bucket,) = found.buckets
    layers = found.task.sizes.num_layers
    swapped = replace(found.plan, streamed_blocks=layers, cuda_graphs="off")
    one = replace(found.task, second_base="")
    both, alone = (estimate(task, bucket, swapped, found.card, found.correction) for task in (found.task, one))
    assert both.ram - alone.ram == pytest.approx(
        parked_bytes(one, replace(swapped, streamed_blocks=0)) - parked_bytes(one, swapped), rel=0.01
    )
    assert both.vram == alone.vram
    whole = replace(swapped, streamed_blocks=0)
    often = switch_seconds(found.task, whole, found.card, keeps_weights=False, sizes=1)
    assert often == parked_bytes(found.task, whole) / found.card.to_device
    assert switch_seconds(found.task, swapped, found.card, keeps_weights=False, sizes=1) < 0.2 * often
