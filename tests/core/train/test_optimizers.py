"""The update: torch's fused kernels against its plain ones, bad gradients, and states that go from one to the other."""

import copy

import pytest
import torch
from wan_train.core.settings.optimizer import OptimizerOptions
from wan_train.core.train.optimizers import build_optimizer, load_optimizer, update_if

GOOD, BAD = torch.tensor(True), torch.tensor(False)
OPTIONS = OptimizerOptions(learning_rate=1e-2, weight_decay=0.1)


def make_parameters():
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((64, 80), (80, 64))]


def plain_adamw(parameters):
    return torch.optim.AdamW(
        parameters, lr=OPTIONS.learning_rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1, foreach=False
    )


def set_gradients(parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def advance(parameters, optimizer, seeds):
    for seed in seeds:
        set_gradients(parameters, seed)
        update_if(GOOD, optimizer)


def snapshot(parameters, optimizer):
    return copy.deepcopy([p.data for p in parameters]), copy.deepcopy(optimizer.state_dict()["state"])


def equal_states(a, b):
    return all(
        torch.equal(a[i][key], b[i][key]) if isinstance(a[i][key], torch.Tensor) else a[i][key] == b[i][key]
        for i in b
        for key in b[i]
    )


def test_fused_adamw_is_adamw_to_rounding():
    ours, theirs = make_parameters(), make_parameters()
    advance(ours, build_optimizer(ours, OPTIONS), range(20))
    plain = plain_adamw(theirs)
    advance(theirs, plain, range(20))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_bad_gradient_leaves_weights_and_state_as_they_were():
    parameters = make_parameters()
    optimizer = build_optimizer(parameters, OPTIONS)
    advance(parameters, optimizer, range(3))
    weights, state = snapshot(parameters, optimizer)
    set_gradients(parameters, 3)
    parameters[0].grad[5, 5] = float("inf")
    update_if(BAD, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(parameters, weights, strict=True))
    assert equal_states(optimizer.state_dict()["state"], state)
    advance(parameters, optimizer, [4])  # and the next good one counts
    assert not torch.equal(parameters[0], weights[0])


@pytest.mark.parametrize("name", ["adamw8bit", "foreach"])
def test_a_bad_gradient_is_kept_out_of_other_optimizers(name):
    parameters = make_parameters()
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes")
        optimizer = build_optimizer(parameters, OptimizerOptions(name="adamw8bit", learning_rate=1e-2))
    else:
        optimizer = torch.optim.AdamW(parameters, lr=1e-2, foreach=True)
    advance(parameters, optimizer, range(3))
    set_gradients(parameters, 3)
    parameters[1].grad[0] = float("nan")
    update_if(BAD, optimizer)
    advance(parameters, optimizer, [4])
    assert all(p.isfinite().all() for p in parameters)
    for state in optimizer.state_dict()["state"].values():
        assert all(v.float().isfinite().all() for v in state.values() if isinstance(v, torch.Tensor))


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_a_state_that_went_through_a_file_goes_on_exactly(name, tmp_path):
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    options = OptimizerOptions(name=name, learning_rate=1e-2)
    whole = make_parameters()
    optimizer = build_optimizer(whole, options)
    advance(whole, optimizer, range(3))
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    parts = [torch.nn.Parameter(p.detach().clone()) for p in whole]
    resumed = build_optimizer(parts, options)
    load_optimizer(resumed, torch.load(tmp_path / "state.pt"))
    advance(whole, optimizer, range(3, 6))
    advance(parts, resumed, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_a_state_of_plain_kernels_goes_on_in_fused_ones():
    theirs = make_parameters()
    plain = plain_adamw(theirs)
    advance(theirs, plain, range(3))
    ours = [torch.nn.Parameter(p.detach().clone()) for p in theirs]
    optimizer = build_optimizer(ours, OPTIONS)
    load_optimizer(optimizer, copy.deepcopy(plain.state_dict()))  # a state is taken over, not copied
    assert optimizer.param_groups[0]["fused"]
    advance(theirs, plain, range(3, 6))
    advance(ours, optimizer, range(3, 6))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
