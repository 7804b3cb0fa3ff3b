import importlib
import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn
from wan_train.core.adapters import peft_hooks
from wan_train.core.adapters.formats import LoraModule, parse_modules, to_tensors
from wan_train.core.adapters.kind import ADAPTER_KINDS
from wan_train.core.adapters.setup import adapter_modules, adapter_state, add_adapter, load_adapter, write_adapter
from wan_train.core.errors import ConfigError, ModelFileError
from wan_train.core.settings.adapter import AdapterOptions

PACK = Path(__file__).resolve().parents[3]


class LinearLike(nn.Module):
    """What a quantized layer looks like: no nn.Linear, integer weight, a float scale."""

    weight: torch.Tensor

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.in_features, self.out_features = width, out
        generator = torch.Generator().manual_seed(7)
        self.register_buffer("weight", torch.randint(-127, 127, (out, width), generator=generator, dtype=torch.int8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) / 1000)


class Attention(nn.Module):
    def __init__(self, dim: int, *, image: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q = nn.LayerNorm(dim)
        if image:
            self.k_img, self.v_img = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm_q(self.q(x)) * torch.sigmoid(self.k(x)) + self.v(x)
        if hasattr(self, "k_img"):
            x = x + self.k_img(x) * self.v_img(x)
        return self.o(x)


class Block(nn.Module):
    def __init__(self, dim: int, *, image: bool) -> None:
        super().__init__()
        self.self_attn, self.cross_attn = Attention(dim), Attention(dim, image=image)
        self.ffn = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(x)
        x = x + self.cross_attn(x)
        return x + self.ffn(x)


class Net(nn.Module):
    """A toy with the module names of a Wan transformer, and layers around the blocks that must stay untouched."""

    def __init__(self, dim: int = 16, layers: int = 2, *, image: bool = False) -> None:
        super().__init__()
        self.time_embedding = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.blocks = nn.ModuleList(Block(dim, image=image) for _ in range(layers))
        self.head = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.time_embedding(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def make_net(**kwargs) -> Net:
    torch.manual_seed(0)
    return Net(**kwargs)


def randomise(parameters: list[tuple[str, nn.Parameter]]) -> None:
    generator = torch.Generator().manual_seed(5)
    for _, p in parameters:
        p.data = torch.randn(p.shape, generator=generator) * 0.2


@pytest.mark.parametrize(
    ("targets", "image", "count"),
    [
        (("self_attn", "cross_attn", "ffn"), False, 20),
        (("self_attn", "cross_attn", "ffn"), True, 24),
        (("self_attn",), True, 8),
        (("cross_attn",), True, 12),
        (("ffn",), False, 4),
    ],
)
def test_targets_select_exactly_their_linears(targets, image, count):
    model = make_net(image=image)
    parameters = add_adapter(model, AdapterOptions(rank=2, targets=targets), seed=0)
    paths = list(adapter_modules(model))
    assert len(paths) == count
    assert len(parameters) == 2 * count
    assert all(path.split(".")[0] == "blocks" and path.split(".")[2] in targets for path in paths)


def test_blocks_come_in_natural_order():
    model = make_net(dim=4, layers=11)
    parameters = add_adapter(model, AdapterOptions(rank=1, targets=("ffn",)), seed=0)
    assert [int(name.split(".")[1]) for name, _ in parameters] == [i for i in range(11) for _ in range(4)]


def test_only_the_adapter_trains_and_it_is_fp32():
    model = make_net().to(torch.bfloat16)
    parameters = add_adapter(model, AdapterOptions(rank=2), seed=0)
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    assert trainable == {id(p) for _, p in parameters}
    assert {p.dtype for _, p in parameters} == {torch.float32}
    named = dict(model.named_parameters())
    assert all(named[name] is p for name, p in parameters)


def test_fresh_adapter_changes_nothing():
    model, x = make_net(), torch.randn(3, 16)
    before = model(x)
    add_adapter(model, AdapterOptions(rank=2), seed=0)
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("autocast", [False, True])
def test_bf16_base_runs_and_every_parameter_gets_a_gradient(autocast):
    model = make_net(image=True).to(torch.bfloat16)
    parameters = add_adapter(model, AdapterOptions(rank=2), seed=0)
    randomise(parameters)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = model(torch.randn(3, 16, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    out.float().square().mean().backward()
    for name, p in parameters:
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name


def test_initial_values_depend_on_seed_and_name_alone():
    two, three = make_net(layers=2), make_net(layers=3).to(torch.bfloat16)
    first = dict(add_adapter(two, AdapterOptions(rank=2), seed=11))
    torch.manual_seed(99)
    second = dict(add_adapter(three, AdapterOptions(rank=2, targets=("ffn", "self_attn")), seed=11))
    shared = [name for name in first if name in second]
    assert len(shared) == 2 * 6 * 2
    assert all(torch.equal(first[name], second[name]) for name in shared)
    downs = [p for name, p in first.items() if "lora_A" in name and p.shape == (2, 16)]
    assert not any(torch.equal(a, b) for i, a in enumerate(downs) for b in downs[:i])
    other = dict(add_adapter(make_net(), AdapterOptions(rank=2), seed=12))
    name = "blocks.0.self_attn.q.lora_A.default.weight"
    assert not torch.equal(other[name], first[name])


def test_initial_values_are_kaiming_uniform_and_zero():
    model = make_net(dim=64, layers=1)
    parameters = dict(add_adapter(model, AdapterOptions(rank=32), seed=3))
    down = parameters["blocks.0.ffn.2.lora_A.default.weight"]
    bound = 1 / 128**0.5
    assert down.abs().max() <= bound
    assert down.abs().max() > 0.98 * bound
    assert down.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
    assert all(not p.any() for name, p in parameters.items() if "lora_B" in name)


def test_adding_leaves_the_global_random_state_alone():
    model = make_net()
    before = torch.get_rng_state()
    add_adapter(model, AdapterOptions(rank=2), seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_linear_like_layers_are_adapted():
    model = make_net(layers=1)
    model.set_submodule("blocks.0.self_attn.q", LinearLike(16, 16))
    parameters = add_adapter(model, AdapterOptions(rank=2), seed=0)
    randomise(parameters)
    assert "blocks.0.self_attn.q" in adapter_modules(model)
    model(torch.randn(2, 16)).sum().backward()
    grads = {name: p.grad for name, p in parameters}
    assert grads["blocks.0.self_attn.q.lora_A.default.weight"].abs().sum() > 0


def test_forward_equals_merged_weights():
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    model = make_net(image=True)
    randomise(add_adapter(model, AdapterOptions(rank=3, alpha=1.5), seed=0))
    modules, _ = parse_modules(adapter_state(model))
    assert {module.scale for module in modules.values()} == {0.5}
    merged = make_net(image=True)
    plain = merged(x)
    weights = dict(merged.named_parameters())
    for path, module in modules.items():
        weights[f"{path}.weight"].data += module.delta()
    torch.testing.assert_close(model(x), merged(x), atol=1e-5, rtol=1e-5)
    assert (merged(x) - plain).abs().max() > 0.1


def test_state_round_trip_is_exact_and_in_place():
    first, second = make_net(), make_net()
    randomise(add_adapter(first, AdapterOptions(rank=2, alpha=3.0), seed=0))
    parameters = add_adapter(second, AdapterOptions(rank=2, alpha=3.0), seed=1)
    state = adapter_state(first)
    assert len(state) == 3 * 20
    assert state["diffusion_model.blocks.1.ffn.2.lora_A.weight"].shape == (2, 32)
    assert state["diffusion_model.blocks.1.ffn.2.lora_B.weight"].shape == (16, 2)
    assert state["diffusion_model.blocks.1.ffn.2.alpha"].item() == 3.0
    load_adapter(second, state)
    assert all(torch.equal(a, state[key]) for key, a in adapter_state(second).items())
    named = dict(second.named_parameters())
    assert all(named[name] is p for name, p in parameters)


def test_state_is_a_copy():
    model = make_net()
    parameters = add_adapter(model, AdapterOptions(rank=2), seed=0)
    state = adapter_state(model)
    with torch.no_grad():
        parameters[0][1].add_(1.0)
    key = "diffusion_model.blocks.0.self_attn.q.lora_A.weight"
    assert torch.equal(parameters[0][1] - state[key] > 0.5, torch.ones(2, 16, dtype=torch.bool))


def broken_states(state):
    q = "diffusion_model.blocks.0.self_attn.q"
    without = {key: tensor for key, tensor in state.items() if key != f"{q}.lora_B.weight"}
    return {
        "lacks 'diffusion_model.blocks.0.self_attn.q.lora_B.weight'": without,
        "shape \\[4, 16\\].*\\[2, 16\\]: set the same rank": {**state, f"{q}.lora_A.weight": torch.ones(4, 16)},
        "saved with alpha 8 .*set alpha to 8": {**state, f"{q}.alpha": torch.tensor(8.0)},
        "holds 'diffusion_model.head.head.alpha'": {**state, "diffusion_model.head.head.alpha": torch.tensor(2.0)},
    }


@pytest.mark.parametrize("case", range(4))
def test_unfitting_state_is_refused_and_changes_nothing(case):
    model = make_net()
    add_adapter(model, AdapterOptions(rank=2, alpha=2.0), seed=0)
    before = adapter_state(model)
    message, state = list(broken_states({key: tensor + 0 for key, tensor in before.items()}).items())[case]
    with pytest.raises(ModelFileError, match=message):
        load_adapter(model, state)
    assert all(torch.equal(tensor, before[key]) for key, tensor in adapter_state(model).items())


def test_missing_alpha_means_rank():
    model = make_net()
    add_adapter(model, AdapterOptions(rank=2, alpha=2.0), seed=0)
    state = {key: tensor for key, tensor in adapter_state(model).items() if not key.endswith("alpha")}
    load_adapter(model, state)
    other = make_net()
    add_adapter(other, AdapterOptions(rank=2, alpha=4.0), seed=0)
    with pytest.raises(ModelFileError, match=r"alpha 2 .* has 4"):
        load_adapter(other, state)


def test_a_read_file_continues_training():
    modules = {
        f"blocks.{i}.self_attn.{name}": LoraModule(down=torch.full((2, 16), i + 0.5), up=torch.ones(16, 2), alpha=1.0)
        for i in range(2)
        for name in "qkvo"
    }
    model = make_net()
    add_adapter(model, AdapterOptions(rank=2, alpha=1.0, targets=("self_attn",)), seed=0)
    load_adapter(model, to_tensors(modules, torch.bfloat16))
    assert torch.equal(
        adapter_state(model)["diffusion_model.blocks.1.self_attn.k.lora_A.weight"], torch.full((2, 16), 1.5)
    )


def test_models_that_cannot_be_adapted_are_refused():
    with pytest.raises(ConfigError, match="no linear layers named blocks"):
        add_adapter(nn.Sequential(nn.Linear(4, 4)), AdapterOptions(), seed=0)
    model = make_net()
    add_adapter(model, AdapterOptions(rank=2), seed=0)
    with pytest.raises(ConfigError, match="already carries a LoRA"):
        add_adapter(model, AdapterOptions(rank=2), seed=0)
    odd = make_net()
    odd.set_submodule("blocks.0.ffn.0", nn.Identity())
    with pytest.raises(ConfigError, match=r"blocks\.0\.ffn\.0 is a Identity"):
        add_adapter(odd, AdapterOptions(rank=2), seed=0)
    for function in (adapter_state, lambda m: load_adapter(m, {})):
        with pytest.raises(ConfigError, match="carries no LoRA"):
            function(make_net())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"alpha": -1.0}, r"alpha must be 0 \(the rank\) or more, got -1.0; the usual choice is the rank"),
        ({"alpha": float("nan")}, r"alpha must be 0 \(the rank\) or more, got nan"),
        ({"include": "self_attn\n(q"}, r"adapter_include has the pattern '\(q', which is no regular expression"),
        ({"exclude": "x\n" * 65}, "adapter_exclude may have 64 lines"),
        ({"ranks": "cross_attn"}, "adapter_ranks has the line 'cross_attn', which is no rule"),
        ({"ranks": "q = 0"}, "with a rank of 1 to 4096"),
        ({"ranks": "q = 4, -1"}, "which is no rule"),
        ({"dropout": 1.0}, "dropout must be below 1, got 1.0"),
        ({"targets": ()}, "targets is empty"),
        ({"targets": ("attn",)}, "unknown entry 'attn'"),
        ({"targets": ("ffn", "ffn")}, "names 'ffn' twice"),
    ],
)
def test_bad_options_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        AdapterOptions(**values)


def test_a_kind_that_is_not_known_is_refused():
    with pytest.raises(ConfigError, match="the adapter 'lokr9' is not known: choose one of dora, loha, lokr, lora"):
        add_adapter(make_net(), AdapterOptions(), seed=0, kind="lokr9")


@pytest.mark.parametrize("name", ADAPTER_KINDS.names)
def test_every_kind_says_its_size_and_comes_back_from_its_file(name, tmp_path):
    kind, model = ADAPTER_KINDS.get(name), make_net()
    assert kind.help
    options = AdapterOptions(rank=2, targets=("ffn",))
    parameters = add_adapter(model, options, seed=0, kind=name)
    shapes = [(layer.out_features, layer.in_features) for layer in adapter_modules(model).values()]
    assert sum(p.numel() for _, p in parameters) == sum(kind.num_params(shape, 2, options) for shape in shapes)
    randomise(parameters)
    state = adapter_state(model)
    found = kind.from_file(write_adapter(tmp_path / "adapter.safetensors", model, metadata={}))
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)
    other = make_net()
    add_adapter(other, AdapterOptions(rank=2, targets=("ffn",)), seed=1, kind=name)
    load_adapter(other, found)
    assert all(torch.equal(value, state[key]) for key, value in adapter_state(other).items())


