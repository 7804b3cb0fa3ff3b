"""How several GPUs train a job: what is chosen is what takes least time, and the sentence says why."""

from dataclasses import replace

import pytest
import torch
from wan_train.core.errors import ConfigError
from wan_train.core.plan.estimate import estimate
from wan_train.core.plan.plan import Bucket, Gpus, Plan, Task, clip_tokens, own_batches, own_tokens
from wan_train.core.plan.spread import assumed_card, choose_context, run_seconds
from wan_train.core.plan.step_time import exchange_seconds, step_seconds
from wan_train.core.settings.job import Job
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.settings.parallel import ParallelOptions
from wan_train.core.wan.checkpoint import inspect
from wan_train.core.wan.config import WanConfig
from wan_train.tests.core.plan.test_estimate import CARD

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
GIB = 2**30
IMAGE, SHORT, LONG, LARGE = (16, 1, 64, 64), (16, 9, 60, 104), (16, 21, 60, 104), (16, 21, 90, 160)
NVLINK = 200e9
WHOLE = {"streamed_blocks": 0, "offload_inputs": False, "split_blocks": False}
T2V_14B, SMALL = WanConfig(), WanConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)


def spread(job: Job, shape, count=2, *, samples=16, vram=24.0, config=T2V_14B, precision="fp8", link=NVLINK, **others):
    """What is chosen for clips of `shape`, and what is said."""
    sample = replace(job.data.samples[0], shape=shape, repeats=samples)
    parallel = ParallelOptions(**{name: others.pop(name) for name in ("context", "base") if name in others})
    memory = MemoryOptions(**others.pop("memory", {}))
    job = replace(
        job,
        data=replace(job.data, samples=(sample,)),
        model=replace(job.model, precision=precision),
        parallel=parallel,
        memory=memory,
    )
    info = replace(inspect(job.model.path), config=config)
    found = choose_context(
        job, info, count, device=GPU, card=assumed_card("test", int(vram * GIB), link=link), **others
    )
    assert found.gpus.count == count
    return found.gpus.context, found.why


def test_clips_that_fit_are_not_shared(job):
    for shape in (IMAGE, SHORT):
        assert spread(job, shape, vram=40) == (1, "2 GPUs: each trains clips of its own.")


def test_a_clip_that_fits_on_no_gpu_alone_is_shared(job):
    context, why = spread(job, LARGE, 2, vram=28, base="whole", memory={"streamed_blocks": 0})
    assert (context, why) == (2, "2 GPUs share each clip: 1280x720x81 does not fit on one GPU.")


def test_as_few_as_it_takes_share_a_clip(job):
    context, why = spread(job, SHORT, 4, vram=21.5, base="whole", memory=WHOLE)
    assert context == 2
    assert why == "4 GPUs: 2 share each clip, 2 clips at a time: 832x480x33 does not fit on one GPU."


def test_sharing_may_be_faster_than_block_swap(job):
    """By NVLink, not by a slow link."""
    context, why = spread(job, LARGE, vram=24, link=NVLINK)
    assert context == 2
    assert why == (
        "2 GPUs share each clip: faster than clips of their own, since less has to be swapped or computed again."
    )
    assert spread(job, LARGE, vram=24, link=1e9)[0] == 1


def test_fewer_batches_than_gpus(job):
    """Of a step that is fixed, as when a run goes on with more GPUs; and of a dataset."""
    context, why = spread(job, LONG, 4, vram=80, batches=2)
    assert (context, why) == (2, "4 GPUs: 2 share each clip, 2 clips at a time: a step has 2 batches, fewer than GPUs.")
    context, why = spread(job, LONG, 4, vram=80, samples=1)
    assert (context, why) == (4, "4 GPUs share each clip: the dataset has 1 batch an epoch, fewer than GPUs.")
    assert spread(job, LONG, 4, vram=80, batches=4)[0] == 1


