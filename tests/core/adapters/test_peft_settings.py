"""Alphas that stand in the header alone: what peft and diffusers themselves make of the same file is the answer."""

import json
import re

import pytest
import safetensors.torch
import torch
from wan_train.core.adapters.formats import LoraModule, diffusers_tensors, parse_modules, read_lora, write_lora
from wan_train.core.adapters.keys import module_names
from wan_train.core.adapters.ship import ShipOptions, Source, ship
from wan_train.core.errors import ModelFileError

PATTERNS = [
    {"to_q": 1},
    {r".*attn1\.to_q": 1},
    {r"blocks\.\d\.attn2\.to_(q|k)": 1},
    {"^blocks.0.attn1.to_q": 1},
    {r"blocks.1.attn1.to_q": 1, "to_q": 2},
    {"q": 1},
    {"attn1": 1},
]

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
LEAVES = [*(f"{stack}_attn.{name}" for stack in ("self", "cross") for name in "qkvo"), "ffn.0", "ffn.2"]


@pytest.fixture(scope="module")
def model():
    """diffusers' transformer with two small blocks."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "num_layers": 2, "text_dim": 16}
    return WanTransformer3DModel(**sizes, in_channels=4, out_channels=4, freq_dim=32).eval()


def modules_of(model, alpha: float, rank=4) -> dict[str, LoraModule]:
    """A LoRA of the model's attention; official names."""
    generator = torch.Generator().manual_seed(1)
    made = {}
    for index in range(2):
        for leaf in LEAVES:  # all: diffusers reads no kohya file that lacks one
            path = f"blocks.{index}.{leaf}"
            out, width = model.get_submodule(module_names(path)[1]).weight.shape
            down, up = torch.randn(rank, width, generator=generator), torch.randn(out, rank, generator=generator)
            made[path] = LoraModule(down=down, up=up, alpha=alpha)
    return made


def effective(model, path) -> dict[str, torch.Tensor]:
    """The change that diffusers makes of a file, by official path."""
    from diffusers.loaders import WanLoraLoaderMixin

    state, metadata = WanLoraLoaderMixin.lora_state_dict(str(path), return_lora_metadata=True)
    model.load_lora_adapter(state, metadata=metadata, adapter_name="one")
    ups = {p: model.get_submodule(module_names(p)[1]) for p in modules_of(model, 1)}
    deltas = {p: layer.get_delta_weight("one") for p, layer in ups.items()}
    model.delete_adapters("one")
    return deltas


@pytest.mark.parametrize("patterns", PATTERNS)
def test_patterns_are_matched_as_peft_does(patterns, model):
    from peft.utils.other import get_pattern_key

    modules = modules_of(model, 4)
    tensors = diffusers_tensors(modules)
    header = {"transformer.r": 4, "transformer.lora_alpha": 4, "transformer.alpha_pattern": patterns}
    found, _ = parse_modules(tensors, {"lora_adapter_metadata": json.dumps(header)})
    for path in modules:
        name = module_names(path)[1]
        wanted = patterns.get(get_pattern_key(patterns, name), 4)
        if list(patterns) == ["q"]:  # of a model with official names: peft would match these
            wanted = 1 if path.endswith(".q") else 4
        assert found[path].alpha == wanted, path


@pytest.mark.parametrize("pattern", ["(", "(a+)+b", ".*.*.*.*.*x", "a" * 300])
def test_patterns_that_no_one_can_follow_are_refused(pattern, model):
    header = json.dumps({"transformer.lora_alpha": 4, "transformer.alpha_pattern": {pattern: 1}})
    with pytest.raises(ModelFileError, match="alpha_pattern"):
        parse_modules(diffusers_tensors(modules_of(model, 4)), {"lora_adapter_metadata": header})


def test_each_part_of_a_pipeline_has_its_own_alpha(model):
    tensors = diffusers_tensors(modules_of(model, 4))
    half = {key: value for key, value in tensors.items() if ".blocks.0." in key}
    other = {re.sub("^transformer", "transformer_2", k): v for k, v in tensors.items() if k not in half}
    header = {"transformer.lora_alpha": 2, "transformer_2.lora_alpha": 1, "text_encoder.lora_alpha": 64}
    for part, alpha in ((half, 2.0), (other, 1.0)):
        found, _ = parse_modules(part, {"lora_adapter_metadata": json.dumps(header)})
        assert {module.alpha for module in found.values()} == {alpha}
    with pytest.raises(ModelFileError, match="holds two LoRAs"):
        parse_modules({**half, **other}, {"lora_adapter_metadata": json.dumps(header)})


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("style", ["comfyui", "kohya", "diffusers"])
def test_diffusers_reads_what_we_write_at_its_true_strength(tmp_path, model, style, rank):
    """The header of diffusers' own file has alpha 16 for rank 4; ours must not carry it on."""
    modules = modules_of(model, 4)
    header = {"transformer.r": 4, "transformer.lora_alpha": 16, "transformer.target_modules": TARGETS}
    source = tmp_path / "source.safetensors"
    tensors = {key: value.contiguous() for key, value in diffusers_tensors(modules).items()}
    safetensors.torch.save_file(tensors, source, {"lora_adapter_metadata": json.dumps(header)})
    meant = {path: 4 * module.up @ module.down for path, module in modules.items()}
    for path, delta in effective(model, source).items():
        torch.testing.assert_close(delta, meant[path], rtol=1e-4, atol=1e-4)
    options = ShipOptions(name="made", precision="fp32", key_style=style, rank=rank)
    made = ship(tmp_path / "out", {"single": Source(source)}, options).files["single"]
    read = {path: module.delta() for path, module in read_lora(made).modules.items()}
    assert set(read) == set(meant)
    for path, delta in effective(model, made).items():
        torch.testing.assert_close(delta, read[path], rtol=1e-4, atol=1e-4)
        if not rank:
            torch.testing.assert_close(delta, meant[path], rtol=1e-4, atol=1e-4)


def test_diffusers_reads_a_file_of_several_ranks(tmp_path, model):
    modules = modules_of(model, 2)
    first = next(iter(modules))
    modules[first] = LoraModule(down=modules[first].down[:1], up=modules[first].up[:, :1], alpha=3.0)
    path = write_lora(tmp_path / "x.safetensors", modules, metadata={}, dtype=torch.float32, key_style="diffusers")
    for name, delta in effective(model, path).items():
        torch.testing.assert_close(delta, modules[name].delta(), rtol=1e-4, atol=1e-4)
