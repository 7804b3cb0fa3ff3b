"""Blocks by kernels against plain autograd: by real ones on a GPU, else by what `reference` has for them.

WAN_TRAIN_INTERPRET=1 with TRITON_INTERPRET=1 runs the kernels themselves on the CPU, which takes minutes.
"""

import copy
import gc
import os
from functools import partial

import pytest
import torch
from torch import nn

pytest.importorskip("triton")
from wan_train.core.adapters.products import use_products
from wan_train.core.adapters.setup import add_adapter
from wan_train.core.adapters.switch import without_adapter
from wan_train.core.kernels.apply import use_kernels
from wan_train.core.kernels.linears import make_product
from wan_train.core.memory.attention import sdpa_attention
from wan_train.core.memory.precisions.fp8 import make_fp8
from wan_train.core.memory.precisions.fp8_compute import make_fp8_compute
from wan_train.core.memory.precisions.int8 import make_int8
from wan_train.core.memory.products import part_of
from wan_train.core.memory.remaker import BlockInput
from wan_train.core.memory.rerun import Rerun
from wan_train.core.settings.adapter import AdapterOptions
from wan_train.core.wan.config import WanConfig
from wan_train.core.wan.layers import PARTS, rope_table
from wan_train.core.wan.model import call_block
from wan_train.tests.core.kernels import reference
from wan_train.tests.core.wan.conftest import build_model, make_weights

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALL = {"dim": 48, "ffn_dim": 80, "num_heads": 4, "num_layers": 1, "text_dim": 16}
CONFIG = WanConfig(**SMALL)
CLIP_CONFIG = WanConfig(variant="i2v", in_dim=36, image_dim=24, **SMALL)
KEEPS = ("nothing", "attention", "all")
TARGETS = ("self_attn", "cross_attn", "ffn")
MAKERS = {"fp8": make_fp8, "int8": make_int8, "fp8_compute": make_fp8_compute}


@pytest.fixture(autouse=True)
def arithmetic(monkeypatch):
    if DEVICE.type == "cpu" and os.environ.get("WAN_TRAIN_INTERPRET") != "1":
        reference.put_in_place(monkeypatch)


def make_block(config=CONFIG, precision="fp32", *, rank=2, alpha=2.0, targets=TARGETS, **others):
    model = build_model(config, make_weights(config)).to(DEVICE)
    if precision in MAKERS:
        for name, layer in list(model.blocks.named_modules()):
            if isinstance(layer, nn.Linear):
                made = MAKERS[precision](name, layer.weight.data, None, dtype=torch.float32, bias=layer.bias)
                parent, _, child = name.rpartition(".")
                setattr(model.blocks.get_submodule(parent), child, made)
    add_adapter(model, AdapterOptions(rank=rank, alpha=alpha, targets=targets, **others), seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = (torch.randn(parameter.shape, generator=generator) / 8).to(DEVICE)
    model.attend = sdpa_attention(None)
    return model.train()


def inputs(config=CONFIG, *, batch=1, frames=2, timesteps=1, dtype=torch.float32):
    """x, what the block is given besides, and a gradient."""
    generator = torch.Generator().manual_seed(2)
    random = lambda *shape: torch.randn(shape, generator=generator).to(DEVICE)  # noqa: E731
    grid = (frames, 2, 3)
    tokens = frames * 6
    x = random(batch, tokens, config.dim).to(dtype)
    others = [random(batch, timesteps, 6, config.dim), rope_table(grid, config.dim // config.num_heads).to(DEVICE)]
    others += [random(batch, length, config.dim).to(dtype) for length in ((5, 4) if config.image_dim else (5,))]
    return x, others, random(batch, tokens, config.dim).to(dtype)


def gradients(model, run, x, others, grad, *, seed=0):
    """The result, and the gradients of x and all factors."""
    torch.manual_seed(seed)
    x = x.clone().requires_grad_()
    factors = [parameter for parameter in model.parameters() if parameter.requires_grad]
    y = run(model.blocks[0], x, *others)
    return [y.detach(), *torch.autograd.grad(y, [x, *factors], grad)]


def with_kernels(model):
    """A copy by kernels, and what runs its block so that it keeps what it is told to."""
    model = copy.deepcopy(model)
    ops, remaker = use_kernels(model)
    use_products(model, partial(make_product, ops=ops), remaker.is_unread)
    rerun = Rerun(remaker)
    return model, lambda keep: lambda block, *given: rerun(call_block, keep, block.ffn[2], block, *given)


def assert_close(found, expected, tolerance):
    for number, (ours, plain) in enumerate(zip(found, expected, strict=True)):
        error = (ours.double() - plain.double()).norm() / plain.double().norm().clamp(min=1e-9)
        assert error < tolerance, (number, tuple(plain.shape), error.item())


def assert_keeps_agree(model, given, tolerance=2e-6, seed=0):
    """All keeps, and no checkpoint, against the plain code; the keeps among themselves to the bit. Returns the results."""
    expected = gradients(model, call_block, *given, seed=seed)
    ours, keeping = with_kernels(model)
    found = gradients(ours, call_block, *given, seed=seed)
    assert_close(found, expected, tolerance)
    for keep in KEEPS:
        again = gradients(ours, keeping(keep), *given, seed=seed)
        assert all(torch.equal(a, b) for a, b in zip(again, found, strict=True)), keep
    return found, expected


@pytest.mark.parametrize("precision", ["fp32", "fp8", "int8"])
@pytest.mark.parametrize(
    "shape", [{}, {"batch": 2}, {"frames": 3, "timesteps": 3}, {"batch": 2, "timesteps": 2}], ids=str
)
def test_gradients_are_autograds(precision, shape):
    assert_keeps_agree(make_block(precision=precision), inputs(**shape))


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 1},
        {"rank": 64, "alpha": 16.0},
        {"targets": ("self_attn",)},
        {"targets": ("ffn",)},
        {"targets": ("cross_attn",), "alpha": 1.0},
    ],
    ids=str,
)
def test_adapters_of_all_kinds(options):
    assert_keeps_agree(make_block(**options), inputs())


