"""Huber's loss: its numbers, its gradient, and a run with it."""

from dataclasses import replace

import pytest
import torch
from wan_train.core.flow.objective import flow_loss
from wan_train.core.settings.loss import LossOptions
from wan_train.tests.core.train.helpers import make_trainer

HUBER = LossOptions(kind="huber")


def of(*distances):
    pred = torch.tensor(distances).view(-1, 1, 1, 1, 1)
    return flow_loss(pred, torch.zeros_like(pred), options=HUBER)


def test_it_is_half_the_square_up_to_one_and_a_straight_line_beyond():
    assert of(0.0, 0.5, -1.0, 1.0, 2.0, -10.0).tolist() == [0.0, 0.125, 0.5, 0.5, 1.5, 9.5]


def test_of_an_outlier_the_gradient_is_no_larger_than_one():
    pred = torch.tensor([0.5, 1.0, 100.0, -100.0]).view(-1, 1, 1, 1, 1).requires_grad_()
    flow_loss(pred, torch.zeros_like(pred), options=HUBER).sum().backward()
    assert pred.grad.flatten().tolist() == [0.5, 1.0, 1.0, -1.0]


def test_a_run_with_it_learns(job):
    """The seeded losses are half of those with the squared error, or less; and the weights become others."""
    job = replace(job, loop=replace(job.loop, batch_size=2))
    ours, theirs = make_trainer(replace(job, loss=HUBER)), make_trainer(job)
    for _ in range(4):
        huber, mse = ours.train_step().read(), theirs.train_step().read()
        assert 0 < huber.loss < mse.loss / 2
    assert not torch.equal(ours.parameters[0], theirs.parameters[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_is_computed_in_float32(dtype):
    pred = torch.full((1, 1, 1, 1, 1), 3.0, dtype=dtype)
    loss = flow_loss(pred, torch.full((1, 1, 1, 1, 1), 2.9999), options=HUBER)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.5e-8, rel=1e-2)
