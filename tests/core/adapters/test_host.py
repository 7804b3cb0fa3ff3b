"""The files in the real ComfyUI: everything loads, and the patched weights are W + alpha / r * up @ down."""

import logging

import pytest
import safetensors.torch
import torch
from wan_train.core.adapters.formats import parse_modules, read_lora, write_lora
from wan_train.core.adapters.merged_base import merged_base
from wan_train.core.adapters.setup import adapter_modules, adapter_state, add_adapter, write_adapter
from wan_train.core.settings.adapter import AdapterOptions
from wan_train.core.wan.config import WanConfig
from wan_train.core.wan.model import WanTransformer

DIM, TEXT_DIM = 128, 4096  # the host takes heads of 128 channels and text of 4096, and detects neither


def make_transformer() -> WanTransformer:
    config = WanConfig(dim=DIM, ffn_dim=256, num_heads=1, num_layers=2, text_dim=TEXT_DIM)
    model = WanTransformer(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            fan_in = p[0].numel() if p.ndim > 1 else 1
            p.copy_(torch.randn(p.shape, generator=generator) * (fan_in**-0.5 if p.ndim > 1 else 0.1))
    return model


def forward(model) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    latents = torch.randn(1, 16, 2, 8, 8, generator=generator)
    context = torch.randn(1, 512, TEXT_DIM, generator=generator)
    with torch.no_grad():
        return model(latents, torch.tensor([500.0]), context)


@pytest.fixture(scope="module")
def trained():
    """Our transformer, before and after a LoRA of scale 0.5 with random values was put in."""
    model = make_transformer()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.Generator().manual_seed(5)
    for _, p in add_adapter(model, AdapterOptions(rank=4, alpha=2.0), seed=1):
        p.data = torch.randn(p.shape, generator=generator) * 0.1
    return base, model


@pytest.fixture(scope="module")
def host_model(comfy, trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("host") / "tiny_wan.safetensors"
    safetensors.torch.save_file(trained[0], path)
    return comfy.sd.load_diffusion_model(str(path))


@pytest.fixture(scope="module")
def expected(trained):
    modules, _ = parse_modules(adapter_state(trained[1]))
    return {f"diffusion_model.{p}.weight": trained[0][f"{p}.weight"] + m.delta() for p, m in modules.items()}


def load_in_host(comfy, host_model, path):
    import comfy.lora
    import comfy.lora_convert

    tensors = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(str(path), safe_load=True))
    return comfy.lora.load_lora(tensors, comfy.lora.model_lora_keys_unet(host_model.model, {}))


@pytest.mark.parametrize("style", ["official", "kohya"])
def test_host_loads_every_module_and_adds_the_same_change(
    comfy, trained, host_model, expected, tmp_path, caplog, style
):
    modules, _ = parse_modules(adapter_state(trained[1]))
    path = write_lora(tmp_path / "x.safetensors", modules, metadata={}, dtype=torch.float32, key_style=style)
    with caplog.at_level(logging.WARNING):
        patches = load_in_host(comfy, host_model, path)
    assert "not loaded" not in caplog.text
    assert patches.keys() == expected.keys()
    assert len(patches) == 20

    patched = host_model.clone()
    assert len(patched.add_patches(patches, 1.0)) == 20
    patched.patch_model(device_to=torch.device("cpu"), force_patch_weights=True)
    try:
        weights = {key: tensor.clone() for key, tensor in patched.model.state_dict().items() if key in expected}
        out = forward(patched.model.diffusion_model)
    finally:
        patched.unpatch_model(device_to=torch.device("cpu"))
    for key, weight in expected.items():
        torch.testing.assert_close(weights[key], weight, atol=1e-5, rtol=0)
    plain = forward(host_model.model.diffusion_model)
    trained_out = forward(trained[1])
    assert (out - plain).abs().max() > 0.05
    torch.testing.assert_close(out, trained_out, atol=1e-4, rtol=1e-4)


def test_host_strength_scales_the_change(comfy, trained, host_model, expected, tmp_path):
    modules, _ = parse_modules(adapter_state(trained[1]))
    path = write_lora(tmp_path / "x.safetensors", modules, metadata={}, dtype=torch.float32)
    import comfy.lora

    key = "diffusion_model.blocks.1.cross_attn.k.weight"
    patch = load_in_host(comfy, host_model, path)[key]
    base = trained[0]["blocks.1.cross_attn.k.weight"]
    half = comfy.lora.calculate_weight([(0.5, patch, 1.0, None, None)], base.clone(), key)
    torch.testing.assert_close(half, (base + expected[key]) / 2, atol=1e-5, rtol=0)


def test_bf16_file_is_near_the_trained_weights(comfy, trained, host_model, tmp_path):
    modules, _ = parse_modules(adapter_state(trained[1]))
    path = write_lora(tmp_path / "x.safetensors", modules, metadata={})
    assert len(load_in_host(comfy, host_model, path)) == 20
    for name, module in read_lora(path).modules.items():
        error = (module.delta() - modules[name].delta()).norm() / modules[name].delta().norm()
        assert 0 < error < 0.005  # bf16 keeps 8 bits


def test_forward_of_the_trained_adapter_equals_merged_weights(trained):
    base, model = trained
    merged = make_transformer()
    plain = forward(merged)
    assert list(adapter_modules(model))[:4] == [f"blocks.0.self_attn.{name}" for name in "qkvo"]
    weights = dict(merged.named_parameters())
    assert all(torch.equal(weights[name], tensor) for name, tensor in base.items())
    for path, module in parse_modules(adapter_state(model))[0].items():
        weights[f"{path}.weight"].data += module.delta()
    torch.testing.assert_close(forward(model), forward(merged), atol=1e-5, rtol=1e-5)
    assert (forward(merged) - plain).abs().max() > 0.05


def test_gradients_reach_every_adapter_of_a_bf16_transformer():
    model = make_transformer().to(torch.bfloat16)
    parameters = add_adapter(model, AdapterOptions(rank=2), seed=0)
    generator = torch.Generator().manual_seed(5)
    for _, p in parameters:
        p.data = torch.randn(p.shape, generator=generator) * 0.1
    latents, context = torch.randn(1, 16, 1, 4, 4), torch.randn(1, 8, TEXT_DIM)
    model(latents.bfloat16(), torch.tensor([500.0]), context.bfloat16()).float().square().mean().backward()
    assert len(parameters) == 40
    for name, p in parameters:
        assert p.grad is not None, name
        assert p.grad.dtype == torch.float32
        assert p.grad.abs().sum() > 0, name


def test_server_and_model_library_read_the_header(comfy, trained, tmp_path):
    modules, _ = parse_modules(adapter_state(trained[1]))
    path = write_lora(tmp_path / "x.safetensors", modules, metadata={"modelspec.title": "Ohwx"})
    header = comfy.utils.safetensors_header(str(path), max_size=1024 * 1024)
    assert b'"modelspec.title":"Ohwx"' in header


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "oft", "rank": 8},
        {"kind": "oft", "rank": 8, "oft_constraint": 2.0},
        {"kind": "tlora", "rank": 4},
        {"kind": "lokr", "rank": 4},
        {"kind": "loha", "rank": 4},
        {"kind": "dora", "rank": 4},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_every_kind_gives_the_trained_model_in_the_host(comfy, host_model, options, tmp_path, caplog):
    model = make_transformer()
    generator = torch.Generator().manual_seed(5)
    parameters = add_adapter(model, AdapterOptions(alpha=2.0, **options), seed=1)
    with torch.no_grad():
        for _, p in parameters:
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    path = write_adapter(tmp_path / "x.safetensors", model.eval(), metadata={})
    with caplog.at_level(logging.WARNING):
        patches = load_in_host(comfy, host_model, path)
    assert "not loaded" not in caplog.text
    assert len(patches) == 20
    patched = host_model.clone()
    patched.add_patches(patches, 1.0)
    patched.patch_model(device_to=torch.device("cpu"), force_patch_weights=True)
    try:
        out = forward(patched.model.diffusion_model)
    finally:
        patched.unpatch_model(device_to=torch.device("cpu"))
    wanted, plain = forward(model), forward(host_model.model.diffusion_model)
    assert (wanted - plain).abs().max() > 0.02
    assert (out - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))