@pytest.mark.parametrize("config", [CONFIG, CLIP_CONFIG], ids=["t2v", "i2v"])
def test_products_in_8_bits(config):
    """Numbers are rounded to 8 bits, and one rounded the other way is 6% off: far less than half of them are."""
    assert_keeps_agree(make_block(config, "fp8_compute"), inputs(config, batch=2), tolerance=0.02)


def test_tokens_of_an_image():
    assert_keeps_agree(make_block(CLIP_CONFIG), inputs(CLIP_CONFIG))


OTHERS = [
    {"kind": "dora", "alpha": 1.0},
    {"kind": "loha"},
    {"kind": "lokr"},
    {"kind": "lokr", "lokr_full": True, "lokr_factor": 4},
    {"kind": "oft", "rank": 4},
    {"kind": "oft", "rank": 4, "oft_constraint": 1.5},
    {"kind": "dora", "targets": ("ffn",)},
    {"kind": "lokr", "targets": ("self_attn",)},
    {"kind": "lokr", "targets": ("cross_attn",), "dropout": 0.2, "rank_dropout": 0.3, "module_dropout": 0.2},
    {"kind": "dora", "dropout": 0.2, "rank_dropout": 0.3, "module_dropout": 0.2},
    {"kind": "oft", "rank": 4, "module_dropout": 0.3},
]


@pytest.mark.parametrize("options", OTHERS, ids=str)
@pytest.mark.parametrize("precision", ["fp32", "fp8", "int8"])
def test_adapters_of_other_kinds(precision, options):
    """What is no plain LoRA has the functions, too; so has a block of which only one part carries it."""
    model, given = make_block(precision=precision, **options), inputs(batch=2)
    assert_keeps_agree(model, given, seed=3)
    ours, _ = with_kernels(model)
    x, others, _ = given
    assert vars(ours.blocks[0])["_kernel_runner"].functions_of(ours.blocks[0], x, *others) is not None


@pytest.mark.parametrize("kind", ["dora", "lokr", "oft"])
def test_other_kinds_where_an_image_is_seen(kind):
    assert_keeps_agree(make_block(CLIP_CONFIG, kind=kind, rank=4), inputs(CLIP_CONFIG))


LEAVING_OUT = [
    {"dropout": 0.5},
    {"rank_dropout": 0.5},
    {"module_dropout": 0.5},
    {"dropout": 0.2, "rank_dropout": 0.3, "module_dropout": 0.2, "alpha": 1.0},
    {"kind": "tlora"},
    {"kind": "tlora", "dropout": 0.2, "rank_dropout": 0.3},
]


@pytest.mark.parametrize("options", LEAVING_OUT, ids=str)
@pytest.mark.parametrize("precision", ["fp32", "fp8"])
def test_what_is_left_out_is_what_autograd_leaves_out(precision, options):
    """The same is drawn, of each of two samples; and again by whoever runs the block again."""
    model, given = make_block(precision=precision, rank=8, **options), inputs(batch=2)
    gate = getattr(model, "rank_gate", None)
    if gate is not None:
        gate(torch.tensor([[950.0], [400.0]], device=DEVICE))
        assert [int(each.sum()) for each in gate.left_out[8].flatten(1)] == [4, 2]
    found, _ = assert_keeps_agree(model, given, seed=3)
    if set(options) != {"kind"}:
        other = gradients(model, call_block, *given, seed=4)
        assert not torch.equal(found[1], other[1])


