"""Held-out losses as pairs, the chance of no difference, motion of previews, and the checkpoint that comes out best."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from wan_train.core.errors import ConfigError
from wan_train.core.settings.job import CaptionText, PreviewPrompt
from wan_train.core.settings.samples import SamplePrompt
from wan_train.core.train.events import EventWriter
from wan_train.core.train.held_out import HeldOut, HeldOutLoss, at_step, chance_of_no_difference, difference
from wan_train.core.train.preview_folder import PreviewFolder
from wan_train.core.train.previews import preview_sample
from wan_train.core.train.run_folder import RunFolder
from wan_train.core.train.scores import best_checkpoint, motion, score_run


def of_samples(*losses):
    return HeldOutLoss(sum(losses) / len(losses), losses)


def test_the_chance_is_that_of_students_paired_test():
    """Values of scipy.stats.ttest_rel."""
    scipy = pytest.importorskip("scipy.stats")
    generator = torch.Generator().manual_seed(1)
    for number in (3, 4, 9, 40):
        one, other = torch.rand(2, number, generator=generator, dtype=torch.float64).tolist()
        found = chance_of_no_difference(of_samples(*one), of_samples(*other))
        assert found == pytest.approx(scipy.ttest_rel(one, other).pvalue, abs=1e-9)
    assert chance_of_no_difference(of_samples(1.0, 2.0, 3.0), of_samples(1.0, 2.0, 3.0)) == 1
    assert chance_of_no_difference(of_samples(2.0, 3.0, 4.0), of_samples(1.0, 2.0, 3.0)) == 0


def test_pairs_are_of_samples_and_of_noise_levels_where_these_are_few():
    few = [
        HeldOutLoss(level, (level, level), (level, level + noise, level - noise))
        for level, noise in ((1.0, 0.1), (2.0, 0.0))
    ]
    gap, error = difference(few[1], few[0])
    assert gap == 1.0
    assert error == pytest.approx(0.1 / 3**0.5)
    assert difference(HeldOutLoss(2.0), HeldOutLoss(1.0)) == (1.0, None)
    assert chance_of_no_difference(HeldOutLoss(2.0), HeldOutLoss(1.0)) is None


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


def test_the_lowest_loss_is_best_and_what_it_can_be_told_from_is_far_below(folder, job):
    measure(folder, {10: (1.0, 2.0, 3.0, 4.0), 20: (0.9, 1.8, 2.95, 3.9), 30: (0.85, 2.0, 2.8, 3.95)})
    scores = score_run(folder, job)
    by_step = {one.step: one for one in scores.checkpoints}
    assert (scores.best and scores.best.step) == 20  # lowest: 2.3875 against 2.4 and 2.5
    assert by_step[20].score == 100
    assert by_step[10].score < 10 < 50 < by_step[30].score < 100
    assert by_step[10].behind == pytest.approx(0.1125)
    assert best_checkpoint(folder, job).step == 20


def clip(strength):
    frames = torch.zeros(16, 2, 4, 4)
    frames[:, 1] = strength
    return frames


def test_motion_decides_between_those_that_the_loss_does_not_tell_apart(folder, job):
    measure(folder, {10: (1.0, 2.0, 3.0, 4.0), 20: (0.9, 1.8, 2.95, 3.9), 30: (0.85, 2.0, 2.8, 3.95)})
    save_file({"latents": clip(2.0)}, preview_sample(job).latents_path)
    previews = PreviewFolder.of(folder)
    for step, strength in ((10, 2.0), (20, 0.2), (30, 3.0)):
        previews.write(step, clip(strength))
    scores = score_run(folder, job)
    assert [one.motion for one in scores.checkpoints] == pytest.approx([1.0, 0.1, 1.5])
    assert (scores.best and scores.best.step) == 30  # 20 stands still; 10 moves well, but its loss is clearly higher
    assert scores.checkpoints[1].score == pytest.approx(10)


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
    assert (scores.best and scores.best.step) == 20


def test_motion_is_the_change_between_frames():
    assert motion(clip(3.0)) == pytest.approx(3.0)
    assert motion(clip(3.0)[:, :1]) is None


def test_without_a_measurement_nothing_is_proposed(folder, job):
    scores = score_run(folder, job)
    assert [one.step for one in scores.checkpoints] == [10, 20, 30]
    assert scores.best is None
    with pytest.raises(ConfigError, match="no held-out loss was measured"):
        best_checkpoint(folder, job)
