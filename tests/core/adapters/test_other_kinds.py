"""LoKr, LoHa, DoRA and OFT: their arithmetic against the formulas and against peft, on bases of several formats."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from wan_train.core.adapters.kind import ADAPTER_KINDS
from wan_train.core.adapters.kinds.lokr import factorization
from wan_train.core.adapters.other_files import kind_of_file, read_other
from wan_train.core.adapters.setup import (
    adapter_modules,
    adapter_state,
    add_adapter,
    load_adapter,
    use_light_forward,
    write_adapter,
)  # fmt: skip
from wan_train.core.adapters.switch import without_adapter
from wan_train.core.errors import ModelFileError
from wan_train.core.memory.checkpointing import with_checkpointing
from wan_train.core.memory.precision import resolve
from wan_train.core.plan.block_bytes import saved_bytes
from wan_train.core.plan.sizes import Trained, adapter_params
from wan_train.core.settings.adapter import AdapterOptions
from wan_train.core.wan.config import WanConfig
from wan_train.core.wan.model import WanTransformer
from wan_train.tests.core.plan.test_estimate import counted, inputs

CPU = torch.device("cpu")
CONFIG = WanConfig(dim=32, ffn_dim=64, num_heads=2, num_layers=2, text_dim=16)
OTHERS = [name for name in ADAPTER_KINDS.names if not ADAPTER_KINDS.get(name).is_plain]
WAYS = {
    "dora": {"kind": "dora"},
    "loha": {"kind": "loha"},
    "lokr": {"kind": "lokr", "rank": 2},
    "oft": {"kind": "oft", "rank": 4},
    "oft held": {"kind": "oft", "rank": 4, "oft_constraint": 1.5},
    "lokr full": {"kind": "lokr", "lokr_full": True, "lokr_factor": 4},
}


def net(**options):
    torch.manual_seed(0)
    model = WanTransformer(CONFIG).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    bare = copy.deepcopy(model)
    parameters = add_adapter(model, AdapterOptions(**{"rank": 3, "alpha": 2.0, **options}), seed=1)
    use_light_forward(model)
    return model, bare, parameters


def randomise(parameters):
    torch.manual_seed(2)
    with torch.no_grad():
        for _, parameter in parameters:
            parameter.add_(torch.randn_like(parameter) * 0.3)


def clip(dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(1, 16, 2, 4, 4, generator=generator).to(dtype), torch.tensor([500.0]),
        torch.randn(1, 5, 16, generator=generator).to(dtype),
    )  # fmt: skip


def weight_of(parts, weight):
    """W' by the formulas of the papers, in float64, from what a file holds and the base's W [out, in]."""
    parts = {name: tensor.double() for name, tensor in parts.items()}
    weight = weight.double()
    if "hada_w1_a" in parts:
        scale = parts["alpha"] / parts["hada_w1_b"].shape[0]
        return weight + scale * (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
    if "oft_blocks" in parts:
        q = parts["oft_blocks"] - parts["oft_blocks"].transpose(1, 2)
        if parts["alpha"]:
            q = q * torch.minimum(torch.ones(()).double(), parts["alpha"] / q.norm())
        whole = torch.block_diag(*q)
        eye = torch.eye(len(whole)).double()
        return torch.linalg.solve(eye - whole, eye + whole).T @ weight
    if "lokr_w1" in parts:
        w2 = parts.get("lokr_w2")
        if w2 is None:
            w2 = parts["lokr_w2_a"] @ parts["lokr_w2_b"] * parts["alpha"] / parts["lokr_w2_b"].shape[0]
        return weight + torch.kron(parts["lokr_w1"], w2)
    both = weight + parts["alpha"] / len(parts["lora_A.weight"]) * parts["lora_B.weight"] @ parts["lora_A.weight"]
    return both * (parts["dora_scale"] / both.norm(dim=0, keepdim=True))


def merged(bare, path):
    """The base with the adapter of a file in its weights."""
    model = copy.deepcopy(bare)
    with torch.no_grad():
        for name, module in read_other(path).modules.items():
            weight = model.get_submodule(name).weight
            weight.copy_(weight_of(module.parts, weight))
    return model


@pytest.mark.parametrize("way", WAYS)
def test_at_first_nothing_is_changed_and_then_it_is_what_the_file_says(way, tmp_path):
    model, bare, parameters = net(**WAYS[way])
    with torch.no_grad():
        assert torch.allclose(model(*clip()), bare(*clip()), atol=1e-5)
        randomise(parameters)
        path = write_adapter(tmp_path / "x.safetensors", model, metadata={})
        assert kind_of_file(path) == WAYS[way]["kind"]
        result, wanted, plain = model(*clip()), merged(bare, path)(*clip()), bare(*clip())
    scale = wanted.abs().max()
    assert (result - wanted).abs().max() < 1e-5 * scale
    assert (plain - wanted).abs().max() > 1e-2 * scale
    with torch.no_grad(), without_adapter(model):
        assert torch.equal(model(*clip()), plain)


@pytest.mark.parametrize("way", WAYS)
def test_checkpointing_gives_the_same_gradients_of_everything_that_is_trained(way):
    model, _, parameters = net(**WAYS[way])
    randomise(parameters)
    model(*clip()).square().mean().backward()
    plain = [parameter.grad.clone() for _, parameter in parameters]
    assert all(bool((grad != 0).any()) for grad in plain)
    model.zero_grad()
    model.run_block = with_checkpointing(model.run_block)
    model(*clip()).square().mean().backward()
    for (name, parameter), grad in zip(parameters, plain, strict=True):
        assert torch.equal(parameter.grad, grad), name


@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_those_of_the_formula(way):
    model, bare, parameters = net(**WAYS[way])
    randomise(parameters)
    path = "blocks.1.ffn.0"
    layer, weight = model.get_submodule(path), bare.get_submodule(path).weight
    own = {name.removeprefix(f"{path}."): p for name, p in parameters if name.startswith(f"{path}.")}
    x, factor = torch.randn(7, 32), torch.randn(7, 64)
    (layer(x) * factor).sum().backward()
    bias = bare.get_submodule(path).bias.detach().double()
    ends = {"lora_A.default.weight": "lora_A.weight", "lora_B.default.weight": "lora_B.weight"}
    state = {key.removeprefix(f"diffusion_model.{path}."): value for key, value in adapter_state(model).items()}
    shapes = {name: state[ends.get(name, name)].shape for name in own}  # OFT's blocks lie one under another
    leaves = {ends.get(name, name): p.detach().double().view(shapes[name]).requires_grad_() for name, p in own.items()}
    changed = weight_of({"alpha": state["alpha"], **leaves}, weight)
    if way == "dora":  # the paper's section 4.3: the lengths are constants for the gradient
        both = weight.double() + state["alpha"].double() / 3 * leaves["lora_B.weight"] @ leaves["lora_A.weight"]
        changed = both * (leaves["dora_scale"] / both.norm(dim=0, keepdim=True).detach())
    (torch.nn.functional.linear(x.double(), changed, bias) * factor.double()).sum().backward()
    for name, parameter in own.items():
        wanted = leaves[ends.get(name, name)].grad.view(parameter.shape)
        assert (parameter.grad - wanted).abs().max() < 1e-4 * wanted.abs().max(), name


def test_lokr_and_loha_are_what_peft_makes_of_the_same_numbers():
    import peft

    for way, config in (
        ("lokr", peft.LoKrConfig(r=2, alpha=2.0, target_modules=["0"], decompose_factor=-1)),
        ("loha", peft.LoHaConfig(r=3, alpha=2.0, target_modules=["0"])),
    ):
        model, bare, parameters = net(**WAYS[way])
        randomise(parameters)
        layer, base = model.blocks[0].ffn[0], bare.blocks[0].ffn[0]
        theirs = nn.Sequential(copy.deepcopy(base))
        peft.inject_adapter_in_model(config, theirs)
        with torch.no_grad():
            for name, matrix in layer.factors().items():
                getattr(theirs[0], name)["default"].copy_(matrix)
            x = torch.randn(5, 32)
            assert torch.allclose(layer(x), theirs(x), atol=1e-4), way


def test_oft_turns_as_pefts_does():
    """peft turns what goes into a layer, the other way round: here it is given what the base gives."""
    import peft

    model, bare, parameters = net(**WAYS["oft"])
    randomise(parameters)
    layer, base = model.blocks[0].ffn[0], bare.blocks[0].ffn[0]
    theirs = nn.Sequential(nn.Linear(64, 64, bias=False))
    nn.init.eye_(theirs[0].weight)
    config = peft.OFTConfig(r=0, oft_block_size=4, target_modules=["0"], use_cayley_neumann=False)
    peft.inject_adapter_in_model(config, theirs)
    with torch.no_grad():
        blocks = layer.oft_blocks.view(16, 4, 4)
        rows, columns = torch.triu_indices(4, 4, 1)
        theirs[0].oft_R["default"].weight.copy_(-(blocks - blocks.transpose(1, 2))[:, rows, columns])
        x = torch.randn(5, 32)
        turned = theirs(base(x) - base.bias) + base.bias
        assert torch.allclose(layer(x), turned, atol=1e-5)
        assert not torch.allclose(layer(x), base(x), atol=1e-2)
        lengths = (layer(x) - base.bias).norm(dim=1), (base(x) - base.bias).norm(dim=1)
    assert torch.allclose(*lengths, rtol=1e-5)


@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_a_constraint_holds_the_rotations_together(limit, tmp_path):
    model, bare, parameters = net(kind="oft", rank=4, oft_constraint=limit)
    randomise(parameters)
    free, _, same = net(kind="oft", rank=4)
    randomise(same)
    with torch.no_grad():
        change = (model(*clip()) - bare(*clip())).norm()
        assert (change < 0.5 * (free(*clip()) - bare(*clip())).norm()) == (limit == 0.5)


@pytest.mark.parametrize(("rank", "block"), [(1, 1), (4, 4), (5, 4), (8, 4), (64, 4)])
def test_a_block_is_a_divisor_of_the_width_that_is_not_above_the_rank(rank, block):
    model, _, _ = net(kind="oft", rank=rank, targets=("self_attn",))
    assert adapter_state(model)["diffusion_model.blocks.0.self_attn.q.oft_blocks"].shape == (32 // block, block, block)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"rescale": torch.ones(64, 1)}, "with a rescale"), ({"oft_blocks": torch.zeros(2, 16, 4, 4)}, "BOFT")],
)
def test_an_oft_of_another_make_is_refused(change, sentence, tmp_path):
    model, _, _ = net(**WAYS["oft"])
    tensors = adapter_state(model) | {f"diffusion_model.blocks.0.ffn.0.{end}": value for end, value in change.items()}
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ModelFileError, match=sentence):
        read_other(tmp_path / "x.safetensors")


@pytest.mark.parametrize("precision", ["int8", "nf4"])
@pytest.mark.parametrize("way", WAYS)
def test_a_quantized_base_trains(way, precision):
    torch.manual_seed(0)
    model = WanTransformer(CONFIG).requires_grad_(False)
    make = resolve(precision, CPU).linear
    for name, layer in list(model.blocks.named_modules()):
        if isinstance(layer, nn.Linear):
            layer.to(torch.bfloat16)
            model.blocks.set_submodule(
                name, make(name, layer.weight.data, None, dtype=torch.bfloat16, bias=layer.bias) or layer
            )
    parameters = add_adapter(
        model, AdapterOptions(rank=3, **{k: v for k, v in WAYS[way].items() if k != "rank"}), seed=0
    )
    randomise(parameters)
    model(*clip()).square().mean().backward()
    assert all(bool(parameter.grad.isfinite().all()) for _, parameter in parameters)
    assert {parameter.dtype for _, parameter in parameters} == {torch.float32}


LORAS = {
    "tlora": {"kind": "tlora"},
    "rank dropout": {"rank_dropout": 0.5},
    "module dropout": {"module_dropout": 0.5},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("way", [*WAYS, *LORAS])
def test_what_autograd_keeps_is_what_the_planner_counts(way, dtype):
    config = WanConfig(dim=128, ffn_dim=256, num_heads=2, num_layers=1, text_dim=16)
    options = AdapterOptions(**{"rank": 4, **(WAYS | LORAS)[way]})
    model = WanTransformer(config).train()
    for layer in model.blocks.modules():
        if isinstance(layer, nn.Linear):
            layer.to(dtype)
    parameters = add_adapter(model, options, seed=0)
    use_light_forward(model)
    trained = Trained(adapter=options.kind, rank=options.rank, targets=options.targets, options=options)
    assert adapter_params(config, trained) == sum(parameter.numel() for _, parameter in parameters)
    args = inputs(model, dtype)
    if model.rank_gate is not None:
        model.rank_gate(torch.tensor([[600.0]]))
    expected = saved_bytes(config, trained, tokens=args[0].shape[1], element_size=dtype.itemsize)
    assert counted(model, *args) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_drawn_depends_on_seed_and_layer_and_the_state_comes_back(way):
    model, _, parameters = net(**WAYS[way])
    again, _, _ = net(**WAYS[way])
    assert all(torch.equal(value, adapter_state(again)[key]) for key, value in adapter_state(model).items())
    randomise(parameters)
    load_adapter(again, adapter_state(model))
    assert all(torch.equal(value, adapter_state(again)[key]) for key, value in adapter_state(model).items())
    state = adapter_state(model)
    state.pop(next(iter(state)))
    with pytest.raises(ModelFileError, match="lacks"):
        load_adapter(again, state)


def test_a_file_of_another_kind_is_refused(tmp_path):
    model, _, _ = net(kind="loha")
    path = write_adapter(tmp_path / "x.safetensors", model, metadata={})
    with pytest.raises(ModelFileError, match="is a loha adapter, and not lokr"):
        ADAPTER_KINDS.get("lokr").from_file(path)


@pytest.mark.parametrize("number", [96, 127, 128, 250, 360, 512, 1024, 1536, 5120, 8960, 13824])
@pytest.mark.parametrize("factor", [0, 2, 4, 8, 16])
def test_widths_are_divided_as_by_the_host(comfy, number, factor):
    from comfy.weight_adapter.base import factorization as of_host

    assert factorization(number, factor) == of_host(number, factor or -1)


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_kind_has_its_layers_and_no_kind_takes_anothers(name):
    model, _, _ = net(kind=name)
    assert len(adapter_modules(model)) == 20
    taken = [kind for kind in OTHERS if ADAPTER_KINDS.get(kind).layers(model)]
    assert taken == [name]
