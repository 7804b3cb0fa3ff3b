"""Which layers get an adapter, and of which rank and strength."""

import math

import pytest
import torch
from wan_train.core.adapters.formats import parse_modules
from wan_train.core.adapters.places import Place, check_patterns, places
from wan_train.core.adapters.setup import adapter_modules, adapter_state, add_adapter
from wan_train.core.errors import ConfigError
from wan_train.core.plan.sizes import Trained, adapter_params, layer_paths, targeted
from wan_train.core.settings.adapter import AdapterOptions
from wan_train.core.settings.option import key_values
from wan_train.core.wan.config import WanConfig
from wan_train.core.wan.model import WanTransformer

CONFIG = WanConfig(dim=32, ffn_dim=64, num_heads=2, num_layers=12, text_dim=16)
PATHS = layer_paths(CONFIG)


def chosen(**options):
    return places(AdapterOptions(**options), PATHS)


def test_all_linears_by_default_with_one_rank():
    assert list(chosen()) == list(PATHS)
    assert set(chosen().values()) == {Place(16, 16.0)}


def test_include_keeps_what_one_pattern_is_found_in_and_exclude_comes_after():
    assert set(chosen(include="self_attn\nffn.0", exclude=r"blocks\.(?!3\.)")) == {
        *(f"blocks.3.self_attn.{name}" for name in "qkvo"), "blocks.3.ffn.0"
    }  # fmt: skip
    assert set(chosen(include="blocks.1[01]", targets=("ffn",))) == {
        f"blocks.{i}.ffn.{n}" for i in (10, 11) for n in (0, 2)
    }


def test_the_first_rule_that_fits_decides_the_rank():
    found = chosen(rank=8, alpha=4.0, ranks=r"blocks\.0\..*attn = 2, 0" "\n" "attn=3\n" "ffn.0 = 5 , 10")
    assert found["blocks.0.self_attn.q"] == Place(2, 2.0)  # alpha 0: its rank
    assert found["blocks.1.cross_attn.k"] == Place(3, 4.0)  # the alpha of all
    assert found["blocks.1.ffn.0"] == Place(5, 10.0)
    assert found["blocks.1.ffn.2"] == Place(8, 4.0)


def test_alpha_zero_is_the_rank():
    assert set(chosen(rank=32, alpha=0.0).values()) == {Place(32, 32.0)}


def test_rslora_is_an_alpha_that_gives_alpha_over_the_root_of_the_rank():
    for rank, place in ((16, chosen(rank=16, alpha=8.0, rslora=True)), (64, chosen(rank=64, alpha=8.0, rslora=True))):
        (one,) = set(place.values())
        assert one.alpha / one.rank == pytest.approx(8.0 / math.sqrt(rank))


def test_the_model_carries_exactly_that_and_its_state_says_so():
    torch.manual_seed(0)
    model, options = (
        WanTransformer(CONFIG),
        AdapterOptions(rank=4, rslora=True, exclude="ffn.2", ranks="cross_attn = 2, 3"),
    )
    parameters = add_adapter(model, options, seed=0)
    expected = places(options, PATHS)
    assert list(adapter_modules(model)) == list(expected)
    modules, _ = parse_modules(adapter_state(model))
    for path, place in expected.items():
        assert modules[path].rank == place.rank
        assert modules[path].alpha == pytest.approx(place.alpha)
    trained = Trained(adapter=options.kind, rank=options.rank, targets=options.targets, options=options)
    assert adapter_params(CONFIG, trained) == sum(parameter.numel() for _, parameter in parameters)
    assert "ffn.2" not in targeted(CONFIG, trained)
    assert targeted(CONFIG, trained)["cross_attn.q"].rank == 2


def test_a_rank_of_a_rule_is_the_forward_of_its_merged_weights():
    torch.manual_seed(0)
    model = WanTransformer(CONFIG).requires_grad_(False)
    plain = model.blocks[0].ffn[0].weight.clone()
    parameters = add_adapter(model, AdapterOptions(rank=4, rslora=True, ranks="ffn.0 = 2, 3"), seed=0)
    with torch.no_grad():
        for _, parameter in parameters:
            parameter.normal_()
    layer = model.blocks[0].ffn[0]
    module = parse_modules(adapter_state(model))[0]["blocks.0.ffn.0"]
    x = torch.randn(5, 32)
    wanted = torch.nn.functional.linear(x, plain + 3 / math.sqrt(2) * module.up @ module.down, layer.base_layer.bias)
    assert torch.allclose(layer(x), wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"include": "attn1"}, "adapter_include has the pattern 'attn1', which is found in no layer's name"),
        ({"exclude": "q\nmlp"}, "adapter_exclude has the pattern 'mlp'"),
        ({"ranks": "blocks.99 = 3"}, "adapter_ranks has the pattern 'blocks.99'"),
        ({"include": "self_attn", "exclude": "attn"}, "leave no layer"),
    ],
)
def test_a_pattern_without_a_layer_is_refused(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        check_patterns(AdapterOptions(**options), PATHS)
    check_patterns(AdapterOptions(exclude="k_img"), (*PATHS, "blocks.0.cross_attn.k_img"))


def test_who_changes_the_rank_and_leaves_alpha_is_told():
    assert "at 0.5 times its usual strength" in AdapterOptions(rank=32).warnings()[0]
    for options in (
        {}, {"rank": 32, "alpha": 32.0}, {"rank": 32, "alpha": 0.0}, {"rank": 64, "rslora": True}, {"alpha": 8.0}
    ):  # fmt: skip
        assert AdapterOptions(**options).warnings() == []


def test_the_key_of_a_run_from_before_stays():
    assert key_values(AdapterOptions()).keys() == {"rank", "alpha", "targets", "dropout"}
    assert key_values(AdapterOptions(ranks="q = 3"))["ranks"] == "q = 3"
