"""The light LoRA forward gives peft's numbers, forward and backward, over any base, compiled or not."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from wan_train.core.adapters.fused import fuse_adapter, unfuse_adapter
from wan_train.core.adapters.setup import adapter_modules, adapter_state, add_adapter, load_adapter
from wan_train.core.settings.adapter import AdapterOptions
from wan_train.core.wan.config import WanConfig
from wan_train.core.wan.gguf import QuantizedLinear
from wan_train.core.wan.model import WanTransformer

SIZES = WanConfig(dim=48, ffn_dim=96, num_heads=2, num_layers=2, text_dim=16)
INPUTS = (
    torch.randn(2, 16, 1, 4, 6, generator=torch.Generator().manual_seed(1)),
    torch.tensor([300.0, 700.0]),
    torch.randn(2, 512, 16, generator=torch.Generator().manual_seed(2)),
)


class OneBlock(nn.Module):
    """A model of one linear layer, under a name that adapters look for."""

    def __init__(self, linear):
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleDict({"self_attn": nn.ModuleDict({"q": linear})})])


def adapted(linear, **options):
    """A model of `linear` with a LoRA whose B is not zero, and its LoRA layer."""
    model = OneBlock(linear)
    options = AdapterOptions(**{"rank": 4, "alpha": 6.0, "targets": ("self_attn",), **options})
    add_adapter(model, options, seed=1)
    (layer,) = adapter_modules(model).values()
    nn.init.normal_(layer.lora_B["default"].weight, std=0.1, generator=torch.Generator().manual_seed(2))
    return model, layer


def results(layer, x):
    """Output of a layer, and the gradients of x, A and B for a fixed gradient of the output."""
    layer.zero_grad()
    x = x.clone().requires_grad_()
    torch.manual_seed(3)  # dropout
    y = layer(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(4)).to(y.dtype))
    return y.detach(), x.grad, layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad


def quantized():
    linear = QuantizedLinear(64, 32, "Q8_0", bias=True, device=torch.device("cpu"))
    linear.weight.random_(0, 100, generator=torch.Generator().manual_seed(5))
    linear.weight[:, 1] = 20  # exponent of each block's fp16 scale: weights below 1
    linear.bias.data.zero_()
    return linear


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(_ctx, x):
        return (2 * x).flatten().view(x.shape)  # a view, as the result of a kernel for matrices often is

    @staticmethod
    def backward(_ctx, grad):
        return 2 * grad


class FunctionLinear(nn.Linear):
    """Ends in an autograd.Function that returns a view, which must not be changed in place."""

    def forward(self, x):
        return _Doubled.apply(super().forward(x))


BASES = {
    "linear": lambda: nn.Linear(64, 32),
    "without bias": lambda: nn.Linear(64, 32, bias=False),
    "quantized": quantized,
    "function": lambda: FunctionLinear(64, 32),
}


@pytest.mark.parametrize("shape", [(2, 7, 64), (5, 64)])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("base", BASES)
def test_outputs_and_gradients_are_pefts(base, dropout, shape):
    torch.manual_seed(0)
    model, layer = adapted(BASES[base](), dropout=dropout)
    x = torch.randn(shape)
    expected = results(layer, x)
    assert fuse_adapter(model) == 1
    for ours, theirs in zip(results(layer, x), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        assert ours.dtype == theirs.dtype


def test_on_a_bf16_base_the_error_is_that_of_bf16():
    torch.manual_seed(0)
    exact_model, exact_layer = adapted(nn.Linear(64, 32))
    linear = nn.Linear(64, 32, dtype=torch.bfloat16)
    linear.load_state_dict({k: v.bfloat16() for k, v in exact_layer.base_layer.state_dict().items()})
    exact_layer.base_layer.load_state_dict({k: v.float() for k, v in linear.state_dict().items()})
    model, layer = adapted(linear)
    load_adapter(model, adapter_state(exact_model))
    x = torch.randn(3, 40, 64).bfloat16()
    exact = results(exact_layer, x.float())
    peft = results(layer, x)
    fuse_adapter(model)
    for name, a, b, c in zip(("y", "dx", "dA", "dB"), results(layer, x), peft, exact, strict=True):
        ours, theirs = ((z.float() - c).norm() / c.norm() for z in (a, b))
        assert a.dtype == b.dtype
        assert ours < 4e-3, (name, ours, theirs)
        assert theirs < 4e-3, (name, ours, theirs)


def make_transformer(**options):
    torch.manual_seed(0)
    model = WanTransformer(SIZES)
    add_adapter(model, AdapterOptions(rank=4, alpha=4.0, **options), seed=1)
    for layer in adapter_modules(model).values():
        nn.init.normal_(layer.lora_B["default"].weight, std=0.05)
    return model


def gradients(model):
    for p in model.parameters():
        p.grad = None
    y = model(*INPUTS)
    y.square().mean().backward()
    return [y.detach(), *(p.grad for p in model.parameters() if p.requires_grad)]


def test_a_whole_transformer_gives_the_same_gradients_and_the_same_file():
    model = make_transformer()
    expected, state, names = gradients(model), adapter_state(model), [n for n, _ in model.named_parameters()]
    assert fuse_adapter(model) == 20
    for ours, theirs in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert [n for n, _ in model.named_parameters()] == names
    assert adapter_state(model).keys() == state.keys()
    unfuse_adapter(model)
    assert all(torch.equal(a, b) for a, b in zip(gradients(model), expected, strict=True))


def test_a_block_compiles_into_one_graph():
    model = make_transformer()
    fuse_adapter(model)
    expected = gradients(model)
    for block in model.blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_copied_model_uses_its_own_weights():
    model, layer = adapted(nn.Linear(64, 32))
    fuse_adapter(model)
    x = torch.randn(3, 64)
    before = layer(x)
    (other,) = adapter_modules(copy.deepcopy(model)).values()
    with torch.no_grad():
        other.lora_B["default"].weight.zero_()
    assert torch.equal(other(x), other.base_layer(x))
    assert torch.equal(layer(x), before)


def test_a_disabled_or_merged_adapter_is_heeded():
    model, layer = adapted(nn.Linear(64, 32))
    fuse_adapter(model)
    x = torch.randn(3, 64)
    with_lora = layer(x)
    layer.enable_adapters(False)
    assert torch.equal(layer(x), layer.base_layer(x))
    layer.enable_adapters(True)
    layer.merge()
    torch.testing.assert_close(layer(x), with_lora)


def test_other_kinds_of_adapters_keep_pefts_forward():
    import peft

    model = OneBlock(nn.Linear(64, 32))
    config = peft.LoraConfig(r=4, target_modules=["q"], use_dora=True)
    peft.inject_adapter_in_model(config, model)
    assert fuse_adapter(model) == 0


class Readers(TorchDispatchMode):
    """Counts the products that read a tensor of the shape of a block's input as their first factor."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.widths = shape, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        factors = args[1:] if name == "addmm" else args
        if name in ("mm", "addmm") and factors[0].shape == self.shape:
            self.widths.append(factors[1].shape[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_queries_keys_and_values_read_their_input_once_for_their_adapters(dropout):
    """With dropout each has an input of its own."""
    model = make_transformer(dropout=dropout)
    attention = model.blocks[0].self_attn
    x = torch.randn(1, 20, SIZES.dim)
    rope = model.rope((1, 4, 5), x.device)
    counted = {}
    for kind in ("apart", "fused"):
        if kind == "fused":
            fuse_adapter(model)
        torch.manual_seed(7)
        with Readers((20, SIZES.dim)) as readers:
            counted[kind] = attention(x, rope)
        widths = [width for width in readers.widths if width != SIZES.dim]
        assert sorted(widths) == ([4, 12] if kind == "fused" and not dropout else [4] * 4)  # with that of o
    torch.testing.assert_close(counted["fused"], counted["apart"], rtol=1e-5, atol=1e-6)


def test_a_disabled_layer_beside_others_is_heeded():
    model = make_transformer()
    fuse_adapter(model)
    attention = model.blocks[0].self_attn
    x = torch.randn(1, 5, SIZES.dim)
    attention.k.enable_adapters(False)
    q, k, v = attention.project(x)
    assert torch.equal(k, attention.k.base_layer(x))
    torch.testing.assert_close(q, attention.q(x))
    torch.testing.assert_close(v, attention.v(x))
    assert not torch.equal(q, attention.q.base_layer(x))


class LargeResults(TorchDispatchMode):
    """Counts the operations that write one number or more for every input and token."""

    def __init__(self, size):
        super().__init__()
        self.size, self.names = size, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        is_view = func.is_view or name == "_unsafe_view"
        if isinstance(result, torch.Tensor) and result.numel() >= self.size and not is_view:
            self.names.append(name)
        return result


def test_fewer_large_results_are_written():
    """Forward: the base's, and B's added in place. Backward: two gradients of x and their sum."""
    model, layer = adapted(nn.Linear(64, 64, dtype=torch.bfloat16))
    x = torch.randn(1, 100, 64).bfloat16().requires_grad_()
    written = {}
    for name in ("peft", "ours"):
        if name == "ours":
            fuse_adapter(model)
        x.grad = None
        with LargeResults(x.numel()) as forward:
            y = layer(x)
        grad = torch.ones_like(y)
        with LargeResults(x.numel()) as backward:
            y.backward(grad)
        written[name] = (forward.names, backward.names)
    assert written["ours"] == (["addmm", "addmm_"], ["mm", "mm", "add"])
    assert len(written["peft"][0]) == 6
    assert len(written["peft"][1]) == 7
