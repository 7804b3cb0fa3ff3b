"""The alarm: a training that is broken raises it, one that works does not, however its losses jump."""

import math
import random
from dataclasses import replace

import pytest
import torch
from wan_train.core.train.divergence import PATIENCE, WINDOW, Divergence, WatchDivergence
from wan_train.core.train.events import DIVERGES, EventReader, EventWriter
from wan_train.core.train.history import read_long_history
from wan_train.core.train.run import LogStep
from wan_train.tests.core.train.helpers import make_trainer


def alarms(losses, norms=None):
    rule = Divergence()
    pairs = zip(losses, norms or [1.0] * len(losses), strict=True)
    return [(step, said) for step, (loss, norm) in enumerate(pairs, 1) if (said := rule.add(step, loss, norm))]


def jumping(count, mean=0.1, seed=3):
    """Losses as those of a run, which jump by a factor of 25 from noise level to noise level."""
    draw = random.Random(seed)
    return [mean * math.exp(draw.uniform(-1.6, 1.6)) for _ in range(count)]


@pytest.mark.parametrize("seed", range(10))
def test_losses_that_jump_raise_no_alarm(seed):
    assert alarms(jumping(5000, seed=seed)) == []


def test_a_few_steps_that_are_far_off_raise_no_alarm():
    losses = jumping(1000)
    losses[500] = losses[501] = 1e4
    assert alarms(losses, [1e6 if step == 500 else 1.0 for step in range(1000)]) == []


def test_a_loss_that_stays_high_is_told_once():
    found = alarms([*jumping(300), *jumping(500, mean=0.8)])
    ((step, said),) = found
    assert 300 + PATIENCE <= step <= 300 + PATIENCE + WINDOW
    assert "times its best" in said


def test_what_was_told_is_told_again_after_it_was_well_again():
    assert len(alarms([*jumping(300), *jumping(300, mean=0.8), *jumping(600), *jumping(300, mean=0.8)])) == 2


def test_gradients_that_explode_are_told():
    ((step, said),) = alarms([0.1] * 400, [1.0] * 200 + [500.0] * 200)
    assert 200 < step < 300
    assert "gradient norm" in said


def test_numbers_that_are_none_are_passed_over():
    assert alarms([math.nan, math.inf, 0.0] * 100, [None, math.inf, 0.0] * 100) == []


class Louder:
    """Batches whose latents are ten times as large from batch 40 on, which the model can't have learnt."""

    def __init__(self, batches):
        self._batches = batches

    def get(self, index):
        batch = self._batches.get(index)
        return batch if index < 40 else replace(batch, latents=10 * batch.latents)


def test_a_run_whose_loss_stays_far_up_says_so_and_goes_on(job, tmp_path):
    job = replace(job, loop=replace(job.loop, steps=130))
    events = EventWriter(tmp_path / "events.jsonl")
    trainer = make_trainer(job, [LogStep(events, torch.device("cpu")), WatchDivergence(events)])
    trainer.batches = Louder(trainer.batches)
    trainer.train()
    (warning,) = [event for event in EventReader(events.path).read() if event["event"] == "warning"]
    assert warning["about"] == DIVERGES
    assert warning["step"] >= 40 + PATIENCE
    history = read_long_history(events.path)
    assert history.losses.last_step == 130
    assert history.alarms == [(warning["step"], warning["message"])]
    assert history.warnings == [warning["message"]]


def test_a_run_that_goes_on_knows_its_best(tmp_path):
    events = EventWriter(tmp_path / "events.jsonl")
    before = [(step, 0.1, 1.0) for step in range(1, 101)]
    rule = WatchDivergence(events, before)._rule
    assert any(rule.add(step, 0.9, 1.0) for step in range(101, 101 + 3 * PATIENCE))


def test_an_alarm_of_steps_that_are_done_again_is_forgotten(tmp_path):
    events = EventWriter(tmp_path / "events.jsonl")
    for step in (1, 2, 3):
        events.write("step", step=step, loss=0.5)
    events.write("warning", message="it diverges", about=DIVERGES, step=3)
    events.write("start", step=2)
    assert read_long_history(events.path).alarms == []
