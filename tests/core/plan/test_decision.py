"""What a run computes with is found out once: every trial is made at most once, whatever happens to the run later."""

import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch
from wan_train.core.errors import ConfigError
from wan_train.core.memory import attention
from wan_train.core.plan import decision as module
from wan_train.core.plan import probe
from wan_train.core.plan.decision import arithmetic, decide, joined_buckets, may_use_graphs, num_batch_sizes
from wan_train.core.settings.job import Job, TrainSample
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.settings.regularizers import RegularizerOptions
from wan_train.core.train import checks, features
from wan_train.core.train.loop import Trainer
from wan_train.core.wan.checkpoint import inspect
from wan_train.core.wan.config import WanConfig
from wan_train.tests.core.train.helpers import train_in_folder, with_class

CPU = torch.device("cpu")


@pytest.fixture
def counted(monkeypatch):
    """How often each check and trial was made, the real one each time."""
    found = Counter()

    def count(place, name):
        real = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *args, **options: found.update([name]) or real(*args, **options))

    count(module, "compiler_problem")
    count(probe, "choose_attention")
    count(attention, "_try")
    count(checks, "_check_conditioning")
    for place in ("checks", "start", "run"):
        for name in ("check_model_file", "check_data"):
            if hasattr(sys.modules[f"wan_train.core.train.{place}"], name):
                count(sys.modules[f"wan_train.core.train.{place}"], name)
    return found


def test_a_run_makes_each_trial_once(tmp_path, job: Job, counted, monkeypatch):
    """Planned, loaded, and put on again as when memory runs out: the compiler and attention are tried once."""
    real, failing = Trainer.train_step, [1]

    def step(self):
        if self.step in failing:
            failing.remove(self.step)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return real(self)

    monkeypatch.setattr(Trainer, "train_step", step)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # inductor takes a minute here
    own = attention.Candidate("flash", lambda: attention.sdpa_attention(None))  # the CPU has a name of its own for it
    monkeypatch.setattr(attention, "candidates", lambda *_, **__: (own,))
    memory = MemoryOptions(attention="flash", compile="static", budget_gb=3.0)
    _, _, events = train_in_folder(tmp_path, replace(job, memory=memory), "counted", CPU)
    assert len([event for event in events if event["event"] == "plan"]) == 2
    assert counted == {
        "compiler_problem": 1, "choose_attention": 1, "_try": 1, "check_model_file": 1, "check_data": 1,
        "_check_conditioning": 1,
    }  # fmt: skip
    train_in_folder(tmp_path, replace(job, memory=memory), "again", CPU)  # with the same folder for what is known
    assert (counted["choose_attention"], counted["_try"]) == (1, 1)


def test_what_cannot_be_had_is_refused_before_anything_is_loaded(job: Job):
    cudnn = replace(job, memory=MemoryOptions(attention="cudnn"))
    with pytest.raises(ConfigError, match="There is no attention 'cudnn' on the device cpu"):
        decide(cudnn, inspect(job.model.path), CPU)


