"""Timesteps, losses and weightings in a run: each option changes its losses, and a run that was stopped goes on exactly."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from wan_train.core.flow.losses import LOSSES
from wan_train.core.flow.timesteps import SAMPLINGS
from wan_train.core.flow.weightings import WEIGHTINGS
from wan_train.core.settings.job import job_from_json, job_to_json
from wan_train.core.settings.loss import LossOptions
from wan_train.core.settings.option import options_of, without_effect
from wan_train.core.settings.timesteps import TimestepOptions
from wan_train.core.train.batches import BatchSchedule, make_draws
from wan_train.core.train.events import EventWriter, read_history
from wan_train.core.train.run import RunStoppedError, run_job
from wan_train.core.train.run_folder import RunFolder
from wan_train.core.train.validation import validation_loss
from wan_train.tests.core.train.helpers import make_sample, make_trainer, train_in_folder

CPU = torch.device("cpu")
# Option -> what it is tried with beside it, and the value that must change the losses.
TRIED = {
    "timesteps": {
        "sampling": ({}, "bell"),
        "shift": ({"sampling": "shifted_uniform"}, 9.0),
        "sigmoid_scale": ({"sampling": "auto_shift"}, 0.3),
        "strata": ({}, 4),
        "bias": ({}, "favor_high_noise"),
        "window": ({"sampling": "sigmoid"}, "squeezed"),
        "curve": ({"sampling": "curve"}, "0:0, 1:1"),
        "logsnr_mean": ({"sampling": "qinglong_flux"}, -40.0),
        "logsnr_std": ({"sampling": "logsnr"}, 5.0),
        "beta_a": ({"sampling": "shifted_beta"}, 0.5),
        "beta_b": ({"sampling": "beta"}, 0.5),
        "shift_cap": ({"sampling": "auto_shift"}, 1.0),
        "mode_scale": ({"sampling": "mode"}, -0.5),
    },
    "loss": {
        "kind": ({}, "mae"),
        "weighting": ({}, "cosmap"),
        "huber_delta": ({"kind": "smooth_l1"}, 0.2),
        "huber_c": ({"kind": "pseudo_huber"}, 0.5),
        "huber_schedule": ({"kind": "soft_l1"}, "snr"),
        "motion_strength": ({"weighting": "motion"}, 3.0),
        "differential_guidance": ({}, 3.0),
        "contrastive_guidance": ({}, 3.0),
        "contrastive_schedule": ({"contrastive_guidance": 3.0}, "sigma"),
        "contrastive_cfg_zero": ({"contrastive_guidance": 3.0}, True),
    },
}
OF_A_STAGE = {"sigma_min", "sigma_max"}
MIXES = [
    (
        {"sampling": "auto_shift", "bias": "favor_low_noise", "strata": 8},
        {"kind": "pseudo_huber", "huber_schedule": "exponential", "weighting": "motion"},
    ),
    (
        {"sampling": "qinglong_flux", "window": "squeezed"},
        {"kind": "smooth_l1", "weighting": "weighted", "differential_guidance": 3.0},
    ),
    (
        {"sampling": "curve", "curve": "0:1, 0.3:4, 1:0.5", "strata": 3},
        {"kind": "mae", "weighting": "frame_motion"},
    ),
]  # fmt: skip


def changed(job, group, **changes):
    return replace(job, **{group: replace(getattr(job, group), **changes)})


def losses_of(job, steps=3):
    trainer = make_trainer(job)
    return [trainer.train_step().read().loss for _ in range(steps)]


def test_every_option_is_tried():
    for group, cls in (("timesteps", TimestepOptions), ("loss", LossOptions)):
        assert TRIED[group].keys() == {item.name for item in options_of(cls)} - OF_A_STAGE


@pytest.mark.grid(3)
@pytest.mark.parametrize(("group", "name"), [(group, name) for group, tried in TRIED.items() for name in tried])
def test_an_option_changes_the_losses_and_the_key_of_a_run(job, group, name):
    beside, value = TRIED[group][name]
    before = changed(job, group, **beside)
    after = changed(before, group, **{name: value})
    assert before.key != after.key
    assert losses_of(before) != losses_of(after)
    assert without_effect(getattr(after, group)) == []
    if beside:
        alone = replace(type(getattr(job, group))(), **{name: value})
        assert any("has no effect with" in sentence for sentence in without_effect(alone))


def test_nothing_that_is_new_is_in_the_key_of_a_run_without_it(job):
    new = {"timesteps": {}, "loss": {}}
    for group, cls in (("timesteps", TimestepOptions), ("loss", LossOptions)):
        new[group] = {item.name: item.default for item in options_of(cls) if item.born > 1}
        assert changed(job, group, **new[group]).key == job.key
    assert len(new["timesteps"]) == 9


def test_a_job_with_all_of_it_is_read_again_as_it_was(job):
    for timesteps, loss in MIXES:
        written = changed(changed(job, "timesteps", **timesteps), "loss", **loss)
        assert job_from_json(job_to_json(written)) == written


@pytest.mark.parametrize(("timesteps", "loss"), MIXES, ids=["one", "two", "three"])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path, job, timesteps, loss):
    job = changed(changed(job, "timesteps", **timesteps), "loss", **loss)
    job = changed(job, "loop", batch_size=2)  # the batches have 2, 1 and 1 samples
    losses, lora, _ = train_in_folder(tmp_path, job, "whole", CPU)
    folder = RunFolder(tmp_path / "runs" / "stopped")
    folder.path.mkdir(parents=True)
    folder.write_job(job)
    events = EventWriter(folder.events_path)

    def should_stop():
        return max(read_history(folder.events_path).losses, default=0) >= 3

    with pytest.raises(RunStoppedError):
        run_job(folder, events, CPU, should_stop)
    run_job(folder, events, CPU, lambda: False)
    again = read_history(folder.events_path).losses
    assert [again[step] for step in sorted(again)] == losses
    found = load_file(folder.finished_lora(job.loop.steps))
    assert found.keys() == lora.keys()
    assert all(torch.equal(found[name], lora[name]) for name in lora)


@pytest.fixture
def uneven(job, tmp_path):
    """Batches of 4, 4, 3 and 2 samples in each epoch."""
    shapes = [(16, 2, 4, 4)] * 11 + [(16, 1, 4, 6)] * 2
    samples = tuple(make_sample(tmp_path, f"s{i}", shape=shape) for i, shape in enumerate(shapes))
    return changed(changed(job, "data", samples=samples), "loop", batch_size=4)


def test_strata_leave_no_cell_out_where_batches_are_short(uneven):
    strata = 13
    job = replace(uneven, timesteps=TimestepOptions(strata=strata))
    schedule = BatchSchedule.of(job.data, job.loop)
    assert sorted(len(schedule.samples_at(i)) for i in range(schedule.batches_per_epoch)) == [2, 3, 4, 4]
    for epoch in range(3):
        indices = range(epoch * schedule.batches_per_epoch, (epoch + 1) * schedule.batches_per_epoch)
        sigmas = torch.cat([make_draws(job, schedule.load(i), i).sigmas for i in indices])
        assert sorted((sigmas * strata).floor().int().tolist()) == list(range(strata))


def test_the_number_of_draws_before_a_batch_depends_on_its_index_alone(uneven):
    forwards, backwards = (BatchSchedule.of(uneven.data, uneven.loop) for _ in range(2))
    counts = [forwards.draws_before(i) for i in range(12)]
    assert [backwards.draws_before(i) for i in reversed(range(12))] == counts[::-1]
    sizes = [len(forwards.samples_at(i)) for i in range(12)]
    assert counts == [sum(sizes[:i]) for i in range(12)]


def test_where_all_batches_are_full_strata_draw_what_they_always_drew(job, tmp_path):
    samples = tuple(make_sample(tmp_path, f"s{i}") for i in range(6))
    job = changed(changed(job, "data", samples=samples), "loop", batch_size=2)
    job = changed(job, "timesteps", strata=5)
    schedule = BatchSchedule.of(job.data, job.loop)
    for index in range(9):
        batch = schedule.load(index)
        before = make_draws(
            job, replace(batch, first_draw=None), index
        )  # numbered by batch_size, as up to version 0.1.0
        assert torch.equal(make_draws(job, batch, index).sigmas, before.sigmas)


def test_without_strata_the_draws_are_numbered_as_they_were(uneven):
    schedule = BatchSchedule.of(uneven.data, uneven.loop)
    for index in range(8):
        batch = schedule.load(index)
        now, before = (make_draws(uneven, each, index) for each in (batch, replace(batch, first_draw=None)))
        assert torch.equal(now.sigmas, before.sigmas)
        assert torch.equal(now.noise, before.noise)


def test_each_batch_has_the_levels_of_its_own_size(uneven):
    """Two sizes, two shifts: the picture's draws at the same places of the distribution are less noisy."""
    job = replace(uneven, timesteps=TimestepOptions(sampling="auto_shift"))
    schedule = BatchSchedule.of(job.data, job.loop)
    batch = schedule.load(0)
    larger = replace(batch, latents=torch.zeros(len(batch.names), 16, 21, 60, 104))
    assert (make_draws(job, batch, 0).sigmas < make_draws(job, larger, 0).sigmas).all()


