"""A limit for the norm of each layer's change: as kohya's sd-scripts and musubi-tuner have it."""

import pytest
import torch
from torch import nn
from wan_train.core.adapters.norms import NormLimit
from wan_train.core.adapters.peft_hooks import factors_of, lora_layers
from wan_train.core.errors import ConfigError
from wan_train.tests.core.train.helpers import make_trainer


@pytest.fixture
def model(job):
    trainer = make_trainer(job)
    with torch.no_grad():
        for number, parameter in enumerate(trainer.parameters):
            values = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.copy_(values * (0.02 if number % 3 else 0.4))
    return trainer.model


def pairs_of(model):
    layers = [factors_of(layer) for layer in lora_layers(model).values()]
    return [(layer.down.detach().clone(), layer.up.detach().clone(), layer.scale) for layer in layers]


def are_equal(before, after):
    return all(torch.equal(one[i], other[i]) for one, other in zip(before, after, strict=True) for i in range(2))


def theirs(down, up, scale, most):
    """musubi-tuner, networks/lora.py, `apply_max_norm_regularization`, on one layer."""
    updown = (up @ down) * scale
    norm = updown.norm().clamp(min=most / 2)
    desired = torch.clamp(norm, max=most)
    ratio = desired / norm
    return (down, up) if ratio == 1 else (down * ratio**0.5, up * ratio**0.5)


def test_it_is_what_the_others_do(model):
    norms = sorted((up @ down).norm().item() * scale for down, up, scale in pairs_of(model))
    limit = norms[len(norms) // 2] * 1.001
    before = pairs_of(model)
    NormLimit(model, limit)(torch.tensor(True))
    scaled = 0
    for (down, up, scale), (now_down, now_up, _) in zip(before, pairs_of(model), strict=True):
        wanted = theirs(down, up, scale, limit)
        scaled += wanted[0] is not down
        for found, expected in zip((now_down, now_up), wanted, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
        if wanted[0] is down:
            assert torch.equal(now_down, down)
            assert torch.equal(now_up, up)
        assert (now_up @ now_down).norm() * scale <= limit * (1 + 1e-5)
    assert 0 < scaled < len(before)


def test_an_update_that_was_not_made_changes_nothing(model):
    before = pairs_of(model)
    NormLimit(model, 1e-6)(torch.tensor(False))
    assert are_equal(before, pairs_of(model))


def test_a_lora_that_does_nothing_yet_stays_so(job):
    model = make_trainer(job).model
    before = pairs_of(model)
    NormLimit(model, 0.5)(torch.tensor(True))
    assert are_equal(before, pairs_of(model))


def test_what_is_no_lora_is_refused():
    with pytest.raises(ConfigError, match="max_weight_norm is for LoRAs"):
        NormLimit(nn.Sequential(nn.Linear(2, 2)), 1.0)
