"""Held-out losses as pairs, motion of previews, and the checkpoint that comes out best."""

import statistics
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from wan_train.core.errors import ConfigError
from wan_train.core.sample.previews import preview_sample
from wan_train.core.settings.job import CaptionText, PreviewPrompt
from wan_train.core.settings.samples import SamplePrompt
from wan_train.core.train.compare import proposals
from wan_train.core.train.events import EventWriter
from wan_train.core.train.held_out import HeldOut, HeldOutLoss, at_step, difference
from wan_train.core.train.preview_folder import PreviewFolder
from wan_train.core.train.run_folder import RunFolder
from wan_train.core.train.scores import best_checkpoint, best_in_words, last_in_words, motion, score_of, score_run
from wan_train.tools.nano.compare import CURVES
from wan_train.tools.nano.method_rows import read_rows
from wan_train.tools.nano.method_table import CHOICES, MEAN, value_of


def of_samples(*losses):
    return HeldOutLoss(sum(losses) / len(losses), losses)


def test_pairs_are_of_samples_and_of_noise_levels_where_these_are_few():
    few = [
        HeldOutLoss(level, (level, level), (level, level + noise, level - noise))
        for level, noise in ((1.0, 0.1), (2.0, 0.0))
    ]
    gap, error = difference(few[1], few[0])
    assert gap == 1.0
    assert error == pytest.approx(0.1 / 3**0.5)
    assert difference(HeldOutLoss(2.0), HeldOutLoss(1.0)) == (1.0, None)


def test_between_two_measurements_lies_a_line(tmp_path):
    diary = EventWriter(tmp_path / "events.jsonl")
    reader = HeldOut(diary.path)
    diary.write("start", step=0)
    diary.write("validation", step=0, loss=4.0, by_sigma=[4.0], by_sample=[3.0, 5.0, "x"])
    diary.write("validation", step=10, loss=2.0, by_sigma=[2.0])
    diary.write("validation", step=20, loss=float("nan"))
    found = reader.read()
    assert list(found) == [0, 10]
    assert found[0].by_sample == ()
    assert at_step(found, 5) == HeldOutLoss(3.0, (), (3.0,))
    assert at_step(found, 10) == found[10]
    assert at_step(found, 11) is None
    diary.write("start", step=5)
    diary.write("validation", step=8, loss=1.0)
    assert list(reader.read()) == [0, 8]


@pytest.fixture
def folder(tmp_path, job):
    made = RunFolder(tmp_path / "runs" / "run")
    made.path.mkdir(parents=True)
    made.write_job(job)
    for step in (10, 20, 30):
        adapter = {"a": torch.full((1,), float(step))}
        made.checkpoint_store.save(step, adapter, {"step": step}, keep_last=9, training=job.key)
    return made


def measure(folder, losses):
    diary = EventWriter(folder.events_path)
    for step, values in losses.items():
        diary.write("validation", step=step, loss=sum(values) / len(values), by_sample=list(values))


def test_a_loss_that_rises_while_a_lora_learns_takes_nothing_from_the_last(folder, job):
    measure(folder, {10: (1.0, 2.0, 3.0, 4.0), 20: (0.9, 1.8, 2.95, 3.9), 30: (1.0, 2.5, 4.0, 7.5)})
    scores = score_run(folder, job)
    assert [one.score for one in scores.checkpoints] == [100, 100, 100]  # 1.6 times the lowest
    assert (scores.best and scores.best.step) == 30
    assert (scores.lowest and scores.lowest.step) == 20
    assert scores.checkpoints[0].behind == pytest.approx(0.1125)
    assert scores.checkpoints[0].error == pytest.approx(0.0314576, rel=1e-5)  # scipy.stats.sem of the four differences
    assert best_checkpoint(folder, job).step == 30
    assert best_in_words(scores) == (
        "step 30 (scores out of 100: step 10: 100, step 20: 100, step 30: 100; lowest held-out loss: step 20)"
    )


def test_a_loss_that_is_more_than_twice_the_lowest_does(folder, job):
    measure(folder, {10: (1.0, 2.0, 3.0, 4.0), 20: (2.0, 4.0, 6.0, 8.0), 30: (4.0, 8.0, 12.0, 16.0)})
    scores = score_run(folder, job)
    assert [one.score for one in scores.checkpoints] == pytest.approx([100, 100, 50])
    assert best_checkpoint(folder, job).step == 20


