"""The nodes for what one does with LoRAs after the run, and what the host makes of their files."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from wan_train.core.adapters.formats import read_lora, write_lora
from wan_train.core.wan.checkpoint import inspect
from wan_train.tests.core.adapters.helpers import linear_layers, random_modules
from wan_train.tests.host.graphs import changed, dit, node
from wan_train.tests.host.runs import succeeded
from wan_train.tools.miniature import T2V

FILE = {"precision": "fp32", "key_style": "comfyui"}
BASE = "wan_mini_high_noise.safetensors"


@pytest.fixture(scope="module")
def loras(host):
    """Two LoRAs of the miniature high noise expert, in the loras folder."""
    folder = host.base / "models" / "loras"
    folder.mkdir(exist_ok=True)
    config = inspect(host.base / "models" / "diffusion_models" / BASE).config
    size = replace(
        T2V, dim=config.dim, ffn_dim=config.ffn_dim, num_heads=config.num_heads, num_layers=config.num_layers
    )
    for number, name in enumerate(("after_one", "after_two"), 1):
        modules = random_modules(linear_layers(size), 4, number)
        weak = {path: replace(module, alpha=0.2) for path, module in modules.items()}
        write_lora(folder / f"{name}_high_noise.safetensors", weak, metadata={}, dtype=torch.float32)
    return folder


def files(*names):
    return {name: node("WanLoRAFromFile", lora_file=f"{name}_high_noise.safetensors", stage="auto") for name in names}


def text(entry, node_id):
    return entry["outputs"][node_id]["text"][0]


def test_loras_are_merged_and_changed(host, loras):
    strengths = {"strength_1": 0.5, "strength_2": -1.0, "strength_3": 1.0, "strength_4": 1.0}
    cut = {"rank": 32, "energy": 0.0}
    merged = node(
        "WanMergeLoRAs", lora_1=["after_one", 0], lora_2=["after_two", 0], method="linear", density=0.5, seed=0,
        name="after_sum", **strengths,
        **cut, **FILE,
    )  # fmt: skip
    less = node(
        "WanChangeLoRA", lora=["merged", 0], drop_blocks="0", drop_layers="", strength=1.0, name="after_less",
        **{**cut, "rank": 2},
        **FILE,
    )  # fmt: skip
    entry = host.run({**files("after_one", "after_two"), "merged": merged, "less": less})
    assert succeeded(entry)
    one, two = (read_lora(loras / f"{name}_high_noise.safetensors") for name in ("after_one", "after_two"))
    for path, module in read_lora(loras / "after_sum_high_noise.safetensors").modules.items():
        wanted = 0.5 * one.modules[path].delta() - two.modules[path].delta()
        torch.testing.assert_close(module.delta(), wanted, atol=1e-4, rtol=1e-4)
    less_file = read_lora(loras / "after_less_high_noise.safetensors")
    assert less_file.ranks == (2,)
    assert not any(path.startswith("blocks.0.") for path in less_file.modules)
    assert "modules of rank 2; largest relative error" in text(entry, "less")
    ties = {**merged, "inputs": {**merged["inputs"], "method": "dare_ties", "name": "after_dare"}}
    assert succeeded(host.run({**files("after_one", "after_two"), "merged": ties}))
    assert (loras / "after_dare_high_noise.safetensors").exists()
    again = {**merged, "inputs": {**merged["inputs"], "strength_1": 0.25}}
    entry = host.run({**files("after_one", "after_two"), "merged": again})
    assert "- another file is called after_sum, and stays as it is: what was made now is after_sum_v2" in text(
        entry, "merged"
    )


def test_the_host_samples_with_what_was_folded_and_it_is_extracted_again(host, loras):
    folded = node(
        "WanFoldLoRA", lora=["after_one", 0], model_name=BASE, strength=0.5, precision="same", name="after_folded"
    )
    assert succeeded(host.run({**files("after_one"), "folded": folded}))
    assert (host.base / "models" / "diffusion_models" / "after_folded.safetensors").exists()
    saved = {
        "model": node("UNETLoader", unet_name="after_folded.safetensors", weight_dtype="default"),
        "folded": node("ModelSave", model=["model", 0], filename_prefix="from_folded"),
        "base": node("UNETLoader", unet_name=BASE, weight_dtype="default"),
        "lora": node(
            "LoraLoaderModelOnly", model=["base", 0], lora_name="after_one_high_noise.safetensors", strength_model=0.5
        ),
        "patched": node("ModelSave", model=["lora", 0], filename_prefix="from_lora"),
    }
    assert succeeded(host.run(saved))
    one, other = (load_file(next((host.base / "output").glob(f"from_{kind}_*"))) for kind in ("folded", "lora"))
    assert one.keys() == other.keys()
    plain = load_file(host.base / "models" / "diffusion_models" / BASE)
    for path in read_lora(loras / "after_one_high_noise.safetensors").modules:
        name = f"model.diffusion_model.{path}.weight"
        change = one[name].float() - plain[f"{path}.weight"].float()
        assert change.norm() > 0
        assert (one[name].float() - other[name].float()).norm() < 0.05 * change.norm(), name
    extracted = node(
        "WanExtractLoRA", model_name=BASE, tuned_model="after_folded.safetensors", rank=4, energy=0.0, all_linears=False,
        name="after_again", **FILE,
    )  # fmt: skip
    assert succeeded(host.run({"extracted": extracted}))
    found = read_lora(loras / "after_again_high_noise.safetensors").modules
    for path, module in read_lora(loras / "after_one_high_noise.safetensors").modules.items():
        torch.testing.assert_close(found[path].delta(), 0.5 * module.delta(), atol=1e-3, rtol=1e-2)


def test_a_lora_is_checked_with_its_base_and_this_workflow(host, loras):
    prompt = {
        "dit": dit("wan_mini_high_noise.safetensors"),
        "check": node(
            "WanCheckLoRA", lora_file="after_one_high_noise.safetensors", dit=["dit", 0], look_at_workflow=True
        ),
        "model": node("UNETLoader", unet_name="wan_mini_low_noise.safetensors", weight_dtype="default"),
        "lora": node(
            "LoraLoaderModelOnly", model=["model", 0], lora_name="after_one_high_noise.safetensors", strength_model=1.0
        ),
        "save": node("ModelSave", model=["lora", 0], filename_prefix="checked"),
    }
    entry = host.run(prompt)
    assert succeeded(entry)
    report = text(entry, "check")
    assert report.startswith(
        "The LoRA is for the high noise expert, and node lora (LoraLoaderModelOnly) puts it on the low"
    )
    assert "sigma 0.9" in report
    assert "block 0" in report
    entry = host.run(changed(prompt, "check", look_at_workflow=False))
    assert text(entry, "check").startswith("after_one_high_noise.safetensors works on this model")
    del prompt["check"]["inputs"]["dit"]
    entry = host.run(changed(prompt, "lora", strength_model=0.0))
    assert text(entry, "check").startswith("The strength is 0 in node lora (LoraLoaderModelOnly). Set it to 1.")


def test_a_file_of_two_loras_is_split_and_used(host, loras):
    one, two = (load_file(loras / f"{name}_high_noise.safetensors") for name in ("after_one", "after_two"))
    names = ("transformer", "transformer_2")
    double = {
        key.replace("diffusion_model", name): tensor
        for name, tensors in zip(names, (one, two), strict=True)
        for key, tensor in tensors.items()
    }
    save_file(double, loras / "after_double.safetensors")
    prompt = {
        "split": node(
            "WanSplitLoRA", lora_file="after_double.safetensors", name="", precision="same", key_style="comfyui"
        ),
        "pair": node(
            "MergeStages", high=["split", 0], low=["split", 1], name="after_pair", rank=0, author="", description="",
            second_strength=1.0, **FILE,
        ),
    }  # fmt: skip
    entry = host.run(prompt)
    assert succeeded(entry)
    assert text(entry, "split").startswith("after_double_high_noise.safetensors: ")
    for name, tensors in (("after_pair_high_noise", one), ("after_pair_low_noise", two)):
        made = load_file(loras / f"{name}.safetensors")
        assert made.keys() == tensors.keys()
        assert all(torch.equal(made[key], tensor) for key, tensor in tensors.items())
    model = {
        "model": node("UNETLoader", unet_name=BASE, weight_dtype="default"),
        "lora": node(
            "LoraLoaderModelOnly",
            model=["model", 0],
            lora_name="after_double_high_noise.safetensors",
            strength_model=1.0,
        ),
        "save": node("ModelSave", model=["lora", 0], filename_prefix="from_split"),
    }
    assert succeeded(host.run(model))
    changed_model = load_file(next((host.base / "output").glob("from_split_*")))
    plain = load_file(host.base / "models" / "diffusion_models" / BASE)
    for path, module in read_lora(loras / "after_one_high_noise.safetensors").modules.items():
        change = changed_model[f"model.diffusion_model.{path}.weight"].float() - plain[f"{path}.weight"].float()
        assert (change - module.delta()).norm() < 0.05 * module.delta().norm(), path


def test_a_file_of_two_loras_is_refused_with_the_node_that_splits_it(host, loras):
    tensors = load_file(loras / "after_one_high_noise.safetensors")
    names = ("transformer", "transformer_2")
    double = {k.replace("diffusion_model", name): t.clone() for name in names for k, t in tensors.items()}
    save_file(double, loras / "after_refused.safetensors")
    entry = host.run(
        {
            "file": node("WanLoRAFromFile", lora_file="after_refused.safetensors", stage="high noise"),
            "less": node(
                "WanChangeLoRA", lora=["file", 0], rank=2, energy=0.0, drop_blocks="", drop_layers="", strength=1.0,
                name="never", **FILE,
            ),
        }
    )  # fmt: skip
    assert not succeeded(entry)
    assert "Here: choose the file in Split LoRA" in str(entry["status"]["messages"])
    entry = host.run({"check": node("WanCheckLoRA", lora_file="after_refused.safetensors", look_at_workflow=False)})
    assert "choose the file in Split LoRA" in text(entry, "check")
    assert "The low noise half" in text(entry, "check")


def test_an_empty_name_is_one_sentence(host, loras):
    bad = node(
        "WanChangeLoRA",
        lora=["after_one", 0],
        rank=0,
        energy=0.0,
        drop_blocks="",
        drop_layers="",
        strength=1.0,
        name="",
        **FILE,
    )
    entry = host.run({**files("after_one"), "bad": bad})
    assert not succeeded(entry)
    assert "name is empty" in str(entry["status"]["messages"])