@pytest.mark.parametrize("options", LEAVING_OUT, ids=str)
def test_adapters_that_leave_something_out_have_the_functions(options):
    ours, _ = with_kernels(make_block(**options))
    x, others, _ = inputs()
    assert vars(ours.blocks[0])["_kernel_runner"].functions_of(ours.blocks[0], x, *others) is not None


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize(
    "options",
    [
        *({}, {"dropout": 0.5}, {"rank_dropout": 0.5}, {"kind": "tlora"}, {"targets": ("ffn",)}, {"kind": "dora"}),
        *({"kind": "loha"}, {"kind": "lokr"}, {"kind": "oft", "rank": 4}),
    ],
    ids=str,
)
def test_nothing_is_left_of_a_step(keep, options):
    """Of the first block: its input wants no gradient, so that the backward does not go through all of its nodes."""
    model, keeping = with_kernels(make_block(**options))
    x, others, grad = inputs()
    factors = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gc.collect()
    before = count_inputs()
    for _ in range(3):
        y = keeping(keep)(model.blocks[0], x, *others)
        torch.autograd.grad(y, factors, grad, allow_unused=True)
        del y
    gc.collect()
    assert count_inputs() == before


def count_inputs():
    """What each run of a block keeps, as long as something of it is kept."""
    return sum(isinstance(each, BlockInput) for each in gc.get_objects())


def test_parts_one_by_one_are_the_block():
    model, _ = with_kernels(make_block())
    x, others, grad = inputs()

    def by_parts(block, x, *others):
        for part in PARTS:
            x = block.run_part(part, x, *others)
        return x

    whole, parts = (gradients(model, run, x, others, grad) for run in (call_block, by_parts))
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_new_factors_are_seen_however_they_are_written():
    model, keeping = with_kernels(make_block())
    given = inputs()
    before = gradients(model, keeping("all"), *given)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.mul_(1.5)  # of which autograd's count of versions does not know
    after = gradients(model, keeping("all"), *given)
    assert not torch.equal(before[0], after[0])
    fresh, _ = with_kernels(model)
    assert all(torch.equal(a, b) for a, b in zip(after, gradients(fresh, call_block, *given), strict=True))


@pytest.mark.parametrize("options", [{}, {"rank_dropout": 0.5}, {"kind": "dora"}, {"kind": "lokr"}], ids=str)
def test_adapter_turned_off(options):
    """The functions stay for when it is on again: making them takes longer than a small block's forward."""
    model = make_block(**options)
    ours, keeping = with_kernels(model)
    x, others, _ = inputs()
    functions_of = vars(ours.blocks[0])["_kernel_runner"].functions_of
    before = functions_of(ours.blocks[0], x, *others)
    assert before is not None
    with torch.no_grad(), without_adapter(model), without_adapter(ours):
        assert functions_of(ours.blocks[0], x, *others) is None
        assert_close([keeping("all")(ours.blocks[0], x, *others)], [call_block(model.blocks[0], x, *others)], 2e-6)
    assert functions_of(ours.blocks[0], x, *others) is before


def test_two_blocks_share_the_memory_of_factors():
    model, keeping = with_kernels(make_block(WanConfig(**{**SMALL, "num_layers": 2})))
    x, others, grad = inputs()
    first, second = model.blocks
    factors = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def both(run):
        y = run(second, run(first, x, *others), *others)
        return [y.detach(), *torch.autograd.grad(y, factors, grad)]

    expected = both(call_block)
    for keep in KEEPS:
        assert all(torch.equal(a, b) for a, b in zip(both(keeping(keep)), expected, strict=True))


@pytest.mark.parametrize("precision", ["fp32", "fp8", "int8"])
@pytest.mark.parametrize("options", [{}, {"kind": "tlora"}, {"kind": "dora"}, {"kind": "lokr"}], ids=str)
def test_blocks_of_which_other_layers_carry_the_adapter(options, precision):
    """As many factors of the same shapes in both, but of other layers."""
    left_out = r"blocks\.0\.self_attn\.o|blocks\.1\.self_attn\.q"
    plain = make_block(WanConfig(**{**SMALL, "num_layers": 2}), precision, exclude=left_out, **options)
    model, keeping = with_kernels(plain)
    x, others, grad = inputs()

    def both(model, run):
        first, second = model.blocks
        factors = [parameter for parameter in model.parameters() if parameter.requires_grad]
        y = run(second, run(first, x, *others), *others)
        return [y.detach(), *torch.autograd.grad(y, factors, grad)]

    for keep in KEEPS:
        assert_close(both(model, keeping(keep)), both(plain, call_block), 2e-6)


@pytest.mark.parametrize(
    ("kind", "runs"), [("lora", 1), ("tlora", 1), ("lokr", 1), ("loha", 1), ("dora", 1), ("oft", 2)]
)
def test_the_last_product_of_a_block_that_runs_again_is_left_out(kind, runs, monkeypatch):
    """But that of OFT, which turns it."""
    model, keeping = with_kernels(make_block(kind=kind, rank=4))
    product, found = part_of(model.blocks[0].ffn[2]).product, []
    forward = product.forward
    monkeypatch.setattr(product, "forward", lambda x: found.append(x) or forward(x))
    gradients(model, keeping("nothing"), *inputs())
    assert len(found) == runs


@pytest.mark.parametrize("kind", ["lora", "dora", "lokr", "loha"])
def test_a_factor_that_is_not_trained(kind):
    model = make_block(kind=kind)
    next(parameter for parameter in model.parameters() if parameter.requires_grad).requires_grad_(False)
    assert_keeps_agree(model, inputs())
