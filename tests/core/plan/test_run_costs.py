"""What is beside the steps of a run: assumed, corrected, and part of what is chosen and promised."""

from dataclasses import replace

import pytest
from wan_train.core.objective.passes import Passes
from wan_train.core.plan.advice import explain
from wan_train.core.plan.plan import Bucket, Plan, Task
from wan_train.core.plan.planner import Planner
from wan_train.core.plan.run_costs import (
    END,
    KIND,
    KIND_AGAIN,
    ONCE,
    PIN_RATE,
    RunCosts,
    assumed_start,
    key,
    kinds_of_block,
    learnt,
    learnt_end,
    read_costs,
    write_costs,
)
from wan_train.core.wan.config import WanConfig
from wan_train.tests.core.plan.test_estimate import CARD

PICTURES = [Bucket((16, 1, 120, 120), share=4), Bucket((16, 1, 94, 152), share=8), Bucket((16, 1, 104, 138), share=8)]
GIB = 2**30


def planner(steps, compiles=("static", "off"), **options):
    return Planner(
        task=Task(sizes=WanConfig()),
        buckets=PICTURES,
        card=replace(CARD, free=75 * GIB),
        plan=Plan(precision="bf16", compile="static"),
        steps=steps,
        compiles=compiles,
        costs=RunCosts(file_bytes=14 * 10**9),
        **options,
    )


def test_a_short_run_is_not_compiled_and_a_long_one_is():
    short, long = planner(20).choose(), planner(5000).choose()
    assert (short.plan.compile, long.plan.compile) == ("off", "static")
    assert long.seconds < short.seconds
    for steps, choice in ((20, short), (5000, long)):
        for way in ("static", "off"):
            other = planner(steps, (way,)).choose()
            assert choice.run_seconds(steps) <= 1.02 * other.run_seconds(steps)  # features have a premium


def test_what_was_compiled_before_is_cheap_enough_for_a_shorter_run():
    cold = planner(60).choose()
    assert cold.plan.compile == "off"
    static = planner(60, ("static",)).choose()
    kinds = kinds_of_block(static.plan, 40)
    keys = [key(static.plan, tokens, kind) for tokens in static.sizes for kind in kinds]
    costs = RunCosts(file_bytes=14 * 10**9, compiled=keys, kinds={"static": 0.2})
    warm = replace(planner(60), costs=costs).choose()
    assert warm.sizes_seconds < static.sizes_seconds
    assert warm.plan.compile == "static"


def test_all_sizes_count_each_as_likely_as_it_comes():
    choice = planner(1000, ("static",)).choose()
    assert sorted(choice.sizes) == [3572, 3588, 3600]
    assert sum(size.share for size in choice.sizes.values()) == pytest.approx(1.0)
    kinds = len(kinds_of_block(choice.plan, 40))
    assert choice.sizes_seconds == pytest.approx(ONCE["static"] + 3 * kinds * KIND["static"], rel=1e-6)
    one = planner(1, ("static",)).choose()
    assert one.sizes_seconds == pytest.approx(ONCE["static"] + kinds * KIND["static"], rel=1e-6)


def test_sizes_are_told_by_the_tokens_of_a_whole_step():
    """As steps tell theirs: with all their batches, and each batch once in however many copies it goes through the model."""
    these = planner(1000, ("static",))
    alone = these.choose()
    four = replace(these, task=replace(these.task, accumulation=4)).choose()
    assert sorted(four.sizes) == [4 * 3572, 4 * 3588, 4 * 3600]
    assert [size.tokens for _, size in sorted(four.sizes.items())] == [3572, 3588, 3600]
    assert four.sizes[4 * 3600].seconds > 3.9 * alone.sizes[3600].seconds
    passes = Passes(("forward without gradient", "forward", "backward"), copies=2)
    buckets = [
        *(replace(bucket, batch=2) for bucket in PICTURES[:2]),
        replace(PICTURES[0], batch=1, share=4.0, passes=Passes()),
    ]
    both = replace(these, task=replace(these.task, passes=passes), buckets=buckets)
    choice = both.choose()
    assert sorted(choice.sizes) == [3572, 3600]
    assert choice.sizes[3600].tokens == 2 * 3600
    assert choice.sizes[3600].share == pytest.approx(0.5)
    together, alone = (choice.estimates[bucket].seconds for bucket in (buckets[0], buckets[2]))
    assert choice.sizes[3600].seconds == pytest.approx((together + alone) / 2)
    kinds = len(kinds_of_block(choice.plan, 40))
    assert choice.sizes_seconds == pytest.approx(ONCE["static"] + 3 * kinds * KIND["static"], rel=1e-6)