def test_dropout_acts_in_training_only():
    model, x = make_net(), torch.randn(8, 16)
    randomise(add_adapter(model, AdapterOptions(rank=2, dropout=0.5), seed=0))
    model.eval()
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


def test_importing_the_package_needs_neither_peft_nor_the_host(monkeypatch):
    blocked = {"peft", "transformers", "comfy"}
    for name in blocked | {name for name in sys.modules if name.split(".")[0] in blocked}:
        monkeypatch.setitem(sys.modules, name, None)  # importing it now raises
    with pytest.raises(ImportError):
        importlib.import_module("peft.tuners.lora")
    alias = "wan_train_fresh"
    spec = importlib.util.spec_from_file_location(alias, PACK / "__init__.py", submodule_search_locations=[str(PACK)])
    assert spec is not None
    monkeypatch.setitem(sys.modules, alias, importlib.util.module_from_spec(spec))
    try:
        for path in sorted((PACK / "core" / "adapters").glob("[a-z]*.py")):
            module = importlib.import_module(f"{alias}.core.adapters.{path.stem}")
            assert module.__file__ == str(path)
    finally:
        for name in [name for name in sys.modules if name.startswith(f"{alias}.")]:
            del sys.modules[name]


@pytest.mark.grid(2, "processes that import everything anew")
def test_importing_early_leaves_other_packages_to_those_who_need_them(tmp_path):
    """Also where one of them cannot be imported."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    code = (
        "import sys, wantrain; wantrain.load_pack()\n"
        "from wan_train.core.adapters.peft_hooks import import_adapters\n"
        "import_adapters()\n"
        "assert 'peft' in sys.modules\n"
        "assert not {'bitsandbytes', 'scipy', 'torchvision'} & set(sys.modules)\n"
        "from bitsandbytes.optim.adamw import AdamW8bit\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], cwd=PACK, check=True, env=environment)


def test_importing_beside_other_work_is_done_once_and_its_failure_is_told(monkeypatch):
    calls = []
    monkeypatch.setattr(peft_hooks, "import_adapters", lambda: calls.append(threading.current_thread().name))
    importing = peft_hooks._Importing()
    importing.begin()
    importing.begin()
    importing.finish()
    assert calls == ["peft", "MainThread"]

    def fail():
        raise ImportError("No module named 'peft'")

    monkeypatch.setattr(peft_hooks, "import_adapters", fail)
    importing = peft_hooks._Importing()
    importing.begin()
    with pytest.raises(ImportError, match="peft"):
        importing.finish()
