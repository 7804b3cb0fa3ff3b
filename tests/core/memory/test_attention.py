import math
import sys
import types

import pytest
import torch
from wan_train.core.errors import ConfigError
from wan_train.core.memory.attention import (
    ANY_ORDER,
    TOLERANCES,
    AttentionShape,
    Candidate,
    candidates,
    choose_attention,
    exact_attention,
    fastest,
    largest_error,
    sdpa_attention,
)
from wan_train.core.memory.deterministic import same_bits
from wan_train.core.wan.layers import attention

CPU = torch.device("cpu")


def make_shape(dtype=torch.float32, **changes) -> AttentionShape:
    return AttentionShape(**{"tokens": 40, "num_heads": 2, "head_dim": 16, "dtype": dtype, "device": CPU} | changes)


def candidate(name, function) -> Candidate:
    return Candidate(name, lambda: function)


class LayoutOfTheFirstGradient(torch.autograd.Function):
    """What torch 2.11's cuDNN backend does: the strides of the first dO of a shape are used for all."""

    strides = None

    @staticmethod
    def forward(ctx, q, k, v):
        ctx.save_for_backward(q, k, v)
        return exact_attention(q, k, v)

    @staticmethod
    def backward(ctx, grad):
        strides = LayoutOfTheFirstGradient.strides = LayoutOfTheFirstGradient.strides or grad.stride()
        leaves = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        with torch.enable_grad():
            out = exact_attention(*leaves)
        return torch.autograd.grad(out, leaves, grad.as_strided(grad.shape, strides))


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_attention_of_pytorch_is_right_and_its_error_is_that_of_rounding(dtype):
    choice = choose_attention("auto", make_shape(dtype))
    assert (choice.name, set(choice.milliseconds), choice.refused) == ("sdpa", {"sdpa"}, {})
    assert choice.milliseconds["sdpa"] > 0
    for num_keys in (40, 7):
        error = largest_error(choice.attend, make_shape(dtype), num_keys=num_keys)
        assert TOLERANCES[dtype] / 1e5 < error < TOLERANCES[dtype] / 3


def test_attention_chosen_on_the_cpu_gives_the_bits_of_the_models_own():
    q, k, v = torch.randn(3, 2, 20, 4, 8, generator=torch.Generator().manual_seed(0)).requires_grad_().unbind()
    chosen = choose_attention("sdpa", make_shape()).attend
    assert torch.equal(chosen(q, k, v), attention(q, k, v))


def test_wrong_results_and_wrong_gradients_are_refused_with_their_error():
    tried = [
        candidate("unscaled", lambda q, k, v: exact_attention(q, k, v) * 1.01),
        candidate("no_dv", lambda q, k, v: exact_attention(q, k, v.detach() + 0 * v)),
        candidate("nan", lambda q, k, v: exact_attention(q, k, v) + math.nan),
        candidate("right", exact_attention),
    ]
    choice = fastest(tried, make_shape())
    assert choice.name == "right"
    assert set(choice.milliseconds) == {"right"}
    assert "relative error 0.01 with 300 keys" in choice.refused["unscaled"]
    assert "relative error 1 with" in choice.refused["no_dv"]
    assert "relative error nan with" in choice.refused["nan"]


def test_gradients_that_depend_on_the_layout_of_an_earlier_one_are_refused():
    apply = LayoutOfTheFirstGradient.apply
    with pytest.raises(ConfigError, match=r"first_layout: .* wrong here: relative error 1\.\d"):
        fastest([candidate("first_layout", apply)], make_shape())
    LayoutOfTheFirstGradient.strides = None


def test_gradient_reaches_the_backend_in_one_layout(monkeypatch):
    """With the same fault in the backend, PyTorch's attention as we call it is right."""
    monkeypatch.setattr(LayoutOfTheFirstGradient, "strides", None)

    def faulty(q, k, v):
        return LayoutOfTheFirstGradient.apply(*(tensor.transpose(1, 2) for tensor in (q, k, v))).transpose(1, 2)

    monkeypatch.setattr("wan_train.core.memory.attention.scaled_dot_product_attention", faulty)
    assert fastest([candidate("pinned", sdpa_attention(None))], make_shape()).name == "pinned"


def test_fastest_of_the_right_ones_is_taken():
    def twice(q, k, v):
        for _ in range(30):
            exact_attention(q, k, v)
        return exact_attention(q, k, v)

    choice = fastest([candidate("slow", twice), candidate("fast", exact_attention)], make_shape())
    assert choice.name == "fast"
    assert choice.milliseconds["slow"] > choice.milliseconds["fast"]


