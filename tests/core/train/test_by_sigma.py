"""Losses by noise level: what a step writes, and what is read of it."""

from dataclasses import replace

import pytest
import torch
from wan_train.core.facts import SIGMA_BINS
from wan_train.core.train.by_sigma import LossesBySigma, groups_of_window
from wan_train.core.train.events import EventWriter
from wan_train.core.train.history import read_long_history
from wan_train.core.train.run import LogStep
from wan_train.tests.core.train.helpers import compute_loss, make_trainer


def test_a_step_writes_the_mean_loss_of_its_samples_in_each_bin(job, tmp_path):
    job = replace(job, loop=replace(job.loop, gradient_accumulation=6, steps=1, caption_dropout=0.0))
    sums, counts = {}, {}
    apart = make_trainer(job)
    for index in range(6):
        losses, sigmas = compute_loss(apart, apart.batches.get(index), index)
        for loss, sigma in zip(losses.tolist(), sigmas.tolist(), strict=True):
            place = min(int(sigma * SIGMA_BINS), SIGMA_BINS - 1)
            sums[place], counts[place] = sums.get(place, 0.0) + loss, counts.get(place, 0) + 1
    events = EventWriter(tmp_path / "events.jsonl")
    make_trainer(job, [LogStep(events, torch.device("cpu"))]).train()
    history = read_long_history(events.path)
    assert len(sums) > 1
    for place, total in sums.items():
        ((step, loss),) = history.by_sigma.drawn((place, place + 1), 1).points
        assert (step, loss) == (1, pytest.approx(total / counts[place], rel=1e-5))
    assert history.by_sigma.num_means == 0


def test_a_diary_without_bins_has_its_steps_at_their_mean_sigma():
    losses = LossesBySigma()
    losses.add({"event": "step", "step": 1, "loss": 0.5, "sigma": 0.9})
    losses.add({"event": "step", "step": 2, "loss": 0.2, "sigma": 1.0})
    assert losses.drawn((36, 40), 1).points == [(1, 0.5), (2, 0.2)]
    assert losses.drawn((0, 36), 1).points == []
    assert losses.num_means == 2


def test_a_group_of_bins_has_the_mean_of_its_samples():
    losses = LossesBySigma()
    losses.add({"event": "step", "step": 1, "loss": 0.5, "bins": [[2, 0.6, 3], [3, 0.2, 1], [9, 9.0, 1]]})
    losses.add({"event": "step", "step": 2, "loss": 0.5, "bins": [[9, 0.5, 1]]})
    ((step, loss),) = losses.drawn((2, 4), 1).points
    assert (step, loss) == (1, pytest.approx(0.5))


@pytest.mark.parametrize(
    "bins", [[[40, 0.5, 1]], [[-1, 0.5, 1]], [["x", 1, 1]], [3], [[1]], [[True, 0.5, 1]], [[1, None, 1]], [[0.5, 1, 1]]]
)
def test_bins_that_are_none_are_passed_over(bins):
    losses = LossesBySigma()
    losses.add({"event": "step", "step": 1, "loss": 0.5, "bins": [*bins, [2, 0.25, 1]]})
    assert losses.drawn((0, 40), 1).points == [(1, 0.25)]


def test_what_was_done_again_counts_once():
    losses = LossesBySigma()
    for step in (1, 2, 3):
        losses.add({"event": "step", "step": step, "loss": 0.5, "bins": [[2, 0.5, 1]]})
    losses.cut(2)
    losses.add({"event": "step", "step": 2, "loss": 0.1, "bins": [[2, 0.1, 1]]})
    assert losses.drawn((2, 3), 1).points == [(1, 0.5), (2, 0.1)]


@pytest.mark.parametrize(
    ("window", "groups"),
    [
        ((0.875, 1.0), [(35, 36), (36, 37), (37, 38), (38, 39), (39, 40)]),
        ((0.9, 1.0), [(36, 37), (37, 38), (38, 39), (39, 40)]),
        ((0.0, 0.875), [(0, 7), (7, 14), (14, 21), (21, 28), (28, 35)]),
        ((0.0, 1.0), [(0, 8), (8, 16), (16, 24), (24, 32), (32, 40)]),
    ],
)
def test_the_groups_cover_an_experts_window(window, groups):
    assert groups_of_window(*window) == groups
