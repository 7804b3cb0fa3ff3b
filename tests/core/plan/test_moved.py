"""Blocks that keep their results in main memory: counted to the byte, chosen where they win, refused where they don't go."""

from dataclasses import replace

import pytest
import torch
from wan_train.core.errors import ConfigError
from wan_train.core.memory.offload_results import LEAST
from wan_train.core.memory.recompute import Kept
from wan_train.core.objective.passes import Passes
from wan_train.core.plan.advice import explain
from wan_train.core.plan.decision import decide
from wan_train.core.plan.estimate import SizeWork, estimate
from wan_train.core.plan.plan import Bucket, Plan, Task, allows_graphs
from wan_train.core.plan.planner import RAM_MARGIN_BYTES, Planner
from wan_train.core.plan.sizes import Trained
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.train.checks import check_holding
from wan_train.core.wan.checkpoint import inspect
from wan_train.core.wan.config import WanConfig
from wan_train.tests.core.plan.test_estimate import CARD

GIB = 2**30
CLIP, IMAGE = (16, 9, 60, 104), (16, 1, 64, 64)
# As measured on an H200 whose memory was capped.
SMALL_CARD = replace(
    CARD, free=int(11.5 * GIB), matmul=805e12, matmul_fp32=50e12, attention=603e12, bandwidth=4180e9, to_device=50e9,
    staged=8e9, matmul_fp8=1545e12, launch_s=6e-6,
)  # fmt: skip
RTX_4090 = replace(SMALL_CARD, free=int(23 * GIB), matmul=160e12, attention=150e12, bandwidth=950e9, to_device=25e9)


def planner(ram, *shapes, card=SMALL_CARD, task=None, compiles=("kernels", "off"), **options):
    card = replace(card, free_ram=ram * GIB, pinnable_ram=ram * GIB)
    plan = Plan(precision="fp8", compile="kernels")
    task = task or Task(sizes=WanConfig())
    buckets = [Bucket(shape) for shape in shapes or (CLIP,)]
    memory = MemoryOptions(**options)
    return Planner(task=task, buckets=buckets, card=card, plan=plan, options=memory, compiles=compiles, steps=1000)


def test_a_small_card_in_a_machine_with_much_memory_computes_little_again():
    these = planner(64)
    choice, without = these.choose(), planner(64, offload_linears=0).choose()
    assert choice.plan.offload_linears >= 10
    assert choice.vram <= these.limits().vram
    assert choice.ram <= 0.75 * (64 * GIB - RAM_MARGIN_BYTES)
    assert choice.seconds < 0.95 * without.seconds
    line = explain(these, choice, steps=1000)
    assert f"linear layers of {choice.plan.offload_linears} of 40 blocks kept in main memory" in line


def test_with_little_main_memory_none_is():
    assert planner(16).choose().plan.offload_linears == 0


def test_a_slow_link_moves_none():
    assert planner(64, card=replace(SMALL_CARD, to_device=12e9)).choose().plan.offload_linears == 0


def test_a_slower_card_loses_hardly_any_time_to_its_memory():
    small = planner(96, card=RTX_4090).choose()
    large = planner(96, card=replace(RTX_4090, free=200 * GIB)).choose()
    assert large.plan.offload_linears == 0  # nothing is moved where everything fits
    assert small.seconds < 1.03 * large.seconds


def test_what_the_driver_may_pin_is_a_limit():
    """As under Windows, where it is half of the memory."""
    whole = planner(64)
    half = replace(whole, card=replace(whole.card, pinnable_ram=32 * GIB))
    choice = half.choose()
    held = choice.estimates[half.buckets[0]].exact_ram
    moved = SizeWork(half.task, half.buckets[0], choice.plan, half.card, half.correction_of(choice.plan))
    taken = moved.peaks(choice.kept[14040]).moved
    assert 0 < choice.plan.offload_linears < whole.choose().plan.offload_linears
    assert held + taken <= half.limits().pinned


def test_a_run_that_takes_turns_with_another_moves_none():
    """With each turn the buffers would be pinned anew."""
    alone = planner(64)
    assert alone.choose().plan.offload_linears > 0
    assert replace(alone, alternate_every=10).choose().plan.offload_linears == 0


@pytest.mark.parametrize("shortage", ["ram", "vram"])
def test_a_step_down_takes_less(shortage):
    these = planner(64)
    failed = these.choose()
    lower = these.step_down(failed, shortage)
    assert getattr(lower, shortage) < getattr(failed, shortage)
    if shortage == "ram":
        assert lower.plan.offload_linears < failed.plan.offload_linears


