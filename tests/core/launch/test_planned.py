from dataclasses import replace

import pytest
import torch
from wan_train.core.errors import ConfigError
from wan_train.core.launch.planned import describe_devices, describe_turns, gpus_of, places_of, pool_of
from wan_train.core.settings.parallel import ParallelOptions


@pytest.fixture(autouse=True)
def four(monkeypatch):
    """A machine with four GPUs."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


def test_the_pool_that_auto_chooses_from():
    assert pool_of([]) == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    assert pool_of(["0", "cuda:2"]) == ["cuda:0", "cuda:2"]
    assert pool_of(["all"]) == ["cuda:0,cuda:1,cuda:2,cuda:3"]
    assert pool_of(["0+1", "2+3"]) == ["cuda:0,cuda:1", "cuda:2,cuda:3"]
    assert pool_of(["cpu:0", "cpu:1"]) == ["cpu:0", "cpu:1"]


def test_pools_that_can_not_be():
    with pytest.raises(ConfigError, match="cuda:0,cuda:1 and cuda:2 are groups of different sizes"):
        pool_of(["0+1", "2"])
    with pytest.raises(ConfigError, match="have cuda:1 in two groups"):
        pool_of(["0+1", "1+2"])
    with pytest.raises(ConfigError, match="'cuda:9' is not there"):
        pool_of(["9"])


def test_where_a_job_may_be_trained():
    pool = pool_of(["0+1", "2+3"])
    assert places_of("auto", pool) == pool
    assert places_of("cuda:3", pool) == ["cuda:3"]
    assert places_of("0,1,2", pool) == ["cuda:0,cuda:1,cuda:2"]
    assert [gpus_of(device, pool) for device in ("auto", "cuda:3", "all")] == [2, 1, 4]


def test_what_is_said_before_the_start(job):
    high, low = (replace(job, stage=stage, device="auto") for stage in ("high", "low"))
    alone = {"high": 1, "low": 1}
    assert describe_devices([high, low], ["cuda:0"], alone) == []
    assert describe_devices([replace(high, device="cuda:0")], pool_of([]), alone) == []
    (said,) = describe_devices([high, low], pool_of(["0", "1"]), alone)
    assert said.startswith("2 GPUs: each expert is trained on one, at the same time. With device all")
    short, long = {1: (60.0, 1), 2: (50.0, 1)}, {1: (600.0, 1), 2: (310.0, 2)}
    told = describe_devices(
        [high, low], pool_of(["0", "1"]), alone, lambda job, gpus: (long if job is low else short)[gpus]
    )
    assert told[1] == (
        "At the same time they take about 10 min; one after the other on all GPUs, with as many samples in each step, about "
        "6 min."
    )
    told = describe_devices(
        [high, low], pool_of(["0", "1"]), alone, lambda _, gpus: {1: (600.0, 1), 2: (200.0, 2)}[gpus]
    )
    assert told[1].endswith("about 7 min, which is faster: device all, context_parallel 2 and gradient_accumulation 1.")
    for nothing in (None, (float("inf"), 1)):
        assert len(describe_devices([high, low], pool_of(["0", "1"]), alone, lambda *_, each=nothing: each)) == 1
    (said,) = describe_devices([high, low], pool_of([]), alone)
    assert "; 2 stay free. " in said
    (said,) = describe_devices([high], pool_of([]), alone)
    assert said == "1 of 4 GPUs is used: with device all they train this run together."

    parallel = ParallelOptions(context=1)
    two = [replace(each, loop=replace(each.loop, gradient_accumulation=2), parallel=parallel) for each in (high, low)]
    step = "2 GPUs: each step trains 2 batches, one a GPU; the same as gradient_accumulation 2 on one GPU"
    assert describe_devices(two, ["cuda:0,cuda:1"], {"high": 2, "low": 2}) == [f"{step}; the experts take turns"]
    assert describe_devices(two, pool_of(["0+1", "2+3"]), {"high": 2, "low": 2}) == [step]
    assert describe_devices(two[:1], ["cuda:0,cuda:1"], {"high": 2}) == [step]


def test_turns_that_will_not_be_taken_are_told(job):
    high, low = (replace(job, stage=stage, device="auto", alternate_every=10) for stage in ("high", "low"))
    assert describe_turns([high, low], ["cuda:0"]) == []
    assert (
        describe_turns([replace(high, alternate_every=0), replace(low, alternate_every=0)], ["cuda:0", "cuda:1"]) == []
    )
    (sentence,) = describe_turns([high, low], ["cuda:0", "cuda:1"])
    assert "each expert has a GPU of its own" in sentence
    (sentence,) = describe_turns([replace(high, device="cuda:0"), replace(low, device="cuda:1")], ["cuda:0"])
    assert "each expert has a GPU of its own" in sentence
    (sentence,) = describe_turns([high, replace(low, alternate_every=0)], ["cuda:0"])
    assert sentence == "alternate_every is set for the high noise expert alone, and has no effect: set it for both."
    (sentence,) = describe_turns([high], ["cuda:0"])
    assert "only while the other expert is trained on the same GPU" in sentence