def test_the_hosts_own_oft_turns_a_weight_in_the_same_way(comfy, trained):
    from comfy.weight_adapter.oft import OFTDiff

    model = make_transformer()
    parameters = add_adapter(model, AdapterOptions(kind="oft", rank=8, oft_constraint=1.0), seed=1)
    for _, p in parameters:
        p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(6)) * 0.1
    layer, path = model.blocks[0].ffn[0], "blocks.0.ffn.0"
    blocks = adapter_state(model)[f"diffusion_model.{path}.oft_blocks"]
    weight = trained[0][f"{path}.weight"]
    theirs = OFTDiff((blocks, None, 1.0, None))(weight)
    x = torch.randn(5, DIM, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(layer(x), x @ theirs.T + layer.bias, atol=2e-6, rtol=1e-5)


def test_the_host_takes_the_strength_of_oft_twice(comfy, trained, host_model, tmp_path):
    """As the help says; where this fails, the host was mended, and the help is to be."""
    import comfy.lora

    model = make_transformer()
    for _, p in add_adapter(model, AdapterOptions(kind="oft", rank=8), seed=1):
        p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(6)) * 0.1
    key = "diffusion_model.blocks.1.cross_attn.k.weight"
    patch = load_in_host(comfy, host_model, write_adapter(tmp_path / "x.safetensors", model, metadata={}))[key]
    base = trained[0]["blocks.1.cross_attn.k.weight"]
    whole, half = (
        comfy.lora.calculate_weight([(strength, patch, 1.0, None, None)], base.clone(), key) - base
        for strength in (1.0, 0.5)
    )
    torch.testing.assert_close(half, whole / 4, atol=1e-6, rtol=0)
    merged = merged_base(
        str(tmp_path / "x.safetensors"), 0.5, {name: tensor.shape for name, tensor in trained[0].items()}
    )
    ours = merged("blocks.1.cross_attn.k", base.clone())
    torch.testing.assert_close(ours, base + half, atol=1e-6, rtol=0)


