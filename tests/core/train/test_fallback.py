"""Out of memory in a real run: it goes on with a leaner plan, says so, and its LoRA is the one it would have been."""

from dataclasses import asdict, replace

import pytest
import torch
from wan_train.core.errors import RunError
from wan_train.core.memory.estimate import Bucket
from wan_train.core.train.events import EventReader, read_history
from wan_train.core.train.fallback import buckets_of, plan_of
from wan_train.core.train.job import Job, MemoryOptions
from wan_train.core.train.loop import Trainer
from wan_train.core.train.run_folder import RunFolder
from wan_train.tests.core.train.test_features import train


@pytest.fixture
def short_of_memory(monkeypatch):
    """Makes the steps of these numbers fail, each as often as it is named."""
    failing = []
    train_step = Trainer.train_step

    def step(self):
        if self.step in failing:
            failing.remove(self.step)
            self.compute_loss(self.batches.get(self.step), self.step)[0].mean().backward()  # gradients are left behind
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return train_step(self)

    monkeypatch.setattr(Trainer, "train_step", step)
    return failing


@pytest.mark.parametrize("attention", ["default", "auto"])
def test_a_run_goes_on_with_less(tmp_path, job: Job, short_of_memory, attention):
    losses, lora, _ = train(tmp_path, job, "plain")
    short_of_memory.append(2)
    memory = MemoryOptions(checkpointing=False, attention=attention)
    found, other, _ = train(tmp_path, replace(job, memory=memory), "short")
    assert found == losses
    assert all(torch.equal(lora[name], other[name]) for name in lora)
    path = tmp_path / "runs" / "short" / "events.jsonl"
    plans = [event for event in EventReader(path).read() if event["event"] == "plan"]
    assert [event["step"] for event in plans] == [2]
    assert plans[0]["message"].startswith("The GPU's memory ran out at step 3: the run goes on with ")
    assert plans[0]["plan"] == {**asdict(plan_of(job, torch.float32)), "checkpointing": True}
    assert plans[0]["message"] in read_history(path).warnings


def test_when_nothing_takes_less_the_run_ends_with_a_sentence(tmp_path, job: Job, short_of_memory):
    short_of_memory.extend([3, 3])
    with pytest.raises(RunError, match=r"there is no plan that takes less .* the last checkpoint is kept"):
        train(tmp_path, job, "short")
    assert RunFolder(tmp_path / "runs" / "short").checkpoints()


def test_sizes_of_clips_and_their_batches(job: Job):
    loop = replace(job.loop, batch_size=4)
    assert buckets_of(replace(job, loop=loop)) == [Bucket((16, 2, 4, 4), 2, 1.0), Bucket((16, 1, 4, 6), 1, 1.0)]
    alone = replace(loop, token_budget=8)
    assert buckets_of(replace(job, loop=alone))[0] == Bucket((16, 2, 4, 4), 1, 2.0)


def test_the_plan_of_a_job(job: Job):
    plan = plan_of(replace(job, memory=MemoryOptions(streamed_blocks=1, compile="static")), torch.bfloat16)
    assert (plan.precision, plan.streamed_blocks, plan.compile) == ("bf16", 1, "static")
    fp8 = replace(job, model=replace(job.model, precision="fp8"))
    assert plan_of(fp8, torch.bfloat16).precision == "fp8"