def test_a_small_picture_is_not_shared_where_that_is_no_faster(job):
    """The GPUs would only wait for each other: they train it at several noises instead."""
    assert spread(job, (16, 1, 32, 32), 4, samples=1, config=SMALL, vram=80, link=12e9)[0] == 1


def test_what_was_asked_for_is_kept_to(job):
    assert spread(job, SHORT, 4, context=2) == (
        2,
        "4 GPUs: 2 share each clip, 2 clips at a time, as context_parallel has it.",
    )
    assert spread(job, SHORT, 4, context=1)[0] == 1
    with pytest.raises(ConfigError, match="context_parallel is 3, which does not divide 4 GPUs"):
        spread(job, SHORT, 4, context=3)
    with pytest.raises(ConfigError, match=r"16 GPUs can't share(.|\n)*40 attention heads"):
        spread(job, SHORT, 16, context=16)
    with pytest.raises(ConfigError, match="8 GPUs can't share a clip with 4 tokens a frame"):
        spread(job, (16, 2, 4, 4), 8, context=8)


def test_only_heads_that_divide_and_gpus_of_one_machine(job):
    """12 heads are not dealt to 8 GPUs; nor a clip to two machines."""
    assert spread(job, LONG, 8, samples=1, vram=80, config=SMALL)[0] == 4
    assert spread(job, LONG, 8, samples=1, vram=80, machine=4)[0] == 4


def test_nothing_suffices(job):
    context, why = spread(job, LARGE, 2, vram=6, memory={"streamed_blocks": 0})
    assert context == 2
    assert "not even that suffices for 1280x720x81" in why


def test_without_a_card_clips_are_shared_for_want_of_batches_alone(job):
    info = inspect(job.model.path)
    assert choose_context(job, info, 2, device=CPU).gpus == Gpus(2, 1)
    assert choose_context(job, info, 2, device=CPU, batches=1).gpus == Gpus(2, 2)
    assert choose_context(job, info, 1, device=CPU).why == ""


def test_what_was_chosen_is_put_into_the_options(job):
    info = inspect(job.model.path)
    found = choose_context(job, info, 2, device=CPU, batches=1)
    assert found.settle(ParallelOptions()) == ParallelOptions(context=2, base="whole")
    assert found.settle(ParallelOptions(base="sharded")).base == "sharded"


def test_a_base_that_fits_on_no_gpu_is_spread(job):
    pytest.importorskip("wan_train.core.parallel.shards")
    info = replace(inspect(job.model.path), config=T2V_14B)
    memory = MemoryOptions(streamed_blocks=0)
    sample = replace(job.data.samples[0], shape=IMAGE, repeats=16)
    model = replace(job.model, precision="bf16")
    job = replace(job, data=replace(job.data, samples=(sample,)), memory=memory, model=model)
    job = replace(job, loop=replace(job.loop, steps=2000))  # a few steps are not worth making kernels ready
    for gib, shards in ((24, 2), (80, 1)):
        card = assumed_card("test", gib * GIB, link=NVLINK)
        found = choose_context(job, info, 2, device=GPU, card=card)
        assert found.shards == shards
        assert found.settle(ParallelOptions()).base == ("sharded" if shards > 1 else "whole")


def task(count=1, context=1, **changes):
    return Task(sizes=T2V_14B, gpus=Gpus(count, context), **changes)


@pytest.mark.parametrize("compile", ["off", "kernels"])
@pytest.mark.parametrize("split", [False, True])
def test_activations_of_a_shared_clip_are_as_many_as_those_of_its_part(compile, split):
    """Against a clip of that part's size on one GPU; the exchange takes a little more."""
    plan = Plan(compile=compile, split_blocks=split)
    shared, whole = ((16, 21, 60, 104), (16, 21, 30, 104))
    both = [estimate(task(2, 2), Bucket(shared), plan, CARD), estimate(task(), Bucket(whole), plan, CARD)]
    unit = 21 * 15 * 52 * 5120 * 2
    added = 3 * unit if compile == "kernels" else (1.5 if split else 1) * unit
    gradients = 4 * 16 * 40 * sum(a + b for a, b in linears())  # which lie in buffers from the start
    more = both[0].vram - both[1].vram - (0 if compile == "kernels" and split else added)
    assert 0 <= more <= gradients
    assert both[0].exact_vram == both[1].exact_vram