def by_wan_video_wrapper(patch, weight):
    """What ComfyUI-WanVideoWrapper makes of a LoRA that it does not merge (custom_linear.py, 3317577, apply_lora).

    Of the host's patch it takes two matrices and alpha, whatever the kind. Merged ones are the host's own, as above.
    """
    up, down, alpha, *_ = patch.weights
    scale = float(alpha) / down.shape[0] if alpha is not None and float(alpha) != 0.0 else 1.0
    return weight + (up.flatten(1) @ down.flatten(1)).reshape(weight.shape) * scale


def in_wan_video_wrapper(comfy, host_model, options, tmp_path):
    """What a model with an adapter of random numbers gives, what the wrapper gives of its file, and the base."""
    model = make_transformer()
    generator = torch.Generator().manual_seed(5)
    parameters = add_adapter(model, AdapterOptions(**{"rank": 4, "alpha": 2.0, **options}), seed=1)
    with torch.no_grad():
        for _, p in parameters:
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    patches = load_in_host(comfy, host_model, write_adapter(tmp_path / "x.safetensors", model.eval(), metadata={}))
    wrapped = make_transformer()
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if patch := patches.get(f"diffusion_model.{name}"):
                weight.copy_(by_wan_video_wrapper(patch, weight))
    return forward(model), forward(wrapped), forward(make_transformer())


@pytest.mark.parametrize(
    "options", [{}, {"rslora": True}, {"kind": "tlora"}, {"ranks": "ffn = 2, 3"}, {"targets": ("self_attn",)}], ids=str
)
def test_a_lora_gives_the_trained_model_in_wan_video_wrapper(comfy, host_model, options, tmp_path):
    wanted, found, plain = in_wan_video_wrapper(comfy, host_model, options, tmp_path)
    assert (wanted - plain).abs().max() > 0.02
    assert (found - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("kind", ["dora", "loha", "lokr", "oft"])
def test_wan_video_wrapper_takes_other_kinds_only_where_it_merges_them(comfy, host_model, kind, tmp_path):
    """As the help says; where this fails, the help is to be mended."""
    try:
        wanted, found, _ = in_wan_video_wrapper(comfy, host_model, {"kind": kind}, tmp_path)
    except (RuntimeError, AttributeError, ValueError):
        return  # shapes that do not fit, or a matrix that is not there
    assert (found - wanted).abs().max() > 0.01
