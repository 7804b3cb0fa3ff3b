"""The planner: what it chooses fits and is the fastest that does, what is chosen holds, and every step down takes less."""

import re
from dataclasses import replace
from itertools import pairwise

import pytest
from wan_train.core.objective.passes import Passes
from wan_train.core.plan.advice import clip_name, explain, what_would_fit
from wan_train.core.plan.estimate import estimate
from wan_train.core.plan.plan import Bucket, Gpus, Plan, Task, block_weights
from wan_train.core.plan.planner import RAM_MARGIN_BYTES, Planner
from wan_train.core.plan.sizes import Trained
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.wan.config import WanConfig
from wan_train.tests.core.plan.test_estimate import CARD

GIB = 2**30
IMAGE, SHORT, LONG = (16, 1, 64, 64), (16, 9, 60, 104), (16, 21, 60, 104)
SMALL = WanConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=6)


def planner(*shapes, precision="fp8", vram=24, ram=64, sizes=None, task=None, **options):
    card = replace(CARD, free=int(vram * GIB), free_ram=ram * GIB, pinnable_ram=ram * GIB // 2)
    buckets = [Bucket(shape) for shape in shapes or (SHORT,)]
    plan = Plan(precision=precision, compile="static")
    task = task or Task(sizes=sizes or WanConfig())
    return Planner(task=task, buckets=buckets, card=card, plan=plan, **options)


@pytest.mark.parametrize("vram", [2, 2.5, 3, 4, 8, 16])
def test_the_fastest_that_fits(vram):
    """Against every combination there is, of a small model."""
    these = planner(SHORT, precision="bf16", vram=vram, sizes=SMALL)
    limits, task, card = these.limits(), these.task, these.card
    kept = [*((number, 0) for number in range(7)), *((6, number) for number in range(1, 7))]
    every = [
        replace(plan, keep_attention=attention, keep_linears=linears)
        for plan in these.plans()
        for attention, linears in (kept if plan.checkpointing else kept[:1])
    ]
    found = [estimate(task, Bucket(SHORT), plan, card) for plan in every]
    fitting = [one.seconds for one in found if one.vram <= limits.vram and one.ram <= limits.ram]
    choice = these.choose()
    assert (choice is None) == (not fitting)
    if choice is not None:
        assert choice.vram <= limits.vram
        assert choice.ram <= limits.ram
        assert choice.seconds == pytest.approx(min(fitting), rel=0.03)  # features have a premium


def test_more_memory_is_never_slower():
    choices = [planner(SHORT, vram=vram).choose() for vram in (10, 14, 20, 30, 60)]
    seconds = [choice.seconds for choice in choices if choice is not None]
    assert len(seconds) == 5
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[-1] < 0.95 * seconds[0]


def test_nothing_is_streamed_without_need():
    choice = planner(IMAGE, vram=80).choose()
    assert choice is not None
    assert choice.plan.streamed_blocks == 0
    assert not choice.plan.offload_inputs


def test_a_large_clip_does_not_take_attention_from_small_ones():
    choice = planner(IMAGE, LONG, vram=30, options=MemoryOptions(streamed_blocks=0, offload_inputs=True)).choose()
    assert choice is not None
    assert choice.keep_attention[1024] == 40
    assert choice.keep_attention[32760] < 40
    assert choice.plan.keep_attention == choice.keep_attention[32760]


def test_the_share_of_sizes_weighs_their_time():
    mostly_small = replace(planner(), buckets=[Bucket(IMAGE, share=0.9), Bucket(LONG, share=0.1)]).choose()
    mostly_large = replace(planner(), buckets=[Bucket(IMAGE, share=0.1), Bucket(LONG, share=0.9)]).choose()
    assert mostly_small is not None
    assert mostly_large is not None
    assert mostly_small.seconds < mostly_large.seconds / 3


@pytest.mark.parametrize(
    "chosen",
    [
        {"checkpointing": True, "streamed_blocks": 7},
        {"keep_attention": 3},
        {"keep_linears": 3},
        {"keep_attention": 7, "keep_linears": 5},
        {"offload_inputs": True},
        {"offload_optimizer": True},
        {"offload_optimizer": True, "checkpointing": False},
        {"streamed_blocks": 20, "stream_from": "mapped"},
        {"streamed_blocks": 20, "mapped_blocks": 4},
        {"streamed_blocks": 20, "mapped_blocks": 20, "stream_from": "pageable"},
        {"checkpointing": False},
        {"ffn_pieces": 2},
        {"ffn_pieces": 1, "split_blocks": False},
    ],
    ids=str,
)
def test_what_is_chosen_holds(chosen):
    choice = planner(SHORT, vram=200, ram=256, options=MemoryOptions(**chosen)).choose()
    assert choice is not None
    assert {name: getattr(choice.plan, name) for name in chosen} == chosen


def test_a_pin_that_cannot_fit_is_not_passed_over():
    assert planner(SHORT, vram=24, options=MemoryOptions(checkpointing=False)).choose() is None


def test_as_few_blocks_come_from_disk_as_main_memory_is_short_of():
    """Of a 14B model in bf16, all of whose blocks are streamed."""
    options = MemoryOptions(streamed_blocks=40, offload_inputs=True, offload_optimizer=False)
    roomy = planner(SHORT, precision="bf16", vram=10, ram=128, options=options)
    enough = roomy.choose()
    assert enough is not None
    assert (enough.plan.stream_from, enough.plan.mapped_blocks) == ("pinned", 0)
    block = block_weights(roomy.task, enough.plan)
    for short in (1, block, 6 * block + 1):
        ram = enough.ram - short + RAM_MARGIN_BYTES
        these = replace(roomy, card=replace(roomy.card, free_ram=ram, pinnable_ram=ram))
        choice = these.choose()
        assert choice is not None
        assert choice.plan == replace(enough.plan, mapped_blocks=-(-short // block) + 2)  # two blocks are for staging
        assert choice.ram <= these.limits().ram
        fewer = these.describe(replace(choice.plan, mapped_blocks=choice.plan.mapped_blocks - 1))
        assert fewer.ram > these.limits().ram
        assert these.fits()
        assert f"block swap of 40 of 40 blocks, {choice.plan.mapped_blocks} of 40 blocks memory-mapped, " in explain(
            these, choice, steps=10
        )


def test_blocks_come_from_disk_among_pageable_ones_where_little_can_be_pinned():
    these = planner(SHORT, precision="bf16", vram=10, ram=32)  # of which half can be pinned
    choice = these.choose()
    assert choice is not None
    assert choice.plan.stream_from == "pageable"
    assert 0 < choice.plan.mapped_blocks < 10
    line = explain(these, choice, steps=10)
    assert f"swapped blocks from pageable memory, {choice.plan.mapped_blocks} of 40 blocks memory-mapped, " in line
    alone = replace(these, options=MemoryOptions(mapped_blocks=0)).choose()
    all_mapped = replace(these, options=MemoryOptions(stream_from="mapped")).choose()
    assert alone is not None
    assert all_mapped is not None
    assert choice.seconds < 0.9 * min(alone.seconds, all_mapped.seconds)


def test_where_main_memory_is_short_a_step_down_has_more_from_disk():
    these = planner(SHORT, precision="bf16", vram=10, ram=40, options=MemoryOptions(streamed_blocks=40))
    these = replace(these, card=replace(these.card, pinnable_ram=these.card.free_ram))
    choice = these.choose()
    assert choice is not None
    lower = these.step_down(choice, "ram")
    assert lower is not None
    assert (choice.plan.mapped_blocks, lower.plan.stream_from) == (0, "pinned")
    assert lower.plan.mapped_blocks > 0
    assert lower.ram <= 0.92 * choice.ram


def test_pinned_memory_is_limited_apart():
    tight = planner(SHORT, precision="bf16", vram=16, ram=40)
    choice = replace(tight, card=replace(tight.card, pinnable_ram=12 * GIB)).choose()
    assert choice is not None
    assert choice.plan.stream_from != "pinned"


@pytest.mark.parametrize("shortage", ["vram", "ram"])
def test_every_step_down_takes_less_and_there_is_a_last_one(shortage):
    these = planner(SHORT, LONG, vram=40)
    choice = these.choose()
    if shortage == "ram":
        choice = replace(these, options=MemoryOptions(streamed_blocks=38)).choose()
    taken = []
    while choice is not None:
        taken.append(getattr(choice, shortage))
        assert len(taken) < 100
        choice = these.step_down(choice, shortage)
    assert len(taken) > 3
    assert all(b < a for a, b in pairwise(taken))
    if shortage == "vram":
        assert taken[-1] == these.leanest().vram


def test_in_one_line():
    these = planner(SHORT, vram=13)
    choice = these.choose()
    assert choice is not None
    line = explain(these, choice, steps=2000)
    assert re.fullmatch(
        r"14\.3B fp8, 832x480x33: \d+\.\d of 13\.0 GB, about \d+ s a step, block swap of \d+ of 40 blocks.*, \d+ GB of main "
        r"memory, \d+\.?\d? h for 2,000 steps",
        line,
    )
    assert clip_name((48, 31, 44, 80)) == "1280x704x121"


def fits(these, shape=None, precision=None):
    shape = shape or these.buckets[0].shape
    precision = precision or these.plan.precision
    changed = replace(these, buckets=[Bucket(shape)], plan=replace(these.plan, precision=precision))
    return changed.choose() is not None


def test_what_would_fit_does_and_a_little_more_does_not():
    these = planner(LONG, precision="bf16", vram=9.5, ram=256)
    assert these.choose() is None
    advice = what_would_fit(these)
    frames = re.search(r"at most (\d+) frames instead of 81", advice)
    assert frames is not None
    latent_frames = (int(frames[1]) - 1) // 4 + 1
    assert fits(these, (16, latent_frames, 60, 104))
    assert not fits(these, (16, latent_frames + 1, 60, 104))
    size = re.search(r"a size of (\d+)x(\d+)x81", advice)
    assert size is not None
    width, height = int(size[1]) // 8, int(size[2]) // 8
    assert fits(these, (16, 21, height, width))
    assert not fits(these, (16, 21, height + 2, width + 4))
    assert "832x480x81 does not fit" in advice


def test_a_lower_precision_is_named_where_it_helps():
    these = planner(SHORT, precision="bf16", vram=16, ram=256, options=MemoryOptions(streamed_blocks=20))
    assert these.choose() is None
    assert fits(these, precision="fp8")
    assert re.search(r"the precision fp8, which takes \d+\.\d GB less", what_would_fit(these))


def test_the_users_own_options_are_named_where_they_stand_in_the_way():
    these = planner(SHORT, vram=16, options=MemoryOptions(streamed_blocks=2, stream_from="pageable"))
    assert not these.fits()
    assert fits(replace(these, options=MemoryOptions()))
    assert "It would with streamed_blocks and stream_from left at auto; or with" in what_would_fit(these)
    alone = what_would_fit(replace(these, options=MemoryOptions(checkpointing=False)))
    assert "It would with checkpointing left at auto" in alone
    assert "left at" not in what_would_fit(planner(LONG, precision="bf16", vram=4))


def test_a_smaller_batch_is_one_of_samples_and_not_of_their_copies():
    passes = Passes(("forward without gradient", "forward", "backward"), copies=2)
    task = Task(sizes=WanConfig(), passes=passes)
    pair = planner(LONG, ram=256, task=task)
    advice = {
        rows: what_would_fit(replace(pair, buckets=[Bucket(LONG, rows)], card=replace(pair.card, free=vram)))
        for rows, vram in ((2, GIB * 11), (4, GIB * 20))
    }
    assert "batch_size 1" in advice[4]
    assert "batch_size" not in advice[2]


def test_it_fits_where_something_is_chosen():
    for vram in range(4, 40, 4):
        these = planner(SHORT, vram=vram)
        assert these.fits() == (these.choose() is not None)


def test_a_step_down_goes_at_once_below_what_is_free_now():
    these = planner(SHORT, vram=40)
    choice = these.choose()
    assert choice is not None
    crowded = replace(these, card=replace(these.card, free=12 * GIB))
    lower = crowded.step_down(choice, "vram")
    assert lower is not None
    assert lower.vram <= crowded.limits().vram < 0.5 * choice.vram


def test_sizes_with_as_many_tokens_keep_what_both_may():
    """Two of half the tokens take a little more than one, for their text."""
    wide, two = Bucket((16, 10, 60, 104)), Bucket((16, 5, 60, 104), batch=2)
    options = MemoryOptions(streamed_blocks=0, offload_inputs=True, offload_optimizer=False, ffn_pieces=1)
    found = [
        replace(planner(vram=26), buckets=buckets, options=options).choose()
        for buckets in ([wide], [two], [two, wide], [wide, two])
    ]
    counts = [choice.keep_attention[15600] for choice in found if choice is not None]
    assert len(counts) == 4
    assert counts[2:] == [min(counts)] * 2


def test_blocks_go_in_parts_where_whole_ones_do_not_fit():
    small = planner(SHORT, vram=7)
    choice = small.choose()
    assert choice is not None
    assert choice.plan.split_blocks
    assert choice.plan.offload_inputs
    assert "gradient checkpointing of each third of a block, activation offload" in explain(small, choice, steps=10)
    assert replace(small, options=MemoryOptions(split_blocks=False)).choose() is None
    large = planner(SHORT, vram=80).choose()
    assert large is not None
    assert not large.plan.split_blocks


@pytest.mark.parametrize("ram", [30, 36, 44])
def test_parts_that_keep_their_attention_have_room_in_main_memory_for_their_second_input(ram):
    one = planner(
        LONG, vram=12, ram=ram, options=MemoryOptions(split_blocks=True, offload_inputs=True, streamed_blocks=40)
    )
    one = replace(one, card=replace(one.card, pinnable_ram=ram * GIB))
    choice = one.choose()
    assert choice is not None
    assert choice.ram <= one.limits().ram
    most = replace(one, card=replace(one.card, free_ram=200 * GIB)).choose()
    assert most is not None
    assert 0 < choice.plan.keep_attention <= most.plan.keep_attention
    assert (ram < 36) == (choice.plan.keep_attention < most.plan.keep_attention)


@pytest.mark.parametrize("rank", [16, 128])
def test_the_optimizers_state_waits_in_main_memory_where_that_is_needed(rank):
    these = planner(IMAGE, vram=11, task=Task(sizes=WanConfig(), trained=Trained(rank=rank)))
    choice = these.choose()
    without = replace(these, options=MemoryOptions(offload_optimizer=False)).choose()
    assert choice is not None
    assert choice.plan.offload_optimizer == (rank == 128)
    assert (without is None) == (rank == 128)  # of which LoRA and state would take 7 GB
    if rank == 128:
        assert "optimizer state in main memory" in explain(these, choice, steps=1)
        assert "GB of main memory" in explain(these, choice, steps=1)


def test_a_state_of_8_bits_stays_on_the_gpu():
    task = Task(sizes=WanConfig(), trained=Trained(rank=128, optimizer="adamw8bit"))
    these = planner(SHORT, vram=12, task=task)
    assert not any(plan.offload_optimizer for plan in these.plans())
    pinned = replace(these, options=MemoryOptions(offload_optimizer=True))
    assert pinned.leanest().vram == these.leanest().vram
    assert pinned.leanest().ram == these.leanest().ram


def test_the_feed_forward_goes_in_pieces_before_blocks_go_in_parts():
    small = planner(SHORT, vram=8)
    choice = small.choose()
    assert choice is not None
    assert (choice.plan.ffn_pieces, choice.plan.split_blocks) == (4, False)
    assert "block swap of 40 of 40 blocks, feed-forward chunked into 4, activation offload" in explain(
        small, choice, steps=1
    )
    parts = replace(small, options=MemoryOptions(ffn_pieces=1)).choose()
    assert parts is not None
    assert parts.plan.split_blocks
    assert choice.seconds < parts.seconds
    large = planner(SHORT, vram=80).choose()
    assert large is not None
    assert large.plan.ffn_pieces == 1


def test_pieces_are_for_long_clips_and_for_whole_blocks():
    def tried(*shapes, **chosen):
        return {
            (plan.ffn_pieces, plan.split_blocks) for plan in planner(*shapes, options=MemoryOptions(**chosen)).plans()
        }

    assert tried(IMAGE) == {(1, False), (1, True)}
    assert tried(IMAGE, SHORT) == tried(SHORT) == {(1, False), (4, False), (1, True)}
    assert tried(IMAGE, ffn_pieces=2) == {(2, False)}
    assert tried(SHORT, split_blocks=True) == {(1, True)}
    assert tried(SHORT, keep_linears=2) == {(1, False), (4, False)}


def test_blocks_in_parts_keep_no_linear_layers():
    assert not any(plan.split_blocks for plan in planner(options=MemoryOptions(keep_linears=2)).plans())
    choice = planner(SHORT, vram=80, options=MemoryOptions(split_blocks=True)).choose()
    assert choice is not None
    assert choice.plan.split_blocks
    assert choice.plan.keep_attention == 40
    assert choice.plan.keep_linears == 0


def test_models_of_all_sizes_in_one_line():
    small = planner(IMAGE, sizes=WanConfig(dim=128, ffn_dim=512, num_heads=2, num_layers=4, text_dim=64))
    choice = small.choose()
    assert choice is not None
    assert re.match(r"\d\.\dM fp8, 512x512x1: 0\.\d of 24\.0 GB", explain(small, choice, steps=10))


def test_the_margin_covers_unused_pieces_and_a_percent():
    """Under a cap of 10 GiB, 0.65 GiB were unused when memory ran out."""
    limit = planner(vram=10).limits().vram
    assert 1.01 * limit + 0.65 * GIB < 10 * GIB
    assert limit > 9 * GIB


def test_linear_layers_are_kept_where_all_attention_fits():
    roomy = planner(IMAGE, SHORT, vram=60, options=MemoryOptions(streamed_blocks=0, checkpointing=True))
    choice = roomy.choose()
    assert choice is not None
    assert choice.kept[1024] == (40, 40, 0)
    attention, linears, _ = choice.kept[14040]
    assert attention == 40
    assert 0 < linears < 40
    assert choice.plan.keep_linears == linears == choice.keep_linears[14040]
    assert f"attention of 40 of 40 blocks kept, linear layers of {linears} of 40 blocks kept" in explain(
        roomy, choice, steps=10
    )
    without = replace(roomy, options=replace(roomy.options, keep_linears=0)).choose()
    assert without is not None
    assert choice.seconds < without.seconds
    few = replace(roomy, options=replace(roomy.options, keep_attention=4, keep_linears=None)).choose()
    assert few is not None
    assert few.kept[14040] == (4, 4, 0)


def test_fewer_blocks_come_from_disk_where_ranks_hold_them_together():
    """Four GPUs divide the machine's main memory, and each holds a quarter of what is swapped."""
    options = MemoryOptions(streamed_blocks=40, offload_inputs=True, offload_optimizer=False)
    counts = []
    for holders in (1, 4):
        these = planner(SHORT, precision="bf16", vram=10, ram=24, options=options)
        these = replace(these, card=replace(these.card, pinnable_ram=24 * GIB))
        these = replace(these, task=replace(these.task, gpus=Gpus(4, 1, holders)))
        choice = these.choose()
        assert choice is not None
        assert choice.ram <= these.limits().ram
        counts.append(40 if choice.plan.stream_from == "mapped" else choice.plan.mapped_blocks)
    assert counts[1] == 0 < counts[0]
    ram = choice.ram - block_weights(these.task, choice.plan) + RAM_MARGIN_BYTES
    short = replace(these, card=replace(these.card, free_ram=ram, pinnable_ram=ram))
    choice = short.choose()
    assert choice is not None
    assert 4 <= choice.plan.mapped_blocks < 40
    assert choice.ram <= short.limits().ram
    fewer = short.describe(replace(choice.plan, mapped_blocks=choice.plan.mapped_blocks - 1))
    assert fewer.ram > short.limits().ram


@pytest.mark.parametrize(("mode", "keeps"), [("kernels", True), ("off", False)])
def test_products_are_kept_where_the_blocks_of_the_adapters_kind_can(mode, keeps):
    """By PyTorch's operators those with a plain LoRA alone."""
    sizes = WanConfig()
    for kind, is_kept in (("lora", True), ("lokr", keeps)):
        these = planner(SHORT, vram=60, task=Task(sizes=sizes, trained=Trained(adapter=kind)))
        these = replace(these, plan=replace(these.plan, compile=mode), options=MemoryOptions(checkpointing=True))
        choice = these.choose()
        assert choice is not None
        assert (choice.plan.keep_linears > 0) == is_kept, kind
