"""The schedules that came later, against transformers' own, and by hand."""

from dataclasses import replace

import pytest
import torch
from wan_train.core.settings.option import without_effect
from wan_train.core.settings.schedule import ScheduleOptions
from wan_train.core.train.schedule import learning_rate_scale
from wan_train.tests.core.optimizers.helpers import need

STEPS, WARM_UP = 120, 20


def scales(options):
    return [learning_rate_scale(step, STEPS, options) for step in range(WARM_UP, STEPS)]


def of_transformers(name, **facts):
    """Its factors on the learning rate after the warm-up; it counts the warm-up from 0, which is another matter."""
    need("transformers")
    from transformers import optimization

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = getattr(optimization, name)(optimizer, num_warmup_steps=WARM_UP, **facts)
    found = []
    for _ in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found[WARM_UP:]


@pytest.mark.parametrize("cycles", [1, 3, 7])
def test_cosine_with_restarts_is_that_of_transformers(cycles):
    ours = scales(ScheduleOptions(kind="cosine_restarts", warmup_steps=WARM_UP, cycles=cycles))
    name = "get_cosine_with_hard_restarts_schedule_with_warmup"
    assert ours == pytest.approx(of_transformers(name, num_training_steps=STEPS, num_cycles=cycles), abs=1e-9)


def test_one_cycle_is_the_cosine():
    restarts, plain = (scales(ScheduleOptions(kind=kind, floor=0.1)) for kind in ("cosine_restarts", "cosine"))
    assert restarts == pytest.approx(plain, abs=1e-12)


@pytest.mark.parametrize(("share", "floor"), [(0.2, 0.0), (0.5, 0.1), (1.0, 0.0)])
def test_stable_then_decay_is_that_of_transformers(share, floor):
    options = ScheduleOptions(kind="warmup_stable_decay", warmup_steps=WARM_UP, decay_share=share, floor=floor)
    falling = round(share * (STEPS - WARM_UP))
    facts = {"num_decay_steps": falling, "num_training_steps": STEPS, "min_lr_ratio": floor}
    assert scales(options) == pytest.approx(of_transformers("get_wsd_schedule", **facts), abs=1e-9)


def test_rex_is_the_formula_of_musubi_tuner():
    """Of the share z that is left: m + (1 - m) z / (0.1 + 0.9 z)."""
    options = ScheduleOptions(kind="rex", warmup_steps=WARM_UP, floor=0.01)
    left = [1 - step / 100 for step in range(100)]
    assert scales(options) == pytest.approx([0.01 + 0.99 * z / (0.1 + 0.9 * z) for z in left], abs=1e-12)


def test_a_warm_up_longer_than_the_run_is_allowed_and_told(job):
    schedule = ScheduleOptions(kind="cosine", warmup_steps=400_000)
    (sentence,) = replace(job, schedule=schedule).warnings()
    assert "warmup_steps (400000) is not shorter than the run (6 steps)" in sentence
    assert "rises to 1.5e-05 of learning_rate" in sentence
    assert learning_rate_scale(5, 6, schedule) == pytest.approx(1.5e-5)


def test_options_of_other_schedules_are_told():
    assert without_effect(ScheduleOptions(kind="cosine", cycles=2, decay_share=0.5)) == [
        "lr_cycles has no effect with lr_schedule cosine; it belongs to cosine_restarts.",
        "lr_decay_share has no effect with lr_schedule cosine; it belongs to warmup_stable_decay.",
    ]
