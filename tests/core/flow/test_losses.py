"""Losses and weightings by name: the objective honours both, and refuses what it does not know."""

from dataclasses import fields

import pytest
import torch
from wan_train.core.errors import ConfigError
from wan_train.core.flow import objective
from wan_train.core.flow.losses import LOSSES, Loss
from wan_train.core.flow.objective import flow_loss, weigh
from wan_train.core.flow.timesteps import SAMPLINGS
from wan_train.core.flow.weightings import WEIGHTINGS, Weighting
from wan_train.core.optimizers import OPTIMIZERS
from wan_train.core.schedules import SCHEDULES
from wan_train.core.settings.loss import LossOptions
from wan_train.core.settings.optimizer import OptimizerOptions
from wan_train.core.settings.schedule import ScheduleOptions
from wan_train.core.settings.timesteps import TimestepOptions

OPTIONS = {
    "flow.losses": LossOptions,
    "flow.weightings": LossOptions,
    "flow.timesteps": TimestepOptions,
    "optimizers": OptimizerOptions,
    "schedules": ScheduleOptions,
}


@pytest.mark.parametrize("methods", [LOSSES, WEIGHTINGS, SAMPLINGS, OPTIMIZERS, SCHEDULES], ids=lambda m: m.folder)
def test_every_method_is_there_and_says_in_a_clause_what_it_does(methods):
    assert methods.names
    for name in methods.names:
        method = methods.get(name)
        help = method.help
        assert set(method.uses) <= {field.name for field in fields(OPTIONS[methods.folder])}
        assert help
        assert not help.endswith(".")
        assert "\n" not in help
    with pytest.raises(
        ConfigError, match=f"the {methods.word} 'nonsense' is not known: choose one of {methods.names[0]}"
    ):
        methods.get("nonsense")


@pytest.mark.parametrize("name", LOSSES.names)
def test_a_loss_is_float32_nothing_at_the_target_and_grows_away_from_it(name):
    target = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    options = LossOptions(kind=name)
    assert flow_loss(target.clone(), target, options=options).tolist() == [0.0, 0.0]
    near, far = (flow_loss(target.bfloat16() + d, target, options=options) for d in (0.5, 2.0))
    assert near.dtype == torch.float32
    assert (near > 0).all()
    assert (near < far).all()
    pred = (target + 0.5).requires_grad_()
    flow_loss(pred, target, options=options).sum().backward()
    assert (pred.grad > 0).all()  # the gradient leads back to the target


@pytest.mark.parametrize("name", LOSSES.names)
def test_frames_that_are_given_do_not_count(name):
    pred, target = torch.zeros(1, 2, 3, 4, 4), torch.ones(1, 2, 3, 4, 4)
    target[:, :, 0] = 100.0
    options = LossOptions(kind=name)
    assert flow_loss(pred, target, options=options, given_frames=1) < flow_loss(pred, target, options=options)
    assert torch.equal(
        flow_loss(pred, target, options=options, given_frames=1),
        flow_loss(pred[:, :, 1:], target[:, :, 1:], options=options),
    )


@pytest.mark.parametrize("name", WEIGHTINGS.names)
def test_a_weighting_gives_each_sample_a_finite_weight(name):
    sigmas = torch.linspace(0.001, 1.0, 50)
    weights = WEIGHTINGS.get(name).weight(sigmas, LossOptions(weighting=name))
    assert weights.shape == sigmas.shape
    assert weights.dtype == torch.float32
    assert weights.isfinite().all()
    assert (weights >= 0).all()


def test_without_a_weighting_a_loss_stays_as_it_is():
    losses, sigmas = torch.rand(9), torch.rand(9)
    assert torch.equal(weigh(losses, sigmas, LossOptions()), losses)


def test_losses_and_weights_are_those_of_the_methods(monkeypatch):
    """A loss of absolute values and a weight of sigma, as files beside the others would be."""
    absolute = Loss(help="", error=lambda pred, target, _options: (pred - target).abs())
    by_sigma = Weighting(help="", weight=lambda sigmas, _options: sigmas)
    monkeypatch.setattr(objective, "LOSSES", Known(absolute))
    monkeypatch.setattr(objective, "WEIGHTINGS", Known(by_sigma))
    options = LossOptions()
    losses = flow_loss(
        torch.zeros(2, 1, 1, 1, 2), torch.tensor([[3.0, 5.0], [1.0, 1.0]]).view(2, 1, 1, 1, 2), options=options
    )
    assert losses.tolist() == [4.0, 1.0]
    assert weigh(losses, torch.tensor([0.5, 0.25]), options).tolist() == [2.0, 0.25]


class Known:
    def __init__(self, method):
        self.method = method

    def get(self, _name):
        return self.method