def test_validation_measures_each_sample_at_the_levels_of_its_size(job, tmp_path):
    small = make_sample(tmp_path, "held", held_out=True)
    large = make_sample(tmp_path, "held large", shape=(16, 3, 32, 32), held_out=True)
    job = replace(job, timesteps=TimestepOptions(sampling="auto_shift"))
    seen = []
    for sample in (small, large):
        trainer = make_trainer(changed(job, "data", samples=(*job.data.samples, sample)))
        trainer.loss_at = lambda *given: seen.append(given[-1].item()) or torch.zeros(1)
        validation_loss(trainer)
    assert all(one < other for one, other in zip(seen[:8], seen[8:], strict=True))


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_differential_guidance_is_a_scale_of_the_gradient(job, scale):
    """With the squared error: gradients times the scale, the loss times its square."""
    found = []
    for factor in (1.0, scale):
        trainer = make_trainer(changed(job, "loss", differential_guidance=factor))
        noisy = trainer.add_noise(trainer.batches.get(0), 0)
        ((term,),) = trainer.objective.terms(noisy, trainer.forwards)
        term.losses.sum().backward()
        found.append((term.losses.detach(), [p.grad for p in trainer.parameters if p.grad is not None]))
    (loss, plain), (scaled_loss, scaled) = found
    torch.testing.assert_close(scaled_loss, scale**2 * loss)
    assert plain
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(other, scale * one, rtol=1e-4, atol=1e-9)


@pytest.mark.grid(3)
@pytest.mark.parametrize("name", SAMPLINGS.names)
def test_a_run_trains_with_each_sampling(job, name):
    assert all(0 < loss < 100 for loss in losses_of(changed(job, "timesteps", sampling=name), steps=2))


@pytest.mark.parametrize("name", LOSSES.names)
def test_a_run_trains_with_each_loss(job, name):
    assert all(0 < loss < 100 for loss in losses_of(changed(job, "loss", kind=name), steps=2))


@pytest.mark.parametrize("name", WEIGHTINGS.names)
def test_a_run_trains_with_each_weighting(job, name):
    assert all(0 < loss < 1e4 for loss in losses_of(changed(job, "loss", weighting=name), steps=2))