def test_the_message_says_the_whole_time_and_its_parts():
    these = planner(100, ("static",))
    choice = replace(these.choose(), seconds=0.43, start_seconds=12.4, sizes_seconds=17.3)
    assert explain(these, choice, steps=100).endswith(
        "about 1 min 13 s in all for 100 steps: start 12 s, first step of 3 sizes 17 s, steps 43 s"
    )


def test_a_plan_has_as_many_kinds_of_block_as_keep_different_things():
    plan = Plan()
    assert len(kinds_of_block(replace(plan, checkpointing=False), 40)) == 1
    assert len(kinds_of_block(plan, 40)) == 1
    assert len(kinds_of_block(replace(plan, keep_attention=40), 40)) == 1
    assert len(kinds_of_block(replace(plan, keep_attention=20), 40)) == 2
    assert len(kinds_of_block(replace(plan, keep_attention=40, keep_linears=12), 40)) == 2
    assert len(kinds_of_block(replace(plan, keep_attention=20, keep_linears=12), 40)) == 3
    assert len(kinds_of_block(replace(plan, split_blocks=True), 40)) == 3
    assert len(kinds_of_block(replace(plan, split_blocks=True, keep_attention=7), 40)) == 4


def test_what_a_machine_has_shown_takes_the_place_of_what_is_assumed(tmp_path):
    costs = RunCosts(file_bytes=28 * 10**9, is_probed=False)
    assert costs.start_seconds() == assumed_start(28 * 10**9, is_probed=False) + END
    assert costs.size_seconds("static", ["a", "b"]) == 2 * KIND["static"]
    found = learnt(costs, start=30.0, compile="static", extras=[(18.0, 12.0), (6.0, 12.0)], keys=["a"])
    assert found.start_seconds() == pytest.approx(30.0 + END)
    assert found.size_seconds("static", ["b"]) == pytest.approx(KIND["static"])
    found = learnt(found, start=None, compile="static", extras=[(6.0, 12.0)], keys=["b"])
    assert found.size_seconds("static", ["a"]) == pytest.approx(KIND_AGAIN["static"] / 2)
    assert found.size_seconds("off", []) == 0.0
    write_costs(tmp_path / "costs.json", "1", found)
    kept = read_costs(tmp_path / "costs.json", "1")
    assert replace(kept, file_bytes=found.file_bytes, is_probed=False) == found
    assert read_costs(tmp_path / "costs.json", "2") == RunCosts()


def test_blocks_that_are_swapped_from_pinned_memory_take_a_while_to_get_there():
    """On an H200 the 14B model's fp8 file, 14 GB, took 4.8 s to read onto the GPU, and 10.7 s with all blocks swapped."""
    swapped = 14 * 10**9
    more = RunCosts(file_bytes=swapped).start_seconds(swapped) - RunCosts(file_bytes=swapped).start_seconds()
    assert more == pytest.approx(10.7 - 4.8, rel=0.05)
    plans = [Plan(precision="bf16", streamed_blocks=40, stream_from=kind) for kind in ("pinned", "pageable")]
    slow, plain = (planner(100).describe(plan) for plan in plans)
    assert slow.start_seconds - plain.start_seconds == pytest.approx(slow.held_ram / PIN_RATE)
    found = learnt(RunCosts(), start=30.0, compile="off", extras=[], keys=[], pinned=swapped)
    assert found.start_seconds(swapped) == pytest.approx(30.0 + END)


@pytest.mark.parametrize(
    ("is_probed", "pinned", "measured"),
    [(True, 0, (12.0, 15.0, 17.9)), (False, 0, (19.0, 21.0)), (False, 14 * 10**9, (22.2, 27.8))],
)
def test_a_start_takes_what_was_measured(is_probed, pinned, measured):
    """Of the 14B model's fp8 file on an H200: within 4 s of each."""
    found = assumed_start(14_300_000_000, is_probed=is_probed, pinned=pinned)
    assert all(abs(found - seconds) < 4 for seconds in measured)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"version": "1", "start": "fast", "end": 1, "kinds": {}, "compiled": []}',
        '{"version": "1", "start": 1}',
        '{"start": 2, "end": 1, "kinds": {}, "compiled": []}',  # of before files had a version
    ],
)
def test_a_damaged_file_says_nothing(tmp_path, content):
    (tmp_path / "costs.json").write_text(content)
    assert read_costs(tmp_path / "costs.json", "1") == RunCosts()


def test_wild_measurements_are_limited():
    found = learnt(RunCosts(), start=10_000.0, compile="off", extras=[(-5.0, 0.1)], keys=[])
    assert found.start == 10.0
    assert found.kinds == {"off": 0.1}


def test_the_end_of_a_run_is_learnt_and_counted(tmp_path):
    path = tmp_path / "costs.json"
    before = RunCosts()
    write_costs(path, "1", learnt_end(before, 3.5))
    after = read_costs(path, "1")
    assert after.start_seconds() - before.start_seconds() == pytest.approx(3.5 - END)
