"""The update: torch's fused kernels against its plain ones, bad gradients, and states that go from one to the other."""

import copy
from dataclasses import replace

import pytest
import torch
from wan_train.core.errors import ConfigError
from wan_train.core.optimizers import OPTIMIZERS
from wan_train.core.settings.optimizer import OptimizerOptions
from wan_train.core.settings.option import without_effect
from wan_train.core.train.optimizers import (
    build_optimizer,
    check_optimizer_state,
    clip_gradients,
    load_optimizer,
    set_learning_rate,
    update_if,
)
from wan_train.tests.core.optimizers.helpers import need

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
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal_states(a[key], b[key]) for key in a)
    return a == b


def test_fused_adamw_is_adamw_to_rounding():
    ours, theirs = make_parameters(), make_parameters()
    advance(ours, build_optimizer(ours, OPTIONS), range(20))
    plain = plain_adamw(theirs)
    advance(theirs, plain, range(20))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


OTHERS = {  # none of ours, with each kind of state: two moments, a momentum, one that is lazily made, a counter on the host
    "foreach AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, foreach=True),
    "one by one AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, amsgrad=True, foreach=False),
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, momentum=0.5, centered=True),
}


def build_any(name, parameters):
    if name in OTHERS:
        return OTHERS[name](parameters)
    need(*OPTIMIZERS.get(name).packages)
    if problem := OPTIMIZERS.get(name).problem(options_of(name)):
        pytest.skip(problem)  # muon, of an older PyTorch
    return build_optimizer(parameters, options_of(name))


def options_of(name):
    path = "torch.optim.NAdam" if name == "custom" else ""  # which replaces none of its state, and counts in it
    return OptimizerOptions(name=name, learning_rate=1e-2, weight_decay=0.1, path=path)


@pytest.mark.parametrize("name", [*OPTIMIZERS.names, *OTHERS])
def test_a_bad_gradient_leaves_weights_and_state_as_they_were(name):
    parameters = make_parameters()
    optimizer = build_any(name, parameters)
    advance(parameters, optimizer, range(3))
    weights, state = snapshot(parameters, optimizer)
    for bad in (float("inf"), float("nan")):
        set_gradients(parameters, 3)
        parameters[0].grad[5, 5] = bad
        update_if(BAD, optimizer)()
        assert all(torch.equal(a, b) for a, b in zip(parameters, weights, strict=True))
        assert equal_states(optimizer.state_dict()["state"], state)
    # And the next good one counts, as if there had been no bad one.
    others = make_parameters()
    other = build_any(name, others)
    advance(others, other, range(5))
    advance(parameters, optimizer, [3, 4])
    assert all(torch.equal(a, b) for a, b in zip(parameters, others, strict=True))
    assert not torch.equal(parameters[0], weights[0])


@pytest.mark.parametrize("name", [*OPTIMIZERS.names, *OTHERS])
def test_a_bad_gradient_at_the_very_first_update(name):
    parameters = make_parameters()
    optimizer = build_any(name, parameters)
    weights, _ = snapshot(parameters, optimizer)
    set_gradients(parameters, 0)
    parameters[1].grad[0] = float("nan")
    update_if(BAD, optimizer)()
    assert all(torch.equal(a, b) for a, b in zip(parameters, weights, strict=True))
    others = make_parameters()
    other = build_any(name, others)
    advance(parameters, optimizer, range(3))
    advance(others, other, range(3))
    assert all(torch.equal(a, b) for a, b in zip(parameters, others, strict=True))


@pytest.mark.parametrize("name", [*OPTIMIZERS.names, *OTHERS])
def test_an_update_that_is_made_is_the_optimizers_own(name):
    guarded, free = make_parameters(), make_parameters()
    ours, theirs = build_any(name, guarded), build_any(name, free)
    for seed in range(4):
        advance(guarded, ours, [seed])
        set_gradients(free, seed)
        theirs.step()
    assert all(torch.equal(a, b) for a, b in zip(guarded, free, strict=True))
    assert equal_states(ours.state_dict()["state"], theirs.state_dict()["state"])


@pytest.mark.parametrize("name", OPTIMIZERS.names)
def test_the_state_takes_what_the_planner_counts_and_a_checkpoint_checks(name):
    method, parameters = OPTIMIZERS.get(name), [torch.nn.Parameter(torch.ones(256, 512))]
    optimizer = build_any(name, parameters)
    advance(parameters, optimizer, range(2))
    state = optimizer.state_dict()
    check_optimizer_state(method, optimizer, state)
    values = dict(state["state"][0])
    values |= values.pop("__bnb_optimizer_quant_state__", {})
    edges = sum(parameters[0].shape)  # what is there for blocks of the quantization is no more than a number for each
    tensors = [
        value for key, value in values.items() if isinstance(value, torch.Tensor) and key[:4] not in ("qmap", "absm")
    ]
    found = sum(tensor.nbytes for tensor in tensors if tensor.ndim)
    assert found == method.bytes_of(options_of(name)) * parameters[0].numel() + method.edge_bytes * edges
    for key in method.state:
        with pytest.raises(ValueError, match=f"{key} of parameter 0 has not the parameter's shape"):
            check_optimizer_state(method, optimizer, {**state, "state": {0: {**values, key: values[key][:1]}}})
        less = {k: v for k, v in values.items() if k != key}
        with pytest.raises(ValueError, match="state of parameter 0 has"):
            check_optimizer_state(method, optimizer, {**state, "state": {0: less}})
    assert method.can_offload == hasattr(optimizer, "offload")