def test_where_no_compiler_works_blocks_run_uncompiled_and_that_is_told(job: Job, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", fail)
    found = decide(replace(job, memory=MemoryOptions(compile="dynamic")), inspect(job.model.path), CPU)
    assert found.modes == ("off",)
    (sentence,) = found.warnings
    assert "torch.compile does not work on the device cpu (RuntimeError: no compiler)" in sentence
    assert sentence.endswith("The run goes on without compilation: the result is the same, each step takes longer.")


def test_the_plan_of_a_decision_is_what_is_put_on(tmp_path, job: Job, monkeypatch):
    put_on = []
    real = features.apply_features

    def watch(model, plan, decision, **options):
        put_on.append((plan, decision))
        return real(model, plan, decision, **options)

    monkeypatch.setattr("wan_train.core.train.prepare.apply_features", watch)
    _, _, events = train_in_folder(tmp_path, replace(job, memory=MemoryOptions(budget_gb=3.0)), "one", CPU)
    (told,) = (event for event in events if event["event"] == "plan")
    ((plan, decision),) = put_on
    assert told["plan"]["checkpointing"] == plan.checkpointing
    assert (decision.device, decision.dtype, decision.attention, decision.modes) == (CPU, torch.float32, "", ("off",))


def test_smaller_last_batches_are_sizes_of_their_own(job: Job):
    sample = job.data.samples[0]

    def count(number, repeats=1, **options):
        samples = tuple(replace(sample, shape=(16, 1, 4, 2 * n), repeats=repeats) for n in range(1, number + 1))
        data, loop = replace(job.data, samples=samples), replace(job.loop, **options)
        return num_batch_sizes(replace(job, data=data, loop=loop))

    assert [count(number) for number in (1, 8, 9)] == [1, 8, 9]
    assert count(5, repeats=3, batch_size=2) == 10
    assert count(5, repeats=4, batch_size=2) == 5


def test_cuda_graphs_are_for_few_sizes_of_small_batches(job: Job):
    sample, cuda, large = job.data.samples[0], torch.device("cuda"), WanConfig()

    def may(*shapes, device=cuda, sizes=large, batch_size=1, **options):
        samples = tuple(replace(sample, shape=shape, repeats=batch_size) for shape in shapes)
        loop, memory = replace(job.loop, batch_size=batch_size), MemoryOptions(**options)
        data = replace(job.data, samples=samples)
        return may_use_graphs(replace(job, data=data, loop=loop, memory=memory), sizes, device)

    image, two, clip = (16, 1, 128, 128), (16, 2, 128, 128), (16, 9, 60, 104)
    assert may(image)
    assert may(image, two)
    assert may(image, batch_size=2)
    assert not may(image, clip)  # which needs the memory itself
    assert not may(two, batch_size=2)
    assert may(image, clip, sizes=WanConfig(dim=1536))
    assert not may(image, device=CPU)
    assert not may(image, cuda_graphs="off")
    assert not may(*((16, 1, 8, 2 * n) for n in range(1, 10)))
    dropping = replace(job, adapter=replace(job.adapter, dropout=0.1))
    assert may_use_graphs(job, large, cuda)
    assert not may_use_graphs(dropping, large, cuda)


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16", "fp16", "fp8", "int8", "ara"])
def test_arithmetic(precision):
    named = {"bf16": torch.bfloat16, "fp16": torch.float16}
    assert arithmetic(precision, CPU) == named.get(precision, torch.float32)


def test_batches_with_and_without_a_class_word_are_two_sizes_for_cuda_graphs(job: Job, tmp_path):
    """Nine sizes are one too many, though there are five shapes."""
    cuda, sample = torch.device("cuda"), with_class(tmp_path, job.data.samples[0])
    options = RegularizerOptions(output_preservation=1.0, single_pass=True)

    def may(shapes, plain):
        samples = tuple(replace(sample, shape=(16, 1, 4, 2 * n)) for n in range(1, shapes + 1))
        samples += tuple(replace(sample, shape=(16, 1, 4, 2 * n), class_texts=()) for n in range(1, plain + 1))
        changed = replace(job, data=replace(job.data, samples=samples), regularizers=options)
        return num_batch_sizes(changed), may_use_graphs(changed, WanConfig(), cuda)

    assert may(5, 0) == (5, True)
    assert may(5, 3) == (8, True)
    assert may(5, 4) == (9, False)


def test_the_kinds_of_batches_are_counted_without_comparing_samples(job: Job, tmp_path, monkeypatch):
    """Each sample with each other one takes minutes for ten thousand."""
    sample = with_class(tmp_path, job.data.samples[0])
    samples = (sample, *(replace(sample, latents_key=str(n), class_texts=()) for n in range(20)))
    options = RegularizerOptions(output_preservation=1.0, prior_preservation=True)
    changed = replace(job, data=replace(job.data, samples=samples), regularizers=options)
    monkeypatch.setattr(TrainSample, "__eq__", lambda *_: pytest.fail("two samples were compared"))
    assert num_batch_sizes(changed) == 1
    assert [bucket.share for bucket in joined_buckets(changed, 1)] == [20.0, 1.0]
