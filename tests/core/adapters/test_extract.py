"""A LoRA out of a fine-tune, and folded into a checkpoint: against the weights themselves, and in the host."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from wan_train.core.adapters.extract import extract
from wan_train.core.adapters.fold import fold
from wan_train.core.adapters.formats import write_lora
from wan_train.core.errors import ConfigError
from wan_train.core.wan.checkpoint import inspect
from wan_train.core.wan.loading import load_transformer
from wan_train.core.wan.stored import StoredWeights
from wan_train.tests.core.adapters.helpers import linear_layers, random_modules, write_model
from wan_train.tests.core.wan.gguf.helpers import make_blocks, plain, write_gguf
from wan_train.tools.miniature import I2V_22, T2V, dit_metadata, wan_dit

SIZE = replace(T2V, num_layers=2)


@pytest.fixture
def base(tmp_path):
    return write_model(tmp_path / "base.safetensors", SIZE)


@pytest.fixture
def tuned(tmp_path):
    """The base with a LoRA of rank 2 in its weights, and a norm that was trained as well."""
    modules, weights = random_modules(linear_layers(SIZE), rank=2), wan_dit(SIZE)
    for path, module in modules.items():
        weights[f"{path}.weight"] = weights[f"{path}.weight"] + module.delta()
    weights["blocks.1.norm3.weight"] = weights["blocks.1.norm3.weight"] + 0.5
    path = tmp_path / "tuned.safetensors"
    save_file(weights, path, metadata=dit_metadata(SIZE))
    return path, modules


def test_the_lora_of_a_fine_tune_is_found(base, tuned):
    path, modules = tuned
    found = extract(inspect(base), inspect(path), rank=8, energy=1 - 1e-9)
    assert list(found.modules) == list(modules)
    assert {module.rank for module in found.modules.values()} == {2}
    for name, module in modules.items():
        torch.testing.assert_close(found.modules[name].delta(), module.delta(), atol=1e-4, rtol=1e-3)
    whole = sum(float(m.delta().double().square().sum()) for m in modules.values())
    norm = 0.25 * SIZE.dim
    assert found.outside == pytest.approx((norm / (whole + norm)) ** 0.5, rel=1e-3)
    assert "of the difference is in other tensors" in str(found)


def test_a_rank_is_the_best_of_its_size(base, tuned):
    path, modules = tuned
    found = extract(inspect(base), inspect(path), rank=1)
    for name, module in modules.items():
        values = torch.linalg.svdvals(module.delta().double())
        assert found.report.errors[name] == pytest.approx(float(values[1] / values.norm()), rel=1e-2)


def test_models_that_make_no_difference_are_refused(base, tmp_path):
    with pytest.raises(ConfigError, match="same linear layers"):
        extract(inspect(base), inspect(base), rank=4)
    other = write_model(tmp_path / "i2v.safetensors", replace(I2V_22, num_layers=2))
    with pytest.raises(ConfigError, match="no fine-tune"):
        extract(inspect(base), inspect(other), rank=4)


@pytest.fixture
def lora(tmp_path):
    return write_lora(
        tmp_path / "lora.safetensors", random_modules(linear_layers(SIZE)), metadata={}, dtype=torch.float32
    )


def test_folded_weights_are_the_sum(base, lora, tmp_path):
    out, before = tmp_path / "out.safetensors", load_file(base)
    folded = fold(inspect(base), [(lora, 0.5), (lora, 0.25)], out)
    modules, after = random_modules(linear_layers(SIZE)), load_file(out)
    assert folded.num_changed == len(modules)
    assert after.keys() == before.keys()
    for name, weight in before.items():
        module = modules.get(name.removesuffix(".weight"))
        wanted = weight if module is None else weight + 0.75 * module.delta()
        torch.testing.assert_close(after[name], wanted, atol=1e-5, rtol=1e-5)
        assert module is not None or torch.equal(after[name], weight)


@pytest.mark.parametrize(("precision", "error"), [("bf16", 0.004), ("fp16", 0.001), ("fp8_scaled", 0.04)])
def test_a_smaller_file_is_read_by_us_and_by_the_host(comfy, base, lora, tmp_path, precision, error):
    out, whole = tmp_path / "out.safetensors", tmp_path / "whole.safetensors"
    fold(inspect(base), [(lora, 1.0)], whole)
    fold(inspect(base), [(lora, 1.0)], out, precision=precision)
    info = inspect(out)
    assert info.weights == precision
    assert out.stat().st_size < 0.75 * whole.stat().st_size
    wanted, found = StoredWeights(inspect(whole)), StoredWeights(info)
    cpu = torch.device("cpu")
    for path in linear_layers(SIZE):
        weight = wanted.read(f"{path}.weight", cpu)
        off = (found.read(f"{path}.weight", cpu) - weight).norm() / weight.norm()
        assert 0 < off < error, path
    host = comfy.sd.load_diffusion_model(str(out), model_options={"dtype": torch.float32}).model.diffusion_model
    ours = load_transformer(info, dtype=torch.float32, device="cpu")
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 16, 2, 8, 8, generator=generator)
    context = torch.randn(1, 512, SIZE.text_dim, generator=generator)
    with torch.no_grad():
        theirs = host(latents, torch.tensor([500.0]), context)
        torch.testing.assert_close(ours(latents, torch.tensor([500.0]), context), theirs, atol=2e-3, rtol=2e-3)


def test_an_fp8_file_stays_one(base, lora, tmp_path):
    small, again = tmp_path / "small.safetensors", tmp_path / "again.safetensors"
    fold(inspect(base), [(lora, 1.0)], small, precision="fp8_scaled")
    fold(inspect(small), [(lora, -1.0)], again)
    assert inspect(again).weights == "fp8_scaled"
    wanted, found, cpu = StoredWeights(inspect(base)), StoredWeights(inspect(again)), torch.device("cpu")
    for path, module in random_modules(linear_layers(SIZE)).items():
        weight = wanted.read(f"{path}.weight", cpu)
        assert (found.read(f"{path}.weight", cpu) - weight).norm() < 0.06 * (weight + module.delta()).norm(), path


def test_what_cannot_be_folded_is_one_sentence(base, lora, tmp_path):
    info, out = inspect(base), tmp_path / "out.safetensors"
    for settings, message in (
        ({"loras": []}, "nothing to fold"),
        ({"precision": "int4"}, "choose one of same"),
        ({"out": tmp_path / "x.ckpt"}, "ends in .safetensors"),
        ({"out": base}, "is there already"),
    ):
        with pytest.raises(ConfigError, match=message):
            fold(info, **{"loras": [(lora, 1.0)], "out": out, **settings})
    assert not out.exists()


def test_a_gguf_file_is_folded_into_another_precision(tmp_path):
    size = replace(T2V, dim=128, ffn_dim=256, num_heads=1, text_dim=4096, num_layers=1)
    tensors = {}
    for name, weight in wan_dit(size).items():
        if name.startswith("blocks.") and weight.ndim == 2:
            raw = make_blocks("Q8_0", weight.numel() // 32, seed=name, factor=0.001)
            tensors[name] = ("Q8_0", tuple(weight.shape), raw)
        else:
            tensors[name] = plain(weight)
    info = inspect(write_gguf(tmp_path / "base.gguf", tensors))
    modules = random_modules(linear_layers(size))
    path = write_lora(tmp_path / "lora.safetensors", modules, metadata={}, dtype=torch.float32)
    with pytest.raises(ConfigError, match="is a GGUF file"):
        fold(info, [(path, 1.0)], tmp_path / "same.safetensors")
    fold(info, [(path, 1.0)], tmp_path / "out.safetensors", precision="bf16")
    made, cpu = inspect(tmp_path / "out.safetensors"), torch.device("cpu")
    assert StoredWeights(made).entries["blocks.0.ffn.0.weight"].dtype == "BF16"
    for name, module in modules.items():
        wanted = StoredWeights(info).read(f"{name}.weight", cpu) + module.delta()
        found = StoredWeights(made).read(f"{name}.weight", cpu)
        assert torch.equal(found, wanted.bfloat16().float()), name
