"""What the host makes of a file as it is: the notes agree with its own loader."""

import json
import logging
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from wan_train.core.adapters.formats import (
    diffusers_tensors,
    kohya_tensors,
    parse_modules,
    read_lora,
    to_tensors,
    write_lora,
)
from wan_train.core.adapters.keys import component, is_read_by_host, parse_key
from wan_train.core.errors import ModelFileError, RunError
from wan_train.tests.core.adapters.helpers import linear_layers, random_modules, write_model
from wan_train.tools.miniature import T2V

SIZE = replace(T2V, num_layers=1)


@pytest.fixture(scope="module")
def host_model(comfy, tmp_path_factory):
    return comfy.sd.load_diffusion_model(str(write_model(tmp_path_factory.mktemp("m") / "m.safetensors", SIZE)))


def renamed(change):
    return {change(key): value for key, value in to_tensors(random_modules(linear_layers(SIZE))).items()}


SPELLINGS = {
    "official": renamed(lambda key: key),
    "kohya": kohya_tensors(random_modules(linear_layers(SIZE))),
    "diffusers": diffusers_tensors(random_modules(linear_layers(SIZE))),
    "peft": renamed(lambda key: key.replace("diffusion_model.", "base_model.model.")),
    "compiled": renamed(lambda key: key.replace("diffusion_model.", "diffusion_model._orig_mod.")),
    "compiled blocks": renamed(lambda key: key.replace("blocks.0.", "blocks.0._orig_mod.")),
    "parallel": renamed(lambda key: key.replace("diffusion_model.", "module.")),
    "peft parallel": renamed(lambda key: key.replace("diffusion_model.", "base_model.model.module.")),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_read_and_what_the_host_leaves_out_is_told(comfy, host_model, tmp_path, caplog, spelling):
    import comfy.lora
    import comfy.lora_convert

    tensors = {key: value.contiguous() for key, value in SPELLINGS[spelling].items()}
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(tensors, path)
    file = read_lora(path)
    assert set(file.modules) == set(linear_layers(SIZE))
    with caplog.at_level(logging.WARNING):
        keys = comfy.lora.model_lora_keys_unet(host_model.model, {})
        loaded = comfy.lora.load_lora(comfy.lora_convert.convert_lora(dict(tensors)), keys)
    assert len(loaded) == (len(file.modules) if all(map(is_read_by_host, tensors)) else 0)
    assert bool(file.notes) == (not loaded)
    assert all("do not know" in note for note in file.notes)


@pytest.mark.parametrize(
    "key",
    [
        "lora_unet__orig_mod_blocks_0_self_attn_q.lora_down.weight",
        "lora_unet_blocks_0__orig_mod_self_attn_q.lora_down.weight",
        "base_model.model._orig_mod.blocks.0.self_attn.q.lora_A.weight",
        "module.diffusion_model.blocks.0.self_attn.q.lora_A.weight",
        "diffusion_model.module.blocks.0.self_attn.q.lora_A.weight",
        "module.base_model.model.blocks.0.self_attn.q.lora_A.weight",
        "transformer.base_model.model.blocks.0.attn1.to_q.lora_A.default.weight",
        "unet.base_model.model._orig_mod.blocks.0._orig_mod.self_attn.q.lora_A.weight",
        "model.blocks.0.self_attn.q.lora_A.weight",
    ],
)
def test_wrappers_names_are_passed_over(key):
    parsed = parse_key(key)
    assert parsed is not None
    assert parsed.path == "blocks.0.self_attn.q"
    assert not is_read_by_host(key)


def test_another_name_before_the_modules_is_refused_for_what_it_is():
    tensors = renamed(lambda key: key.replace("diffusion_model.", "my_net."))
    with pytest.raises(ModelFileError, match=r"'my_net\.blocks.*', which begins as no known trainer's do: save"):
        parse_modules(tensors)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("transformer_2.base_model.model.", "transformer_2"),
        ("base_model.model.transformer_2.", "transformer_2"),
        ("module.transformer.", "transformer"),
        ("diffusion_model.", ""),
    ],
)
def test_the_part_of_a_pipeline_is_known_whatever_is_around_it(name, part):
    assert component(f"{name}blocks.0.self_attn.q.lora_A.weight") == part


@pytest.mark.parametrize(("alpha", "times"), [(8.0, "0.25"), (0.5, "4"), (2.0, None)])
def test_an_alpha_in_the_header_alone_is_told(tmp_path, alpha, times):
    tensors = {k: v for k, v in to_tensors(random_modules(linear_layers(SIZE))).items() if not k.endswith(".alpha")}
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(tensors, path, {"lora_adapter_metadata": json.dumps({"lora_alpha": alpha})})
    notes = read_lora(path).notes
    assert len(notes) == (times is not None)
    assert all(f"there it has {times} times the strength" in note for note in notes)


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_an_alpha_that_is_no_number_is_neither_read_nor_written(tmp_path, alpha):
    modules = random_modules(linear_layers(SIZE))
    path, name = tmp_path / "x.safetensors", "diffusion_model.blocks.0.ffn.0.alpha"
    safetensors.torch.save_file({**to_tensors(modules), name: torch.tensor(alpha)}, path)
    with pytest.raises(ModelFileError, match=r"alpha (nan|inf) for blocks\.0\.ffn\.0"):
        read_lora(path)
    modules["blocks.0.ffn.0"] = replace(modules["blocks.0.ffn.0"], alpha=alpha)
    with pytest.raises(RunError, match="not finite"):
        write_lora(tmp_path / "y.safetensors", modules, metadata={})
    assert not (tmp_path / "y.safetensors").exists()
