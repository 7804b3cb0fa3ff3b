"""Checkpoints by epochs, their copies among the LoRAs, and the best one that is kept."""

import threading
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from wan_train.core.adapters.formats import read_lora
from wan_train.core.errors import RunError
from wan_train.core.settings.loop import LoopOptions
from wan_train.core.settings.saving import SavingOptions
from wan_train.core.train import run as run_module
from wan_train.core.train.build import with_copies
from wan_train.core.train.checkpoints import Checkpoints
from wan_train.core.train.copies import read_copies
from wan_train.core.train.events import EventReader, EventWriter
from wan_train.core.train.length import checkpoints_due, checkpoints_made
from wan_train.core.train.preview_folder import MOST_KEPT, PreviewFolder
from wan_train.core.train.run import run_job
from wan_train.core.train.run_folder import RunFolder
from wan_train.core.train.scores import LOSS_ROOM, score_run
from wan_train.tests.core.train.test_run import fill, run

CPU = torch.device("cpu")


def with_loop(job, saving, **loop):
    return replace(job, loop=replace(job.loop, **loop), saving=saving)


def train(folder, job):
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_job(job)
    return run_job(folder, EventWriter(folder.events_path), CPU, lambda: False)


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "runs" / "run")


def steps_of(folder, kind):
    return [event["step"] for event in EventReader(folder.events_path).read() if event["event"] == kind]


@pytest.mark.parametrize(
    ("every", "accumulation", "wanted"),
    [(1, 1, [3, 6, 9, 10]), (2, 1, [6, 10]), (1, 2, [2, 3, 5, 6, 8, 9, 10]), (2, 2, [3, 6, 9, 10]), (9, 1, [10])],
)
def test_a_checkpoint_follows_the_last_batch_of_an_epoch(job, every, accumulation, wanted):
    """The job's epoch has 3 batches: with 2 a step, the steps 2, 3, 5, 6 ... use the last ones."""
    made = with_loop(job, SavingOptions(every_epochs=every), steps=10, gradient_accumulation=accumulation)
    is_due = checkpoints_due(made)
    assert [step for step in range(1, 11) if is_due(step)] == wanted
    assert checkpoints_made(made) <= len(wanted) <= checkpoints_made(made) + 1
    by_steps = checkpoints_due(with_loop(job, SavingOptions(), steps=10, checkpoint_every=4))
    assert [step for step in range(1, 11) if by_steps(step)] == [4, 8, 10]


def test_no_key_changes(job, tmp_path):
    other = replace(job, saving=SavingOptions(every_epochs=2, copies=True, keep_copies=1, keep_best=True))
    assert with_copies(other, tmp_path).key == job.key
    assert with_copies(other, tmp_path).loras_folder == str(tmp_path)
    assert with_copies(job, tmp_path) == job


def test_copies_are_loras_and_the_oldest_of_the_runs_own_go(folder, job, tmp_path):
    loras = tmp_path / "loras"
    loras.mkdir()
    taken = loras / "test_low_noise_step000002.safetensors"
    save_file({"x": torch.zeros(1)}, taken)
    other = loras / "test_low_noise_step000099.safetensors"
    save_file({"x": torch.zeros(2)}, other)
    made = with_loop(job, SavingOptions(copies=True, keep_copies=2), steps=4, checkpoint_every=1, keep_last=1)
    train(folder, with_copies(made, loras))
    names = sorted(path.name for path in loras.iterdir())
    wanted = [f"test_low_noise_step00000{step}.safetensors" for step in (2, 3, 4)]
    assert names == sorted([*wanted, other.name])  # step 2's own copy was _v2, and has gone
    assert load_file(taken).keys() == load_file(other).keys() == {"x"}
    lora = read_lora(loras / wanted[1])
    assert (lora.metadata["ss_steps"], lora.expert) == ("3", "low")
    assert lora.metadata["modelspec.architecture"] == read_lora(loras / wanted[2]).metadata["modelspec.architecture"]
    assert [copy.step for copy in read_copies(folder)] == [3, 4]


