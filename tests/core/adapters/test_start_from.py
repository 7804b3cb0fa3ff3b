"""A training that starts from a LoRA file, and one on a base that another LoRA was added to."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from wan_train.core.adapters.formats import LoraModule, read_lora, write_lora
from wan_train.core.adapters.merged_base import merged_base
from wan_train.core.adapters.other_files import read_other
from wan_train.core.adapters.setup import adapter_state, add_adapter, write_adapter
from wan_train.core.adapters.start_from import adapter_identity, check_start_file, start_from_file
from wan_train.core.adapters.transfer import model_shapes
from wan_train.core.errors import ConfigError, ModelFileError
from wan_train.core.settings.adapter import AdapterOptions
from wan_train.core.wan.checkpoint import inspect
from wan_train.core.wan.loading import load_transformer
from wan_train.tests.core.adapters.helpers import linear_layers, random_modules, write_model, write_random
from wan_train.tests.core.adapters.test_other_kinds import CONFIG, WAYS, net, randomise, weight_of
from wan_train.tools.miniature import DiTSize

SIZE = DiTSize(dim=32, ffn_dim=64, num_heads=2, num_layers=2, text_dim=16)
LAYERS = {path: shape for path, shape in linear_layers(SIZE).items() if path.startswith("blocks.")}


def file_of(tmp_path, rank, name="start.safetensors"):
    return write_lora(tmp_path / name, random_modules(LAYERS, rank), metadata={}, dtype=torch.float32)


def started(path, **options):
    torch.manual_seed(0)
    model, _, _ = net(start_from=str(path), **{"rank": 4, "alpha": 3.0, **options})
    said = start_from_file(model, AdapterOptions(start_from=str(path), **{"rank": 4, "alpha": 3.0, **options}))
    return model, said, {
        path: LoraModule(
            down=state[f"diffusion_model.{path}.lora_A.weight"],
            up=state[f"diffusion_model.{path}.lora_B.weight"],
            alpha=float(state[f"diffusion_model.{path}.alpha"]),
        )
        for state in [adapter_state(model)]
        for path in LAYERS
        if f"diffusion_model.{path}.alpha" in state
    }  # fmt: skip


@pytest.mark.parametrize("rank", [2, 4])
def test_a_file_of_no_higher_rank_is_taken_over_whole(rank, tmp_path):
    path = file_of(tmp_path, rank)
    _, said, modules = started(path)
    for name, module in read_lora(path).modules.items():
        assert torch.allclose(modules[name].delta(), module.delta(), atol=1e-5)
        assert modules[name].alpha == 3.0
    assert ("brought to that of this run" in " ".join(said)) == (rank != 4)


def test_all_of_a_lower_rank_is_trained(tmp_path):
    _, _, modules = started(file_of(tmp_path, 2))
    assert all(bool((module.down != 0).all()) for module in modules.values())
    assert all(bool((module.up[:, 2:] == 0).all()) for module in modules.values())


def test_a_higher_rank_is_cut_to_the_best_that_fits_and_what_is_lost_is_told(tmp_path):
    path = file_of(tmp_path, 6)
    _, said, modules = started(path)
    for name, module in read_lora(path).modules.items():
        u, s, v = torch.linalg.svd(module.delta().double())
        best = (u[:, :4] * s[:4]) @ v[:4]
        assert torch.allclose(modules[name].delta().double(), best, atol=1e-4)
    assert "rank 6, which was brought" in said[1]
    assert "0 % is lost" not in said[1]


def diffusers_name(path):
    for own, other in {
        "self_attn": "attn1",
        "cross_attn": "attn2",
        "ffn.0": "ffn.net.0.proj",
        "ffn.2": "ffn.net.2",
    }.items():
        path = path.replace(own, other)
    stem, _, leaf = path.rpartition(".")
    return f"{stem}.{ {'q': 'to_q', 'k': 'to_k', 'v': 'to_v', 'o': 'to_out.0'}.get(leaf, leaf) }"


def flat(path):
    return path.replace(".", "_")


# Who writes it -> a layer's name, the ends of its two matrices; whether an alpha lies beside them.
PEFT, PLAIN = ("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight")
DIALECTS = {
    "AI-Toolkit, diffusion-pipe": (lambda path: f"diffusion_model.{path}", PEFT, False),
    "musubi": (lambda path: f"lora_unet_{flat(path)}", PLAIN, True),
    "SimpleTuner": (lambda path: f"transformer.{diffusers_name(path)}", PEFT, False),
    "WanVideoWrapper": (lambda path: f"diffusion_model.{path}", PLAIN, True),
    "LyCORIS": (lambda path: f"lycoris_{flat(path)}", PLAIN, True),
    "LyCORIS in SimpleTuner": (lambda path: f"lycoris_{flat(diffusers_name(path))}", PLAIN, True),
    "peft": (lambda path: f"base_model.model.{path}", PEFT, False),
    "peft in training": (
        lambda path: f"base_model.model.{path}",
        ("lora_A.default.weight", "lora_B.default.weight"),
        False,
    ),
    "bare": (lambda path: path, PEFT, False),
    "a whole checkpoint": (lambda path: f"model.diffusion_model.{path}", PEFT, False),
}


@pytest.mark.parametrize("who", DIALECTS)
def test_every_dialect_gives_the_same_start(tmp_path, who):
    modules = random_modules(LAYERS, 4)
    name, (down, up), has_alpha = DIALECTS[who]
    tensors = {}
    for path, module in modules.items():
        tensors |= {f"{name(path)}.{down}": module.down, f"{name(path)}.{up}": module.up}
        tensors |= {f"{name(path)}.alpha": torch.tensor(2.0)} if has_alpha else {}
    save_file(tensors, tmp_path / "x.safetensors")
    found = started(tmp_path / "x.safetensors")[2]
    scale = 2.0 / 4 if has_alpha else 1.0
    for path, module in modules.items():
        torch.testing.assert_close(found[path].delta(), scale * module.up @ module.down, atol=1e-6, rtol=1e-5)


def test_diffusers_alpha_lies_in_the_metadata(tmp_path):
    modules, tensors = random_modules(LAYERS, 4), {}
    for path, module in modules.items():
        name = f"transformer.{diffusers_name(path)}"
        tensors |= {f"{name}.lora_A.weight": module.down, f"{name}.lora_B.weight": module.up}
    config = {"transformer.lora_alpha": 2.0, "transformer.r": 4}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"lora_adapter_metadata": json.dumps(config)})
    found = started(tmp_path / "x.safetensors")[2]
    for path, module in modules.items():
        torch.testing.assert_close(found[path].delta(), 2.0 / 4 * module.up @ module.down, atol=1e-6, rtol=1e-5)


def test_layers_that_are_not_trained_are_told_and_those_without_a_part_are_new(tmp_path):
    modules = {path: module for path, module in random_modules(LAYERS, 4).items() if "ffn.2" not in path}
    path = write_lora(tmp_path / "x.safetensors", modules, metadata={}, dtype=torch.float32)
    _, said, found = started(path, exclude="self_attn")
    assert "10 of 12 layers" in said[0]
    assert "8 layers of x.safetensors are not trained here" in said[-1]
    assert bool((found["blocks.0.ffn.2"].up == 0).all())


@pytest.mark.parametrize("way", WAYS)
def test_other_kinds_start_from_their_own(way, tmp_path):
    model, _, parameters = net(**WAYS[way])
    randomise(parameters)
    path = write_adapter(tmp_path / "x.safetensors", model, metadata={})
    options = AdapterOptions(**{"rank": 3, "alpha": 2.0, **WAYS[way], "start_from": str(path)})
    other, _, _ = net(**WAYS[way])
    check_start_file(options, model_shapes(CONFIG))
    start_from_file(other, options)
    assert all(torch.equal(value, adapter_state(other)[key]) for key, value in adapter_state(model).items())
    with pytest.raises(ConfigError, match="but the adapter is lora"):
        check_start_file(replace(options, kind="lora"), model_shapes(CONFIG))


def test_a_file_for_another_model_or_none_is_refused(tmp_path):
    other = write_random(
        tmp_path / "x.safetensors", DiTSize(dim=64, ffn_dim=64, num_heads=2, num_layers=2, text_dim=16)
    )
    with pytest.raises(ConfigError, match="different size"):
        check_start_file(AdapterOptions(start_from=str(other)), model_shapes(CONFIG))
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(ConfigError, match=r"start_from is .*text\.safetensors, which is no sound"):
        adapter_identity(str(tmp_path / "text.safetensors"), "start_from")
    with pytest.raises(ConfigError, match=r"start_from is .*gone\.safetensors, which"):
        adapter_identity(str(tmp_path / "gone.safetensors"), "start_from")
    assert adapter_identity("", "start_from") == ""
    ffn = {path: module for path, module in random_modules(LAYERS, 4).items() if "ffn" in path}
    only = write_lora(tmp_path / "ffn.safetensors", ffn, metadata={}, dtype=torch.float32)
    with pytest.raises(ModelFileError, match="holds none of the layers that are trained"):
        started(only, targets=("self_attn",))


@pytest.mark.parametrize("way", ["lora", *WAYS])
def test_the_base_with_a_lora_has_its_merged_weights(way, tmp_path):
    info = inspect(write_model(tmp_path / "base.safetensors", SIZE, seed=3))
    plain = load_transformer(info, dtype=torch.float32, device="cpu")
    if way == "lora":
        path = write_random(tmp_path / "x.safetensors", SIZE)
        wanted = {
            name: plain.get_submodule(name).weight + 0.5 * m.delta() for name, m in read_lora(path).modules.items()
        }
    else:
        trained = load_transformer(info, dtype=torch.float32, device="cpu")
        randomise(add_adapter(trained, AdapterOptions(**{"rank": 3, **WAYS[way]}), seed=0))
        path = write_adapter(tmp_path / "x.safetensors", trained, metadata={})
        weights = {name: plain.get_submodule(name).weight.double() for name in read_other(path).modules}
        changed = {name: weight_of(m.parts, weights[name]) for name, m in read_other(path).modules.items()}
        share = 0.25 if way.startswith("oft") else 0.5  # ComfyUI takes the strength of OFT twice
        wanted = {name: (weight + share * (changed[name] - weight)).float() for name, weight in weights.items()}
    merged = merged_base(str(path), 0.5, model_shapes(info.config))
    model = load_transformer(info, dtype=torch.float32, device="cpu", merged=merged)
    for name, weight in model.named_parameters():
        layer = name.removesuffix(".weight")
        expected = wanted[layer] if name.endswith(".weight") and layer in wanted else plain.get_parameter(name)
        assert torch.allclose(weight, expected, atol=1e-5), name
    assert "load it beside the new LoRA" in merged.notes[0]


def test_the_identity_is_that_of_the_content(tmp_path):
    one, two = file_of(tmp_path, 2, "a.safetensors"), file_of(tmp_path, 2, "b.safetensors")
    assert adapter_identity(str(one), "x") == adapter_identity(str(two), "x")
    tensors = load_file(two)
    next(iter(tensors.values())).add_(1)
    save_file(tensors, two)
    assert adapter_identity(str(one), "x") != adapter_identity(str(two), "x")