def test_what_is_not_installed_or_not_able_is_refused_with_the_reason():
    def missing():
        raise ImportError("No module named 'flash_attn'")

    backend = torch.nn.attention.SDPBackend.CUDNN_ATTENTION
    tried = [Candidate("package", missing), candidate("cudnn", sdpa_attention(backend))]
    with pytest.raises(ConfigError, match=r"device cpu\. package: No module named 'flash_attn'; cudnn: No .*backend"):
        fastest(tried, make_shape())


def test_flash_attn_4_alone_is_no_version_2(monkeypatch):
    """They share the package's folder."""
    monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
    (two,) = (each for each in candidates(torch.device("cuda")) if each.name == "flash_attn_2")
    with pytest.raises(ConfigError, match=r"flash_attn_2: flash_attn has no flash_attn_func"):
        fastest([two], make_shape())


def test_a_package_that_asserts_is_refused():
    def for_another_card(q, k, v):
        raise AssertionError("Unsupported compute capability")

    choice = fastest([candidate("picky", for_another_card), candidate("exact", exact_attention)], make_shape())
    assert choice.refused == {"picky": "Unsupported compute capability"}


def test_unknown_name_is_refused_with_those_of_the_device():
    with pytest.raises(ConfigError, match="no attention 'cudnn' on the device cpu: choose auto, sdpa"):
        choose_attention("cudnn", make_shape())


def test_backend_of_choice_is_traced_whole_and_untraceable_attention_refused():
    def untraceable(q, k, v):
        torch._dynamo.graph_break()
        return exact_attention(q, k, v)

    flash = sdpa_attention(torch.nn.attention.SDPBackend.FLASH_ATTENTION)
    choice = fastest([candidate("flash", flash), candidate("breaks", untraceable)], make_shape(), compiled=True)
    assert choice.name == "flash"
    assert "graph_break" in choice.refused["breaks"]


class OtherBitsEachTime(torch.autograd.Function):
    """A backward that is right and adds up in another order each time."""

    calls = 0

    @staticmethod
    def forward(ctx, q, k, v):
        ctx.save_for_backward(q, k, v)
        return exact_attention(q, k, v)

    @staticmethod
    def backward(ctx, grad):
        leaves = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        with torch.enable_grad():
            out = exact_attention(*leaves)
        dq, dk, dv = torch.autograd.grad(out, leaves, grad)
        OtherBitsEachTime.calls += 1
        return dq * (1 + 1e-6 * (OtherBitsEachTime.calls % 2)), dk, dv


def test_bits_that_change_are_refused_where_they_are_asked_to_stay():
    tried = [candidate("any_order", OtherBitsEachTime.apply), candidate("exact", exact_attention)]
    assert fastest(tried, make_shape()).refused == {}
    with same_bits(True):
        choice = fastest(tried, make_shape())
    assert choice.name == "exact"
    assert choice.refused == {
        "any_order": "its gradients are not the same to the bit each time, and deterministic is on"
    }


def test_kinds_without_a_fixed_order_are_no_candidates_where_the_bits_shall_stay():
    cuda = torch.device("cuda")
    every, fixed = ([one.name for one in candidates(cuda, same_bits=same)] for same in (False, True))
    assert [name for name in every if name not in ANY_ORDER] == fixed
    assert {"cudnn"} == set(every) - set(fixed)
    assert [one.name for one in candidates(CPU, same_bits=True)] == ["sdpa"]
    assert choose_attention("auto", make_shape(), same_bits=True).name == "sdpa"


@pytest.mark.parametrize("module", ["flash_attn", "flash_attn_interface"])
def test_a_package_is_asked_for_the_same_bits_where_they_are_wanted(module, monkeypatch):
    asked = []

    def flash_attn_func(q, k, v, deterministic=False):
        asked.append(deterministic)
        return exact_attention(q, k, v)

    package = types.ModuleType(module)
    package.flash_attn_func = flash_attn_func
    monkeypatch.setitem(sys.modules, module, package)
    name = {"flash_attn": "flash_attn_2", "flash_attn_interface": "flash_attn_3"}[module]
    (one,) = (each for each in candidates(torch.device("cuda")) if each.name == name)
    attend = one.load()
    q = torch.zeros(1, 4, 2, 8)
    attend(q, q, q)
    with same_bits(True):
        attend(q, q, q)
    assert asked == [False, True]


def test_a_package_that_knows_nothing_of_it_is_refused_then(monkeypatch):
    package = types.ModuleType("flash_attn")
    package.flash_attn_func = lambda q, k, v: exact_attention(q, k, v)
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    (two,) = (each for each in candidates(torch.device("cuda"), same_bits=True) if each.name == "flash_attn_2")
    assert fastest([two], make_shape()).name == "flash_attn_2"
    with same_bits(True), pytest.raises(ConfigError, match="version of flash_attn knows no deterministic backward"):
        fastest([two], make_shape())