def test_a_copy_that_somebody_changed_stays_and_a_run_goes_on_with_its_own(folder, job, tmp_path):
    loras = tmp_path / "loras"
    made = with_loop(job, SavingOptions(copies=True, keep_copies=1), steps=2, checkpoint_every=1)
    made = with_copies(replace(made, schedule=replace(made.schedule, kind="constant")), loras)
    train(folder, made)
    mine = loras / "test_low_noise_step000002.safetensors"
    assert [path.name for path in loras.iterdir()] == [mine.name]
    save_file({"x": torch.zeros(1)}, mine)
    train(folder, replace(made, loop=replace(made.loop, steps=3)))
    assert sorted(path.name for path in loras.iterdir()) == [mine.name, "test_low_noise_step000003.safetensors"]


def test_a_folder_that_refuses_does_not_end_the_run(folder, job, tmp_path):
    wall = tmp_path / "file"
    wall.write_text("not a folder")
    made = with_loop(job, SavingOptions(copies=True), steps=1)
    assert train(folder, with_copies(made, wall / "loras")).is_file()
    warnings = [event["message"] for event in EventReader(folder.events_path).read() if event["event"] == "warning"]
    assert any("step 1 was not copied" in sentence for sentence in warnings)


def test_a_full_disk_gets_no_half_copy_and_the_run_goes_on(folder, job, small_disk):
    made = with_copies(with_loop(job, SavingOptions(copies=True), steps=3, checkpoint_every=1), small_disk)
    folder.path.parent.mkdir()
    _, lora = run(folder.path, made, at_step={2: lambda: fill(small_disk)})
    assert lora.is_file()
    assert sorted(path.name for path in small_disk.iterdir()) == [
        "filler",
        *(f"test_low_noise_step00000{step}.safetensors" for step in (1, 2)),
    ]
    warnings = [event["message"] for event in EventReader(folder.events_path).read() if event["event"] == "warning"]
    assert [("is full" in sentence, "was not copied" in sentence) for sentence in warnings] == [(True, True)]
    assert [step for step, _ in folder.checkpoints()] == [2, 3]


def that_gets_worse(job):
    first, second, third = job.data.samples
    data = replace(job.data, samples=(first, second, replace(third, held_out=True)))
    rate = replace(job.optimizer, learning_rate=0.3)
    loop = LoopOptions(steps=5, checkpoint_every=1, keep_last=1, validate_every=100, seed=job.loop.seed)
    return replace(job, data=data, optimizer=rate, loop=loop)


def test_the_checkpoint_of_the_lowest_loss_is_kept(folder, job):
    plain = that_gets_worse(job)
    train(folder, replace(plain, saving=SavingOptions(keep_best=True)))
    losses = {
        event["step"]: event["loss"]
        for event in EventReader(folder.events_path).read()
        if event["event"] == "validation"
    }
    assert list(losses) == [0, 1, 2, 3, 4, 5]  # measured at each checkpoint too
    lowest = min((step for step in losses if step), key=lambda step: losses[step])
    assert lowest < 4
    best = max(step for step in (1, 2, 3, 4) if losses[step] <= LOSS_ROOM * losses[lowest])
    assert [step for step, _ in folder.checkpoints()] == sorted({lowest, best, 5})
    without = RunFolder(folder.path.parent / "without")
    train(without, plain)
    assert [step for step, _ in without.checkpoints()] == [5]
    assert steps_of(without, "validation") == [0, 5]
    with safe_open(folder.checkpoints()[0][1] / "adapter.safetensors", "pt") as file:
        assert file.metadata()["ss_steps"] == str(min(lowest, best))


