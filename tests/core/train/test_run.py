"""A run from its folder, in this process: resume, stop, extension, and what is left on disk."""

import contextlib
import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from wan_train.core.adapters.formats import read_lora
from wan_train.core.errors import ConfigError, RunError
from wan_train.core.settings.schedule import ScheduleOptions
from wan_train.core.train.events import EventReader, EventWriter, read_history
from wan_train.core.train.run import RunStoppedError, run_job
from wan_train.core.train.run_folder import RunFolder

CPU = torch.device("cpu")


def run(path, job, *, stop_at=None, at_step=None):
    """`at_step`: what is done between two steps, once, by the number of the steps that are made."""
    folder = RunFolder(path)
    path.mkdir(exist_ok=True)
    folder.write_job(job)
    acts = dict(at_step or {})

    def should_stop():
        steps = [e["step"] for e in EventReader(folder.events_path).read() if e["event"] == "step"]
        if steps and steps[-1] in acts:
            acts.pop(steps[-1])()
        return stop_at is not None and bool(steps) and steps[-1] >= stop_at

    return folder, run_job(folder, EventWriter(folder.events_path), CPU, should_stop)


def fill(disk):
    """Take all the room that is left."""
    with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):  # when it is full
        while file.write(bytes(4096)):
            pass


def same_weights(a, b):
    a, b = load_file(a), load_file(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_leaves_a_lora_with_its_story(tmp_path, job):
    folder, lora = run(tmp_path / "run", replace(job, trigger_word="ohwx"))
    assert lora.name == "test_low_noise.safetensors"
    assert folder.finished_lora(6) == lora
    assert folder.finished_lora(7) is None
    file = read_lora(lora)
    assert len(file.modules) == 20
    assert file.expert == "low"
    assert file.metadata["modelspec.timestep_range"] == "0,875"
    assert file.metadata["modelspec.trigger_phrase"] == "ohwx"
    assert json.loads(file.metadata["wantrain.job"])["loop"]["steps"] == 6
    assert [step for step, _ in folder.checkpoints()] == [4, 6]  # keep_last 2
    history = read_history(folder.events_path)
    assert sorted(history.losses) == [1, 2, 3, 4, 5, 6]


@pytest.mark.grid(2)
@pytest.mark.parametrize(
    ("optimizer", "offloaded"),
    [("adamw", (False, False)), ("adamw8bit", (False, False)), ("adamw", (True, False)), ("adamw", (False, True))],
)
def test_stopped_and_resumed_equals_never_stopped(tmp_path, job, optimizer, offloaded):
    """Also with the optimizer's state in main memory before the stop, or after it."""
    if optimizer == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    job = replace(job, optimizer=replace(job.optimizer, name=optimizer), adapter=replace(job.adapter, dropout=0.2))
    _, whole = run(tmp_path / "whole", job)
    before, after = (replace(job, memory=replace(job.memory, offload_optimizer=on)) for on in offloaded)
    with pytest.raises(RunStoppedError):
        run(tmp_path / "parts", before, stop_at=3)
    assert [step for step, _ in RunFolder(tmp_path / "parts").checkpoints()] == [2, 3]
    _, parts = run(tmp_path / "parts", after)
    assert same_weights(whole, parts)
    whole_losses, losses = (read_history(tmp_path / name / "events.jsonl").losses for name in ("whole", "parts"))
    assert losses == whole_losses


def test_resume_with_accumulation_and_batches(tmp_path, job):
    loop = replace(job.loop, batch_size=2, gradient_accumulation=3)
    job = replace(job, loop=loop, timesteps=replace(job.timesteps, strata=4), schedule=ScheduleOptions(kind="cosine"))
    _, whole = run(tmp_path / "whole", job)
    with pytest.raises(RunStoppedError):
        run(tmp_path / "parts", job, stop_at=5)
    _, parts = run(tmp_path / "parts", job)
    assert same_weights(whole, parts)


def test_a_finished_run_is_made_longer(tmp_path, job):
    run(tmp_path / "grown", job)
    longer = replace(job, loop=replace(job.loop, steps=9))
    assert longer.key == job.key
    folder, grown = run(tmp_path / "grown", longer)
    _, whole = run(tmp_path / "whole", longer)
    assert same_weights(grown, whole)
    assert folder.finished_lora(9) == grown
    starts = [e["step"] for e in EventReader(folder.events_path).read() if e["event"] == "start"]
    assert starts == [0, 6]


def test_leftovers_of_an_interrupted_write_are_swept(tmp_path, job):
    leftover = tmp_path / "run" / "checkpoints" / ".step-00000002.123-abcd.tmp"
    leftover.mkdir(parents=True)
    run(tmp_path / "run", job)
    assert not leftover.exists()


def test_a_full_disk_keeps_the_earlier_checkpoint(tmp_path, job, small_disk):
    """Really full: a 1 MB file system of its own, in which something else takes the room while the run goes."""
    job = replace(job, loop=replace(job.loop, steps=8, checkpoint_every=1, keep_last=2))
    with pytest.raises(RunError, match=r"is full \(0.0 GB free\) .* the checkpoint of step \d+ is kept"):
        run(small_disk / "run", job, at_step={3: lambda: fill(small_disk)})
    folder = RunFolder(small_disk / "run")
    last, path = folder.checkpoints()[-1]
    assert last >= 3
    folder.checkpoint_store.load(path)
    assert not list(folder.checkpoints_path.glob(".*"))
    moved = tmp_path / "moved"
    shutil.copytree(small_disk / "run", moved)  # room is made: the run goes on from there
    _, lora = run(moved, job)
    starts = [e["step"] for e in EventReader(RunFolder(moved).events_path).read() if e["event"] == "start"]
    assert starts == [0, last]
    _, whole = run(tmp_path / "whole", replace(job, loop=replace(job.loop, keep_last=1)))
    assert same_weights(lora, whole)


def test_held_out_loss_is_written(tmp_path, job):
    held = replace(job.data.samples[0], held_out=True)
    job = replace(
        job, data=replace(job.data, samples=(*job.data.samples[1:], held)), loop=replace(job.loop, validate_every=3)
    )
    folder, _ = run(tmp_path / "run", job)
    assert sorted(read_history(folder.events_path).validation) == [0, 3, 6]


def test_a_model_that_changed_under_a_run_is_refused(tmp_path, job):
    with pytest.raises(ConfigError, match="its content changed"):
        run(tmp_path / "run", replace(job, model=replace(job.model, identity="f" * 32)))