@pytest.mark.parametrize("name", OPTIMIZERS.names)
def test_a_state_that_went_through_a_file_goes_on_exactly(name, tmp_path):
    whole = make_parameters()
    optimizer = build_any(name, whole)
    advance(whole, optimizer, range(3))
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    parts = [torch.nn.Parameter(p.detach().clone()) for p in whole]
    resumed = build_any(name, parts)
    load_optimizer(resumed, torch.load(tmp_path / "state.pt"), group_state=OPTIMIZERS.get(name).group_state)
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


def with_lora_plus(parameters, name="adamw", ratio=4.0):
    options = replace(options_of(name), lora_plus=ratio)
    optimizer = build_optimizer(parameters, options, ups=parameters[1:])
    set_learning_rate(optimizer, 1e-2)
    return optimizer


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS.names if not OPTIMIZERS.get(name).is_one_rate])
def test_lora_plus_gives_b_a_multiple_of_the_learning_rate(name):
    """A is trained as without it, B as with a learning rate so many times as large."""
    need(*OPTIMIZERS.get(name).packages)
    ours, plain, fast = make_parameters(), make_parameters(), make_parameters()
    optimizers = with_lora_plus(ours, name), build_any(name, plain), build_any(name, fast)
    set_learning_rate(optimizers[2], 4e-2)
    for parameters, optimizer in zip((ours, plain, fast), optimizers, strict=True):
        advance(parameters, optimizer, range(3))
    assert torch.equal(ours[0], plain[0])
    assert torch.equal(ours[1], fast[1])
    assert not torch.equal(ours[1], plain[1])


def test_lora_plus_of_1_leaves_one_group():
    assert len(with_lora_plus(make_parameters(), ratio=1.0).param_groups) == 1


def test_lora_plus_without_a_second_matrix_is_refused():
    with pytest.raises(ConfigError, match="lora_plus_ratio is 4, but this adapter has no second matrix"):
        build_optimizer(make_parameters(), replace(OPTIONS, lora_plus=4.0))


def test_with_lora_plus_moments_may_wait_in_main_memory_and_come_back():
    here, away = make_parameters(), make_parameters()
    one, other = with_lora_plus(here), with_lora_plus(away)
    advance(here, one, range(2))
    other.offload(True)
    advance(away, other, range(2))
    state = copy.deepcopy(other.state_dict())
    check_optimizer_state(OPTIMIZERS.get("adamw"), other, state)
    load_optimizer(other, state)
    advance(here, one, [2])
    advance(away, other, [2])
    other.offload(False)
    advance(here, one, [3])
    advance(away, other, [3])
    assert all(torch.equal(a, b) for a, b in zip(here, away, strict=True))
    assert [group["lr"] for group in other.param_groups] == [1e-2, 4e-2]


def clipped(**options):
    parameters = make_parameters()
    set_gradients(parameters, 0)
    before = [parameter.grad.clone() for parameter in parameters]
    norm = clip_gradients(parameters, OptimizerOptions(**options))
    assert norm.item() == pytest.approx(torch.cat([gradient.flatten() for gradient in before]).norm().item(), rel=1e-5)
    return before, [parameter.grad for parameter in parameters], norm.item()


def test_clipping_by_norm_shortens_all_alike():
    before, after, norm = clipped(max_grad_norm=2.0)
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(b, a * 2.0 / norm)


def test_clipping_by_value_cuts_each_number_alone():
    before, after, _ = clipped(max_grad_norm=0.5, clip_by="value")
    assert all(torch.equal(b, a.clamp(-0.5, 0.5)) for a, b in zip(before, after, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("clip_by", ["norm", "value"])
def test_clipping_that_is_off_changes_nothing(clip_by):
    before, after, _ = clipped(max_grad_norm=0.0, clip_by=clip_by)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    told = without_effect(OptimizerOptions(max_grad_norm=0.0, clip_by="value"))
    assert told == ["grad_clip_method has no effect with max_grad_norm 0.0."]


def test_a_gradient_that_is_not_finite_is_seen_whatever_clips_it():
    parameters = make_parameters()
    set_gradients(parameters, 0)
    parameters[0].grad[0, 0] = float("inf")
    assert not clip_gradients(parameters, OptimizerOptions(max_grad_norm=1.0, clip_by="value")).isfinite()


@pytest.mark.parametrize("name", OPTIMIZERS.names)
def test_what_a_method_says_of_bad_steps_is_so(name):
    """It is what the planner counts copies by."""
    method, optimizer = OPTIMIZERS.get(name), build_any(name, make_parameters())
    is_fused = all(group.get("fused") for group in optimizer.param_groups)
    assert method.skips_bad_steps == (is_fused or getattr(optimizer, "skips_bad_steps", False))
    assert method.waits == optimizer.waits