def test_what_is_kept_is_what_the_score_proposes(folder, job):
    """Of two the last, which has the lower loss or nearly, has a preview that stands still."""
    plain = replace(that_gets_worse(job), saving=SavingOptions(keep_best=True))
    plain = replace(plain, schedule=replace(plain.schedule, kind="constant"))
    train(folder, replace(plain, loop=replace(plain.loop, steps=2, keep_last=2)))
    assert score_run(folder, plain).best.step == 2
    PreviewFolder.of(folder).write(2, torch.ones(16, 2, 4, 4))
    scores = score_run(folder, plain)
    assert scores.best.step == 1
    train(folder, replace(plain, loop=replace(plain.loop, steps=3)))
    assert [step for step, _ in folder.checkpoints()] == sorted({1, scores.lowest.step, 3})


def test_previews_of_kept_checkpoints_stay(folder, job):
    """Else their motion would not count in the score any more. Without checkpoints these two would go."""
    folder.checkpoint_store.save(1, {"a": torch.zeros(1)}, {"step": 1}, keep_last=9)
    previews = PreviewFolder.of(folder)
    folder.checkpoint_store.save(3, {"a": torch.zeros(1)}, {"step": 3}, keep_last=9)
    for step in range(MOST_KEPT + 4):
        previews.write(step, torch.zeros(16, 1, 2, 2))
    there = [step for step in range(MOST_KEPT + 4) if previews.latents_path(step).is_file()]
    assert len(there) == MOST_KEPT + 2
    assert {1, 3} < set(there)


def test_the_last_checkpoint_and_the_lora_are_written_at_the_same_time(folder, job, monkeypatch):
    """Each waits here for the other to begin; the run is finished when both are there, and not before."""
    begun = {"checkpoint": threading.Event(), "LoRA": threading.Event()}
    save, write, finish = Checkpoints.save, run_module.write_adapter, RunFolder.write_result
    last = job.loop.steps

    def save_beside(self, step, *others, **options):
        if step == last:
            begun["checkpoint"].set()
            assert begun["LoRA"].wait(60)
        return save(self, step, *others, **options)

    def write_beside(*others, **options):
        begun["LoRA"].set()
        assert begun["checkpoint"].wait(60)
        assert last not in dict(folder.checkpoints())
        return write(*others, **options)

    def write_result(self, *, step, lora):
        assert last in dict(folder.checkpoints())
        assert lora.is_file()
        finish(self, step=step, lora=lora)

    monkeypatch.setattr(Checkpoints, "save", save_beside)
    monkeypatch.setattr(run_module, "write_adapter", write_beside)
    monkeypatch.setattr(RunFolder, "write_result", write_result)
    lora = train(folder, job)
    assert folder.finished_lora(last) == lora
    assert steps_of(folder, "checkpoint") == [2, 4, 6]
    written = load_file(folder.checkpoints()[-1][1] / "adapter.safetensors")
    assert all(torch.equal(tensor, written[name]) for name, tensor in load_file(lora).items())


def test_a_lora_that_can_not_be_written_leaves_the_last_checkpoint_whole(folder, job, monkeypatch):
    def refuse(*_others, **_options):
        raise RunError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "write_adapter", refuse)
        with pytest.raises(RunError, match="no room"):
            train(folder, job)
    assert [step for step, _ in folder.checkpoints()] == [4, 6]
    assert folder.finished_lora(6) is None
    assert train(folder, job).is_file()
    assert steps_of(folder, "start") == [0, 6]


def test_a_last_checkpoint_that_can_not_be_written_ends_the_run_which_goes_on_from_the_one_before(
    folder, job, monkeypatch
):
    save = Checkpoints.save

    def refuse(self, step, *others, **options):
        if step == job.loop.steps:
            raise RunError("no room for it")
        return save(self, step, *others, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", refuse)
        with pytest.raises(RunError, match="no room for it"):
            train(folder, job)
    assert folder.finished_lora(6) is None
    assert steps_of(folder, "checkpoint") == [2, 4]
    lora = load_file(train(folder, job))
    assert steps_of(folder, "start") == [0, 4]
    whole = load_file(train(RunFolder(folder.path.with_name("whole")), job))
    assert all(torch.equal(tensor, whole[name]) for name, tensor in lora.items())
