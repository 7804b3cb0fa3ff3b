from dataclasses import replace

import pytest
from wan_train.core.errors import ConfigError
from wan_train.core.settings.loop import LoopOptions
from wan_train.core.settings.parallel import ParallelOptions
from wan_train.core.settings.stage import StageSettings
from wan_train.core.train.spread import RunPlace, build_over, check_spread, describe_spread
from wan_train.core.wan.checkpoint import inspect
from wan_train.core.wan.config import WanConfig


def settings(accumulation=1, context=0):
    return StageSettings(
        loop=LoopOptions(gradient_accumulation=accumulation), parallel=ParallelOptions(context=context)
    )


def spread(job, batches, context=0, base="auto"):
    loop = replace(job.loop, gradient_accumulation=batches)
    return replace(job, loop=loop, parallel=ParallelOptions(context=context, base=base))


def test_what_was_asked_of_each_counts_for_all(job):
    """`build` is asked for the job of one GPU first, of which the number that share a sample is found."""

    def over(given, gpus):
        info = replace(inspect(job.model.path), config=WanConfig(num_heads=24))
        return build_over(
            lambda s: replace(job, loop=s.loop, parallel=s.parallel), given, info, RunPlace(gpus, device="cpu")
        )

    assert over(settings(3), 1).loop.gradient_accumulation == 3
    assert over(settings(3), 1).parallel.context == 0
    assert over(settings(3), 2).loop.gradient_accumulation == 6
    shared = over(settings(3, context=2), 8)
    assert (shared.loop.gradient_accumulation, shared.parallel.context) == (12, 2)
    with pytest.raises(ConfigError, match="context_parallel is 3, which does not divide 4 GPUs"):
        over(settings(context=3), 4)


def test_too_few_batches_are_refused(job):
    check_spread(spread(job, 1), 1)
    check_spread(spread(job, 4), 3)
    check_spread(spread(job, 2, context=2), 4)
    with pytest.raises(
        ConfigError, match="a step of this run has 2 batches, too few for 4 GPUs: train it on 2 of them"
    ):
        check_spread(spread(job, 2), 4)


def test_windows_has_no_nccl(job):
    check_spread(spread(job, 2), 2, windows=True)
    with pytest.raises(ConfigError, match="context_parallel needs NCCL"):
        check_spread(spread(job, 2, context=2), 2, windows=True)
    with pytest.raises(ConfigError, match="sharded_base needs NCCL"):
        check_spread(spread(job, 2, base="sharded"), 2, windows=True)


def test_the_sentence_before_the_start(job):
    same = "the same as gradient_accumulation"
    assert describe_spread(spread(job, 2), 2) == f"2 GPUs: each step trains 2 batches, one a GPU; {same} 2 on one GPU"
    assert describe_spread(spread(job, 6), 2) == f"2 GPUs: each step trains 6 batches, 3 a GPU; {same} 6 on one GPU"
    assert (
        describe_spread(spread(job, 5), 2) == f"2 GPUs: each step trains 5 batches, 2 or 3 a GPU; {same} 5 on one GPU"
    )
    shared = describe_spread(spread(job, 1, context=2), 2)
    assert shared == f"2 GPUs: each step trains 1 batch, one on each group of 2 GPUs; {same} 1 on one GPU"
