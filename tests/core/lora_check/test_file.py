"""What is said of a LoRA's file alone."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from wan_train.core.adapters.formats import LoraModule, to_tensors, write_lora
from wan_train.core.lora_check.file import change_norm
from wan_train.core.lora_check.report import check_lora
from wan_train.tests.core.adapters.helpers import linear_layers, random_modules
from wan_train.tools.miniature import I2V_21, T2V

SIZE = replace(T2V, num_layers=2)


@pytest.fixture
def check(tmp_path):
    """The check of a LoRA with `change` made to each of its modules."""

    def run(change=lambda _path, module: module, size=SIZE, name="x.safetensors", **metadata):
        modules = {path: change(path, m) for path, m in random_modules(linear_layers(size)).items()}
        save_file(to_tensors(modules, torch.float32), tmp_path / name, metadata={"who": "me", **metadata})
        return check_lora(tmp_path / name)

    return run


def test_the_norm_is_that_of_the_whole_change():
    for module in random_modules(linear_layers(SIZE)).values():
        assert change_norm(module) == pytest.approx(float(module.delta().norm()), rel=1e-5)


def test_a_sound_file_is_said_to_be_sound(check):
    found = check(name="cat_low_noise.safetensors", **{"modelspec.architecture": "wan2.2-t2v-a14b/lora"})
    assert found.is_well
    assert found.verdict.startswith("cat_low_noise.safetensors is sound: 20 layers")
    text = "\n".join(found.lines())
    assert "wan2.2-t2v-a14b (width 96), low noise expert" in text
    assert "20, LoRA of rank 2, official names" in text
    assert "alpha / rank = 0.5" in text


def test_image_layers_tell_the_model(check):
    assert "a Wan 2.1 image-to-video model" in "\n".join(check(size=replace(I2V_21, num_layers=1)).lines())


def zeroed(_path, module):
    return replace(module, up=torch.zeros_like(module.up))


def without_numbers(path, module):
    return replace(module, up=module.up * float("nan")) if path == "blocks.1.ffn.0" else module


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (zeroed, "changes nothing: a matrix of every layer is zero. It was saved before the first step"),
        (lambda _, m: replace(m, alpha=0.0), "changes nothing: alpha is 0 in every layer. Write the file again"),
        (lambda _, m: replace(m, up=m.up * 1e-7), "changes of all layers are tiny"),
        (without_numbers, "1 of 20 layers holds numbers that are not finite (NaN or infinite), such as blocks.1.ffn.0"),
        (lambda _, m: replace(m, alpha=float("nan")), "has the alpha nan for"),
    ],
)
def test_what_is_wrong_comes_first(check, change, sentence):
    found = check(change)
    assert not found.is_well
    assert sentence in found.lines()[0]


def test_some_zeros_are_a_hint(check):
    found = check(lambda path, m: zeroed(path, m) if "ffn" in path else m)
    assert found.is_well
    assert "4 of 20 layers are zero, the first is blocks.0.ffn.0" in found.verdict


def test_names_that_the_host_does_not_know_are_the_verdict(tmp_path):
    path = write_lora(
        tmp_path / "x.safetensors", random_modules(linear_layers(SIZE)), metadata={}, key_style="diffusers"
    )
    found = check_lora(path)
    assert "ComfyUI's loaders do not know" in found.verdict
    assert "any change or merge of the LoRA does that" in found.verdict


def oft_file(path, fill, **metadata):
    """As a training without a constraint writes it: its alpha is 0, and no strength."""
    tensors = {}
    for layer, module in random_modules(linear_layers(SIZE)).items():
        tensors[f"diffusion_model.{layer}.oft_blocks"] = torch.full((module.shape[0] // 4, 4, 4), fill).triu(1)
        tensors[f"diffusion_model.{layer}.alpha"] = torch.zeros(())
    save_file(tensors, path, metadata={"format": "pt", **metadata})
    return check_lora(path)


def test_rotations_are_sound_whatever_their_alpha_unless_they_turn_nothing(tmp_path):
    found = oft_file(tmp_path / "x.safetensors", 0.1)
    assert found.is_well
    assert found.verdict.startswith("x.safetensors is sound: 20 layers")
    assert "oft of rank 4" in (text := "\n".join(found.lines()))
    assert "Strength" not in text
    still = oft_file(tmp_path / "x.safetensors", 0.0)
    assert not still.is_well
    assert "The LoRA changes nothing: a matrix of every layer is zero." in still.verdict


def test_what_is_no_lora_is_named(tmp_path):
    save_file(
        {"head.modulation": torch.zeros(1), "blocks.0.ffn.0.weight": torch.zeros(2, 2)}, tmp_path / "x.safetensors"
    )
    assert "a whole model, not a LoRA" in check_lora(tmp_path / "x.safetensors").verdict


def test_a_file_for_the_hosts_loader_alone_is_not_said_to_have_no_effect(tmp_path):
    tensors = to_tensors(random_modules(linear_layers(SIZE)))
    tensors["diffusion_model.blocks.0.ffn.0.diff_b"] = torch.ones(4)
    save_file(tensors, tmp_path / "x.safetensors")
    found = check_lora(tmp_path / "x.safetensors")
    assert found.is_well
    assert "load it with the host's own LoRA loader instead" in found.verdict
    assert "sound" not in found.verdict
    assert found.lines() == [found.verdict, ""]


def test_one_layer_is_enough(tmp_path):
    module = LoraModule(down=torch.ones(1, 4), up=torch.ones(4, 1), alpha=1.0)
    assert check_lora(write_lora(tmp_path / "x.safetensors", {"blocks.0.ffn.0": module}, metadata={})).is_well