def test_a_last_checkpoint_that_was_not_measured_is_not_called_broken(folder, job):
    """A run that is stopped between two measurements ends with one."""
    measure(folder, {10: (1.0, 2.0, 3.0, 4.0), 20: (0.9, 1.8, 2.95, 3.9)})
    scores = score_run(folder, job)
    assert (scores.best and scores.best.step) == 20
    assert last_in_words(scores) == ("step 30, the last one, was not measured", False)
    (said,) = proposals([folder])
    assert said.endswith("lowest held-out loss: step 20); step 30, the last one, was not measured")
    (folder.checkpoint_store.path / "step-00000030" / "adapter.safetensors").write_bytes(b"")
    assert last_in_words(score_run(folder, job)) == ("step 30 is damaged", True)


def test_one_that_its_numbers_call_broken_is_named(folder, job):
    measure(folder, {10: (1.0, 2.0, 3.0, 4.0), 20: (4.0, 8.0, 12.0, 16.0)})
    assert last_in_words(score_run(folder, job)) == ("step 20 may be broken", True)
    measure(folder, {30: (4.0, 8.0, 12.0, 16.0)})
    assert last_in_words(score_run(folder, job)) == ("the last one may be broken", True)
    measure(folder, {30: (1.0, 2.0, 3.0, 4.0)})
    assert last_in_words(score_run(folder, job)) == ("", False)


def clip(strength):
    frames = torch.zeros(16, 2, 4, 4)
    frames[:, 1] = strength
    return frames


def test_of_those_whose_previews_stand_still_or_flicker_none_is_best(folder, job):
    measure(folder, {10: (1.0, 2.0, 3.0, 4.0), 20: (0.9, 1.8, 2.95, 3.9), 30: (0.85, 2.0, 2.8, 3.95)})
    save_file({"latents": clip(2.0)}, preview_sample(job).latents_path)
    previews = PreviewFolder.of(folder)
    for step, strength in ((10, 4.0), (20, 0.2), (30, 10.0)):
        previews.write(step, clip(strength))
    scores = score_run(folder, job)
    assert [one.motion for one in scores.checkpoints] == pytest.approx([2.0, 0.1, 5.0])
    assert [one.score for one in scores.checkpoints] == pytest.approx([100, 25, 50])
    assert (scores.best and scores.best.step) == 10
    assert (scores.lowest and scores.lowest.step) == 20
    assert score_of(1.0, 1.0, 0.0) == 0  # a picture


def test_the_choice_is_not_worse_than_the_last_in_all_that_was_measured():
    """Of the runs of nano/curves, as the exam graded their checkpoints."""
    for name in ("methods", "grid"):
        by_run = {}
        for row in read_rows(CURVES / f"{name}.csv"):
            by_run.setdefault(row["key"], []).append(row)
        last = statistics.fmean(value_of(marks[-1], MEAN) for marks in by_run.values())
        for choice, least in (("highest score", last), ("lowest held-out loss", 0.0)):
            chosen = statistics.fmean(value_of(CHOICES[choice](marks), MEAN) for marks in by_run.values())
            assert chosen >= least
        assert chosen < last - 0.05  # what the loss alone chooses


def test_previews_of_prompts_are_not_compared_with_a_sample(folder, job):
    text = CaptionText(key="0" * 32, path=job.data.empty_text_path)
    asked = PreviewPrompt(asked=SamplePrompt(name="one", prompt="a shape"), text=text, negative=text)
    job = replace(job, data=replace(job.data, prompts=(asked,)))
    measure(folder, {10: (1.0, 2.0, 3.0, 4.0), 20: (0.9, 1.8, 2.95, 3.9), 30: (0.85, 2.0, 2.8, 3.95)})
    save_file({"latents": clip(2.0)}, preview_sample(job).latents_path)
    for step in (10, 20, 30):
        PreviewFolder.of(folder).write(step, clip(0.2))
    scores = score_run(folder, job)
    assert [one.motion for one in scores.checkpoints] == [None] * 3
    assert [one.score for one in scores.checkpoints] == [100] * 3


def test_motion_is_the_change_between_frames():
    assert motion(clip(3.0)) == pytest.approx(3.0)
    assert motion(clip(3.0)[:, :1]) is None


def test_without_a_measurement_nothing_is_proposed(folder, job):
    scores = score_run(folder, job)
    assert [one.step for one in scores.checkpoints] == [10, 20, 30]
    assert scores.best is None
    with pytest.raises(ConfigError, match="no held-out loss was measured"):
        best_checkpoint(folder, job)