def test_each_size_of_clips_has_its_own_number():
    choice = planner(64, CLIP, IMAGE).choose()
    assert choice.plan.offload_linears == choice.offload_linears[14040] > 0
    assert choice.offload_linears.keys() == {14040, 1024}


@pytest.mark.parametrize("free", [11.5, 16, 23])
def test_a_smaller_size_moves_no_more_blocks_than_a_larger_one(free):
    """Whose buffers it takes: main memory holds what the larger one needs, and no more."""
    card = replace(SMALL_CARD, free=int(free * GIB))
    moved = planner(64, (16, 9, 60, 104), (16, 5, 60, 104), IMAGE, card=card).choose().offload_linears
    assert moved[1024] <= moved[7800] <= moved[14040]


def test_what_is_chosen_holds_and_blocks_then_run_by_kernels():
    choice = planner(64, offload_linears=7).choose()
    assert (choice.plan.offload_linears, choice.plan.compile) == (7, "kernels")
    assert not choice.plan.split_blocks
    assert planner(64, offload_linears=7, compiles=("off",)).choose() is None
    assert planner(64, card=replace(SMALL_CARD, free=200 * GIB), offload_linears=40).choose().plan.offload_linears == 40


def test_plans_of_other_ways_have_none():
    for options in ({"split_blocks": True}, {"compile": "off"}, {"stream_from": "pageable"}, {"checkpointing": False}):
        modes = ("off",) if "compile" in options else ("kernels",)
        choice = planner(64, card=replace(SMALL_CARD, free=100 * GIB), compiles=modes, **options).choose()
        assert choice.plan.offload_linears == 0, options


def test_main_memory_is_that_of_all_that_a_block_keeps():
    task, bucket = Task(sizes=WanConfig(), trained=Trained(rank=16)), Bucket(CLIP)
    plan = Plan(precision="fp8", compile="kernels", streamed_blocks=40, offload_inputs=True, keep_attention=40)
    none = estimate(task, bucket, plan, CARD)
    some = estimate(task, bucket, replace(plan, offload_linears=10), CARD)
    unit = 14040 * 5120 * 2
    assert some.ram - none.ram == pytest.approx(10 * 10.75 * unit, rel=0.02)
    # Of ten blocks the attention goes, and one block's results are on their way.
    assert some.vram - none.vram == pytest.approx((10.75 - 10) * unit, abs=unit / 4 + 10 * 4 * LEAST)
    twice = replace(task, passes=Passes(("forward", "forward", "backward")))
    assert estimate(twice, bucket, replace(plan, offload_linears=10), CARD).ram - estimate(
        twice, bucket, plan, CARD
    ).ram == 2 * (some.ram - none.ram)


def test_the_copies_are_as_long_as_the_link_makes_them():
    task, bucket = Task(sizes=WanConfig()), Bucket(CLIP)
    plan = Plan(precision="fp8", compile="kernels", keep_attention=40)
    times = [estimate(task, bucket, replace(plan, offload_linears=n), SMALL_CARD).seconds for n in (0, 10, 20, 40)]
    assert times[0] > times[1] > times[2] < times[3]
    slow = replace(SMALL_CARD, to_device=5e9)
    assert estimate(task, bucket, replace(plan, offload_linears=40), slow).seconds > 2 * 40 * 1.5e9 / 5e9


def test_no_graph_records_what_moves():
    assert allows_graphs(Plan())
    assert not allows_graphs(Plan(offload_linears=1))


@pytest.mark.parametrize("mode", ["off", "static", "dynamic"])
def test_other_ways_to_run_blocks_are_refused(mode):
    with pytest.raises(ConfigError, match=f"offload_linears works with compile kernels only, not with {mode}"):
        MemoryOptions(offload_linears=3, compile=mode)


def test_it_is_refused_where_it_does_not_go(job):
    with pytest.raises(ConfigError, match="offload_linears needs checkpointing"):
        MemoryOptions(offload_linears=3, checkpointing=False)
    with pytest.raises(ConfigError, match="split_blocks saves what offload_linears would keep"):
        MemoryOptions(offload_linears=3, split_blocks=True)
    info = inspect(job.model.path)
    with pytest.raises(ConfigError, match="offload_linears is 41, but"):
        check_holding(info, "bf16", MemoryOptions(offload_linears=41), has_adapter=False)
    asked = replace(job, memory=MemoryOptions(offload_linears=1))
    with pytest.raises(ConfigError, match="offload_linears is 1, which works with blocks by kernels only"):
        decide(asked, info, torch.device("cpu"))
    with pytest.raises(ConfigError, match="each keeps its results in one place"):
        planner(64, keep_linears=30, offload_linears=20).choose()


def test_kept_numbers_without_it_are_read():
    assert Kept(*(3, 2)) == Kept(3, 2, 0)
