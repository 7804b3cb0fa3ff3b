"""What makes a GPU's libraries ready does so with what a run has, and changes nothing of it."""

import gc
import sys
import weakref
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from wan_train.core.memory.precision import resolve
from wan_train.core.plan.decision import buckets_of, decide
from wan_train.core.plan.plan import Bucket, Plan
from wan_train.core.switching import SOON_S
from wan_train.core.train import trial as trial_module
from wan_train.core.train import warm_up
from wan_train.core.train.checks import check_job
from wan_train.core.train.trial import Trial, images_of
from wan_train.core.train.warm_up import WarmUp, use_once
from wan_train.core.wan.config import WanConfig

CPU = torch.device("cpu")
MUCH = 2**40


def trial_of(job, buckets, *, room=MUCH, plan=None, precision="fp32", **options):
    decision = replace(decide(job, check_job(job), CPU), room=room)
    held = resolve(precision, CPU)
    plan = plan or Plan(checkpointing=False)
    return Trial(decision=decision, plan=plan, held=held, adapter=job.adapter, buckets=buckets, **options)


def test_it_runs_and_draws_nothing(job):
    decision = decide(job, check_job(job), CPU)
    before = torch.get_rng_state()
    use_once(decision, decision.info.config)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_fails_is_left_to_the_step_that_needs_it(job, caplog):
    caplog.set_level("INFO")
    decision = decide(job, check_job(job), CPU)
    trial = Trial(decision=decision, plan=Plan(), held=resolve("fp32", CPU), adapter=job.adapter, buckets=[])
    WarmUp(decision, None, trial, None).wait()
    assert "could not be made ready" in caplog.text


def test_the_thread_beside_it_gets_python_back_soon(job, monkeypatch):
    seen, usual = [], sys.getswitchinterval()
    monkeypatch.setattr(warm_up, "use_once", lambda *_: seen.append(sys.getswitchinterval()))
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    decision = decide(job, check_job(job), CPU)
    trial = Trial(decision=decision, plan=Plan(), held=resolve("fp32", CPU), adapter=job.adapter, buckets=[])
    WarmUp(decision, decision.info.config, trial, None).wait()
    assert seen == [pytest.approx(SOON_S)]
    assert sys.getswitchinterval() == pytest.approx(usual)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8", "int8"])
def test_each_size_goes_through_a_block_in_both_directions(job, precision, monkeypatch):
    seen = []
    apply = trial_module.apply_features

    def watched(model, *args, **options):
        def note(_module, _inputs, result):
            result.register_hook(lambda gradient: seen.append((tuple(result.shape), bool(gradient.isfinite().all()))))

        model.register_forward_hook(note)
        assert len(model.blocks) == 1
        return apply(model, *args, **options)

    monkeypatch.setattr(trial_module, "apply_features", watched)
    buckets = [Bucket((16, 1, 4, 6), batch=2), Bucket((16, 3, 4, 4))]
    assert trial_of(job, buckets, precision=precision).run() == 2
    assert seen == [((2, 16, 1, 4, 6), True), ((1, 16, 3, 4, 4), True)]


def test_the_block_that_was_tried_is_gone(job, monkeypatch):
    """Also where it refers to itself, as one that runs by kernels does."""
    seen = []
    apply = trial_module.apply_features

    def watched(model, *args, **options):
        vars(model)["itself"] = model
        seen.extend(map(weakref.ref, model.blocks.parameters()))
        return apply(model, *args, **options)

    monkeypatch.setattr(trial_module, "apply_features", watched)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    gc.disable()
    try:
        trial = trial_of(job, buckets_of(job))
        WarmUp(trial.decision, trial.decision.info.config, trial, None).wait()
        assert seen
        assert not any(weight() is not None for weight in seen)
    finally:
        gc.enable()


def test_all_sizes_of_a_job_are_tried_and_no_random_number_is_used_up(job):
    state = torch.get_rng_state()
    buckets = buckets_of(job)
    assert trial_of(job, buckets).run() == len(buckets)
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_is_tried_for_which_the_plan_leaves_no_room(job):
    small, large = Bucket((16, 1, 4, 4)), Bucket((16, 21, 400, 400))
    assert trial_of(job, [small, large], room=0).sizes == []
    assert trial_of(job, [small, large], room=2**31).sizes == [small]


def test_compiled_and_swapped_blocks_are_not_tried(job):
    buckets = buckets_of(job)
    for plan in (Plan(compile="static"), Plan(streamed_blocks=1), Plan(shards=2)):
        assert trial_of(job, buckets, plan=plan).sizes == []


def test_image_to_video_is_given_what_its_model_takes():
    latents = torch.zeros(1, 16, 2, 4, 4)
    given = images_of(WanConfig(variant="i2v", in_dim=36, image_dim=1280), latents)
    assert given["conditioning"].shape == (1, 20, 2, 4, 4)
    assert given["clip_features"].shape == (1, 257, 1280)
    assert images_of(WanConfig(), latents) == {}


@pytest.mark.parametrize(
    "options",
    [
        {"checkpointing": True},
        {"keep_attention": 40},
        {"keep_attention": 40, "keep_linears": 38},
        {"split_blocks": True},
        {"ffn_pieces": 4},
        {"offload_inputs": True},
    ],
)
def test_a_plan_for_many_blocks_is_tried_with_one(job, options):
    assert trial_of(job, buckets_of(job), plan=Plan(**options)).run() == 2