def linears():
    return [(5120, 5120)] * 8 + [(13824, 5120), (5120, 13824)]


def test_tokens_of_a_part():
    bucket = Bucket((16, 21, 60, 104))
    assert own_tokens(task(8, 8), bucket) == 21 * 195 == clip_tokens(T2V_14B, bucket) // 8
    assert own_tokens(task(7, 7), bucket) == 21 * 223  # 1560 tokens a frame
    assert own_tokens(task(8, 1), bucket) == 21 * 1560


@pytest.mark.parametrize(("gpus", "expected"), [(Gpus(), 5), (Gpus(2, 1), 3), (Gpus(4, 2), 3), (Gpus(8, 8), 5)])
def test_batches_of_a_gpu(gpus, expected):
    assert own_batches(Task(sizes=T2V_14B, accumulation=5, gpus=gpus)) == expected


def test_time_of_a_shared_clip():
    """By a link without cost, half the time of the whole clip but for what does not shrink; else the exchanges beside."""
    plan, bucket = Plan(compile="kernels"), Bucket(LARGE)
    fast, slow = replace(CARD, link=1e18), replace(CARD, link=10e9)
    alone = step_seconds(task(), bucket, plan, CARD)
    shared = step_seconds(task(2, 2), bucket, plan, fast)
    assert shared == pytest.approx(alone / 2, rel=0.05)
    unit = 21 * 45 * 80 * 5120 * 2 // 2
    sent = 4 * unit / 2 / 10e9
    assert exchange_seconds(task(2, 2), bucket, plan, slow) - exchange_seconds(task(2, 2), bucket, plan, fast) == (
        pytest.approx(sent, rel=1e-6)
    )
    # forward, recompute and backward of 40 blocks
    trained = 4 * 16 * sum(a + b for a, b in linears()) * 40
    assert step_seconds(task(2, 2), bucket, plan, slow) - shared == pytest.approx(
        120 * sent + 2 * trained / 2 / 10e9, rel=1e-3
    )


def test_a_base_that_is_spread_has_to_arrive():
    """Behind a small picture's steps it does not hide."""
    bucket, card = Bucket((16, 1, 32, 32)), replace(CARD, link=10e9)
    seconds = [step_seconds(task(2), bucket, Plan(shards=shards), card) for shards in (1, 2)]
    assert seconds[1] > 1.5 * seconds[0]


def test_what_a_run_takes_on_more_gpus_with_the_batches_that_it_has(job, tmp_path):
    """Of two batches a step, each of two GPUs trains one: in half the steps' time. A single one they share."""
    info = replace(inspect(job.model.path), config=T2V_14B)
    sample = replace(job.data.samples[0], shape=LARGE, repeats=16)
    model = replace(job.model, precision="fp8")
    job = replace(job, data=replace(job.data, samples=(sample,)), model=model)
    # Two that share a clip can keep more results in main memory, by which they are ahead of two with a clip each.
    job = replace(job, memory=replace(job.memory, offload_linears=0))
    card = assumed_card("test", 80 * GIB, link=NVLINK)
    for batches, context in ((2, 1), (1, 2)):
        these = replace(job, loop=replace(job.loop, steps=1000, gradient_accumulation=batches))
        alone, both = (run_seconds(these, info, count, device=GPU, folder=None, card=card) for count in (1, 2))
        assert alone is not None
        assert both is not None
        assert (alone[1], both[1]) == (1, context)
        assert 0.4 < both[0] / alone[0] < 0.7
    assert run_seconds(job, info, 2, device=CPU, folder=None) is None
    small = assumed_card("test", 3 * GIB)
    assert run_seconds(job, info, 1, device=GPU, folder=None, card=small) == (float("inf"), 1)
