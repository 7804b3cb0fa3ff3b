"""What is left out at random: the formulas of kohya's scripts, and the same numbers again where a block is run again."""

import copy

import pytest
import torch
from torch import nn
from wan_train.core.adapters.drops import ModuleDropout, RankDropout, RowDropout
from wan_train.core.adapters.kinds.lora import layers
from wan_train.core.adapters.peft_hooks import factors_of
from wan_train.core.adapters.setup import add_adapter, use_light_forward
from wan_train.core.adapters.switch import without_adapter
from wan_train.core.memory.checkpointing import with_checkpointing
from wan_train.core.settings.adapter import AdapterOptions
from wan_train.core.wan.config import WanConfig
from wan_train.core.wan.model import WanTransformer

CONFIG = WanConfig(dim=32, ffn_dim=64, num_heads=2, num_layers=2, text_dim=16)


def net(**options):
    torch.manual_seed(0)
    model = WanTransformer(CONFIG).train()
    parameters = add_adapter(model, AdapterOptions(**{"rank": 4, "alpha": 2.0, **options}), seed=1)
    use_light_forward(model)
    with torch.no_grad():
        for _, parameter in parameters:
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model, parameters


def clip(batch=2):
    generator = torch.Generator().manual_seed(3)
    random = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    return random(batch, 16, 2, 4, 4), torch.linspace(300, 900, batch), random(batch, 5, 16)


def test_ranks_are_left_out_of_a_sample_and_the_others_count_more():
    drop, hidden = RankDropout(0.25), torch.ones(500, 7, 8)
    torch.manual_seed(0)
    found = drop(hidden)
    assert found.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert torch.equal(found, found[:, :1].expand_as(found)), "the same of all tokens"
    assert len({tuple(row.tolist()) for row in found[:, 0]}) > 50, "another choice for each sample"
    assert float((found == 0).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert drop.eval()(hidden) is hidden


def test_rows_are_the_same_of_all_samples():
    drop = RowDropout(0.5)
    torch.manual_seed(0)
    found = drop(torch.ones(3, 5, 400))
    assert torch.equal(found, found[:1, :1].expand_as(found))
    assert float((found == 0).float().mean()) == pytest.approx(0.5, abs=0.1)
    assert float(found.max()) == 2.0


def test_a_layer_is_left_out_whole_and_counts_as_ever_otherwise():
    drop, x = ModuleDropout(0.3), torch.randn(2, 3)
    torch.manual_seed(0)
    found = [drop(x) for _ in range(1000)]
    dropped = sum(bool((each == 0).all()) for each in found)
    assert dropped == pytest.approx(300, abs=60)
    assert all(torch.equal(each, x) or bool((each == 0).all()) for each in found)
    assert drop.eval()(x) is x


def test_a_layer_with_rank_dropout_is_kohyas():
    model, _ = net(rank_dropout=0.4)
    layer = model.blocks[0].ffn[0]
    factors, x = factors_of(layer), torch.randn(2, 6, 32)
    torch.manual_seed(5)
    found = layer(x)
    torch.manual_seed(5)
    kept = torch.dropout(torch.ones(2, 1, 4), 0.4, True) > 0
    with torch.no_grad():  # mask, and the scale as if the rank were smaller
        hidden = (x @ factors.down.T) * kept
        wanted = factors.base(x) + hidden @ factors.up.T * (factors.scale * (1.0 / (1.0 - 0.4)))
    assert not kept.all()
    assert torch.allclose(found, wanted, atol=1e-5)


OPTIONS = [
    {"rank_dropout": 0.5},
    {"module_dropout": 0.5},
    {"dropout": 0.2, "rank_dropout": 0.5, "module_dropout": 0.5},
    {"kind": "dora", "rank_dropout": 0.5, "module_dropout": 0.5},
    {"kind": "loha", "rank_dropout": 0.5, "module_dropout": 0.5},
    {"kind": "lokr", "rank_dropout": 0.5, "module_dropout": 0.5},
    {"kind": "oft", "module_dropout": 0.5},
    {"kind": "tlora", "rank_dropout": 0.5, "module_dropout": 0.5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_seed_decides_and_a_block_that_is_run_again_leaves_out_the_same(options):
    model, parameters = net(**options)
    found = []
    for seed, wrap in ((1, None), (1, None), (2, None), (1, with_checkpointing)):
        run = copy.deepcopy(model)
        if wrap is not None:
            run.run_block = wrap(run.run_block)
        torch.manual_seed(seed)
        run(*clip()).square().mean().backward()
        found.append([weight.grad for weight in run.parameters() if weight.requires_grad])
    first, again, other, checkpointed = found
    assert len(first) == len(parameters)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, checkpointed, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_whoever_generates_has_all_of_it(options):
    model, _ = net(**options)
    plain, _ = net(**{name: value for name, value in options.items() if not name.endswith("dropout")})
    with torch.no_grad():
        whole = model.eval()(*clip())
        assert torch.allclose(whole, plain.eval()(*clip()), atol=1e-6)
        model.train()
        torch.manual_seed(0)
        assert not torch.allclose(model(*clip()), whole, atol=1e-4)
        with without_adapter(model):
            bare = model(*clip())
    assert not torch.allclose(bare, whole, atol=1e-4)


def test_without_them_nothing_is_on_the_layers_and_nothing_is_drawn():
    model, _ = net()
    assert all(factors_of(layer).drops is None for layer in layers(model).values())
    before = torch.get_rng_state()
    model(*clip()).mean().backward()
    assert torch.equal(before, torch.get_rng_state())
    assert not any(isinstance(module, nn.Dropout) for module in model.modules())
