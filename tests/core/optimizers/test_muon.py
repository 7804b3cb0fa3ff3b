"""Muon: each update is near to orthogonal, of AdamW's size, and the iteration is the post's."""

from dataclasses import replace

import pytest
import torch
from wan_train.core.errors import ConfigError
from wan_train.core.settings.ema import EmaOptions
from wan_train.core.settings.optimizer import OptimizerOptions
from wan_train.core.train.optimizers import build_optimizer
from wan_train.core.train.start import check_optimizer
from wan_train.tests.core.optimizers.helpers import assert_close, expect, make_parameters, train

OPTIONS = OptimizerOptions(name="muon", learning_rate=1e-2, weight_decay=0.1, beta1=0.95)
needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch 2.9 or newer")


def orthogonal(matrix):
    """Five steps of the post's polynomial on the singular values of the matrix, by its decomposition."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left @ torch.diag(values) @ right


def rule(weight, state, gradient, _step):
    state["mean"] = 0.95 * state.get("mean", torch.zeros_like(weight)) + 0.05 * gradient
    ahead = 0.95 * state["mean"] + 0.05 * gradient
    return weight * (1 - 1e-2 * 0.1) - 1e-2 * 0.2 * max(weight.shape) ** 0.5 * orthogonal(ahead)


@needs_muon
def test_it_is_the_posts_algorithm():
    """Its products are in bf16, so that it is near: within a hundredth of what it moved."""
    parameters, _ = train(OPTIONS, steps=10)
    start = [parameter.detach().double() for parameter in make_parameters()]
    for ours, exact, before in zip(parameters, expect(rule, steps=10), start, strict=True):
        assert (ours.detach() - exact).norm() < 0.01 * (exact - before).norm()


@needs_muon
def test_all_directions_of_a_and_b_move_alike():
    before, (after, _) = make_parameters(), train(replace(OPTIONS, weight_decay=0.0), steps=1)
    for one, other in zip(before, after, strict=True):
        values = torch.linalg.svdvals((other - one).detach() / (1e-2 * 0.2 * 96**0.5))
        assert len(values) == 4
        assert 0.6 < values.min() <= values.max() < 1.3


@needs_muon
def test_its_arguments_reach_it():
    one, _ = train(OPTIONS, steps=3)
    for args in ("nesterov=False", "ns_steps=2"):
        other, _ = train(replace(OPTIONS, args=args), steps=3)
        assert not any(map(torch.equal, one, other))


@needs_muon
def test_what_is_no_matrix_is_refused():
    with pytest.raises(ConfigError, match="muon trains matrices alone, and 1 of the adapter's 2 tensors is none"):
        build_optimizer(make_parameters(((4, 8), (8,))), OPTIONS)


def test_an_older_pytorch_is_told(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(ConfigError, match=r"muon needs PyTorch 2\.9 or newer, and this is"):
        check_optimizer(OPTIONS, EmaOptions())


def test_weights_are_what_they_were_without_a_step():
    assert_close(make_parameters(), expect(lambda weight, *_: weight))
