"""A LoRA on its base, against the weights and the model with the LoRA in its weights."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from wan_train.core.adapters.formats import write_lora
from wan_train.core.lora_check.base import SIGMAS, fixed_inputs
from wan_train.core.lora_check.report import check_lora
from wan_train.core.wan.checkpoint import inspect
from wan_train.core.wan.loading import load_transformer
from wan_train.tests.core.adapters.helpers import linear_layers, random_modules, write_model
from wan_train.tools.miniature import FLF2V_21, I2V_21, I2V_22, T2V, TI2V_5B, dit_metadata, wan_dit

SIZE = replace(T2V, num_layers=2)


def lora(path, size=SIZE, factor=0.1, **metadata):
    modules = {p: replace(m, alpha=m.alpha * factor) for p, m in random_modules(linear_layers(size)).items()}
    return write_lora(path, modules, metadata=metadata, dtype=torch.float32), modules


@pytest.fixture
def base(tmp_path):
    return write_model(tmp_path / "wan2.2_t2v_high_noise_tiny.safetensors", SIZE)


@pytest.fixture
def single(tmp_path):
    return write_model(tmp_path / "wan_tiny.safetensors", SIZE)


def test_the_shares_of_blocks_are_those_of_the_weights(base, tmp_path):
    path, modules = lora(tmp_path / "x.safetensors")
    found = check_lora(path, base=inspect(base))
    weights = wan_dit(SIZE)
    for index in range(2):
        mine = [p for p in modules if p.startswith(f"blocks.{index}.")]
        change = torch.cat([modules[p].delta().flatten() for p in mine])
        weight = torch.cat([weights[f"{p}.weight"].flatten() for p in mine])
        assert found.on_base.by_block[f"block {index}"] == pytest.approx(float(change.norm() / weight.norm()), rel=1e-4)


def test_the_effect_is_that_of_changed_weights(single, tmp_path):
    base = single
    path, modules = lora(tmp_path / "x.safetensors")
    found = check_lora(path, base=inspect(base))
    weights = wan_dit(SIZE)
    for name, module in modules.items():
        weights[f"{name}.weight"] = weights[f"{name}.weight"] + module.delta()
    save_file(weights, tmp_path / "sum.safetensors", metadata=dit_metadata(SIZE))
    plain, changed = (
        load_transformer(inspect(p), dtype=torch.float32, device="cpu") for p in (base, tmp_path / "sum.safetensors")
    )
    latents, context, others = fixed_inputs(inspect(base).config, torch.device("cpu"))
    assert others == {}
    assert tuple(found.on_base.effect) == SIGMAS
    for sigma in SIGMAS:
        time = torch.tensor([1000.0 * sigma])
        with torch.no_grad():
            one, other = plain(sigma * latents, time, context), changed(sigma * latents, time, context)
        assert found.on_base.effect[sigma] == pytest.approx(float((other - one).norm() / one.norm()), rel=1e-3)
    assert "works on this model: it moves the output on fixed noise by up to" in found.verdict
    text = found.lines()
    assert any(line.strip().startswith("block 1") and line.endswith("#") for line in text)
    assert any(line.strip().startswith("sigma 0.9") for line in text)


@pytest.mark.parametrize("size", [I2V_21, FLF2V_21, I2V_22, TI2V_5B])
def test_every_kind_of_model_is_run(tmp_path, size):
    size = replace(size, num_layers=1)
    path, _ = lora(tmp_path / "x.safetensors", size)
    found = check_lora(path, base=inspect(write_model(tmp_path / "m.safetensors", size)))
    assert all(0 < share < 10 for share in found.on_base.effect.values())


@pytest.mark.parametrize(
    ("factor", "sentence"),
    [
        (1e-5, "changes no block by more than"),
        (5e-4, "which is little. Try a strength of 2"),
        (300.0, "The change is larger than the weights themselves in 2 blocks"),
    ],
)
def test_too_little_and_too_much_are_said(single, tmp_path, factor, sentence):
    path, _ = lora(tmp_path / "x.safetensors", factor=factor)
    assert sentence in check_lora(path, base=inspect(single)).verdict


def test_only_the_noise_levels_that_the_expert_sees_are_judged(base, tmp_path):
    path, _ = lora(tmp_path / "x_high_noise.safetensors")
    found = check_lora(path, base=inspect(base))
    assert found.on_base.used == (0.9,)
    assert f"by up to {100 * found.on_base.effect[0.9]:.3g} %" in found.verdict
    assert sum(line.endswith("(the other expert's)") for line in found.lines()) == 8


def test_the_wrong_expert_and_the_wrong_size_are_said(base, tmp_path):
    path, _ = lora(tmp_path / "x.safetensors", **{"modelspec.timestep_range": "0,875"})
    found = check_lora(path, base=inspect(base))
    assert found.verdict.startswith("The LoRA was trained for the low noise expert, and wan2.2_t2v_high_noise_tiny")
    other, _ = lora(tmp_path / "y.safetensors", replace(T2V, dim=48, num_layers=2))
    found = check_lora(other, base=inspect(base))
    assert "they are of different size" in found.verdict
    assert "Choose the model that it was trained on" in found.verdict
    assert found.on_base.effect == {}
    assert found.lines()


def test_a_base_that_is_distilled_by_its_name_is_told(tmp_path):
    path, _ = lora(tmp_path / "x.safetensors")
    for name, is_told in (("wan2.2_t2v_high_noise_lightx2v_4steps", True), ("wan2.2_t2v_high_noise_14B", False)):
        found = check_lora(path, base=inspect(write_model(tmp_path / f"{name}.safetensors", SIZE)))
        assert any("distilled to few steps" in str(finding) for finding in found.findings) == is_told


def test_a_lora_of_zeros_is_told_of_once(single, tmp_path):
    modules = {p: replace(m, up=torch.zeros_like(m.up)) for p, m in random_modules(linear_layers(SIZE)).items()}
    path = write_lora(tmp_path / "x.safetensors", modules, metadata={}, dtype=torch.float32)
    found = check_lora(path, base=inspect(single))
    assert [finding.sentence for finding in found.findings] == [
        "The LoRA changes nothing: a matrix of every layer is zero."
    ]
    assert set(found.on_base.effect.values()) == {0.0}
