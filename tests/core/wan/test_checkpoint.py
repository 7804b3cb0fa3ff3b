import json
import re
import shutil
import threading
import weakref

import pytest
import torch
from wan_train.core.errors import ConfigError, ModelFileError
from wan_train.core.memory.frozen_linear import FrozenLinear
from wan_train.core.memory.precisions.fp8 import make_fp8
from wan_train.core.memory.precisions.int8 import make_int8
from wan_train.core.pinned import HostBuffer
from wan_train.core.wan import loading
from wan_train.core.wan.checkpoint import hints_expert, inspect
from wan_train.core.wan.keys import to_official
from wan_train.core.wan.layers import StoredLinear, run_layer
from wan_train.core.wan.loading import _Placer, load_transformer

FP8 = torch.float8_e4m3fn
BLOCK_LINEAR = re.compile(r"blocks\.\d+\.(self_attn|cross_attn|ffn)\.([qkvo02]|k_img|v_img)\.(weight|bias)")


@pytest.fixture(scope="module")
def weights(tiny):
    return tiny.weights(tiny.wide)


def load(path, dtype=torch.float32, **options):
    return load_transformer(inspect(path), dtype=dtype, device="cpu", **options)


def assert_weights(
    model, expected, dtype=torch.float32, high_precision_dtype=torch.float32, *, embeddings: torch.dtype | None = None
):
    """`embeddings`: in which linear layers outside of the blocks keep their weights."""
    state = model.state_dict()
    assert set(state) == set(expected)
    for name, value in state.items():
        wanted = dtype if BLOCK_LINEAR.fullmatch(name) else high_precision_dtype
        if embeddings and name.endswith(".weight"):
            layer = model.get_submodule(name.removesuffix(".weight"))
            wanted = embeddings if isinstance(layer, StoredLinear) else wanted
        assert value.dtype == wanted, name
        assert torch.equal(value, expected[name].to(wanted)), name


def diffusers_names(config):
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    with torch.device("meta"):
        model = WanTransformer3DModel(
            num_attention_heads=config.num_heads,
            attention_head_dim=config.dim // config.num_heads,
            text_dim=config.text_dim,
            ffn_dim=config.ffn_dim,
            num_layers=config.num_layers,
            in_channels=config.in_dim,
            out_channels=config.out_dim,
            image_dim=config.image_dim,
            added_kv_proj_dim=None if config.image_dim is None else config.dim,
            pos_embed_seq_len=config.image_positions,
        )
    return list(model.state_dict())


def linear_weights(weights):
    return [name for name in weights if BLOCK_LINEAR.fullmatch(name) and name.endswith("weight")]


def quantize(weights, scale_suffix):
    """Block linears in fp8 with one scale each, the rest in bf16; and the numbers that this file means."""
    stored, meant = {}, {}
    for name, value in weights.items():
        stored[name] = value.bfloat16()
        meant[name] = stored[name].float()
    for name in linear_weights(weights):
        scale = weights[name].abs().max() / 448
        stored[name] = (weights[name] / scale).to(FP8)
        stored[name.removesuffix(".weight") + scale_suffix] = scale
        meant[name] = stored[name].float() * scale
    return stored, meant


def legacy_scaled(weights):
    stored, meant = quantize(weights, ".scale_weight")
    stored["scaled_fp8"] = torch.zeros(2, dtype=FP8)
    for name in linear_weights(weights):
        stored[name.removesuffix(".weight") + ".scale_input"] = torch.tensor(1.0)
    return stored, meant, None


def layer_scaled(weights):
    stored, meant = quantize(weights, ".weight_scale")
    layer_format = torch.tensor(
        list(b'{"format": "float8_e4m3fn", "full_precision_matrix_mult": true}'), dtype=torch.uint8
    )
    for name in linear_weights(weights):
        stored[name.removesuffix(".weight") + ".comfy_quant"] = layer_format.clone()
    return stored, meant, None


def header_scaled(weights):
    stored, meant = quantize(weights, ".weight_scale")
    layer = {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}
    layers = {name.removesuffix(".weight"): layer for name in linear_weights(weights)}
    return stored, meant, {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}


SCALED = [(legacy_scaled, "fp8_scaled_legacy"), (layer_scaled, "fp8_scaled"), (header_scaled, "fp8_scaled")]


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.float32, "fp32"), (torch.float16, "fp16"), (torch.bfloat16, "bf16"), (FP8, "fp8")]
)
def test_official_file_in_each_dtype(save, tiny, weights, dtype, name):
    stored = {key: value.to(dtype) for key, value in weights.items()}
    path = save(stored)
    info = inspect(path)
    assert (info.layout, info.weights, info.config) == ("official", name, tiny.wide)
    assert info.num_params == sum(value.numel() for value in weights.values())
    assert info.num_bytes == info.num_params * dtype.itemsize
    assert (info.path, info.files) == (path, (path,))
    expected = {key: value.float() for key, value in stored.items()}
    embeddings = dtype if dtype.itemsize == 2 else torch.float32
    assert_weights(load(path), expected, embeddings=embeddings)
    model = load(path, torch.bfloat16)
    assert_weights(model, expected, torch.bfloat16, embeddings=embeddings)
    kept = [value for name, value in model.state_dict().items() if not name.startswith("blocks.")]
    assert info.rest_bytes == sum(value.numel() * value.element_size() for value in kept)


def test_high_precision_dtype_is_chosen_apart(save, weights):
    model = load(save(weights), torch.float16, high_precision_dtype=torch.bfloat16)
    assert_weights(model, weights, torch.float16, torch.bfloat16)


def test_embeddings_in_16_bits_compute_as_in_fp32(save, tiny, weights):
    stored = {key: value.bfloat16() for key, value in weights.items()}
    model = load(save(stored))
    assert model.text_embedding[0].weight.dtype == torch.bfloat16
    assert model.dtype == model.head.head.bias.dtype == torch.float32
    inputs = tiny.inputs(tiny.wide, frames=1, height=4, width=6, tokens=8)
    exact = tiny.model(tiny.wide, {key: value.float() for key, value in stored.items()})
    assert all(map(torch.equal, tiny.forward_and_gradients(model, inputs), tiny.forward_and_gradients(exact, inputs)))


def test_loaded_model_is_frozen_and_in_eval_mode(save, weights):
    model = load(save(weights))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "model.model.", "net.", "diffusion_model."])
def test_prefixes_are_stripped(save, tiny, weights, prefix):
    info = inspect(save({prefix + name: value for name, value in weights.items()}))
    assert (info.layout, info.config) == ("comfy", tiny.wide)
    assert_weights(load(info.path), weights)


def test_other_models_in_an_all_in_one_file_are_left_out(save, weights):
    tensors = {"model.diffusion_model." + name: value for name, value in weights.items()}
    tensors["vae.decoder.middle.0.residual.0.gamma"] = torch.ones(4, 1, 1, 1)
    info = inspect(save(tensors))
    assert info.num_params == sum(value.numel() for value in weights.values())
    assert_weights(load(info.path), weights)


def test_diffusers_layout(save, tiny, weights):
    path = save({name: weights[to_official(name)] for name in diffusers_names(tiny.wide)})
    info = inspect(path)
    assert (info.layout, info.config) == ("diffusers", tiny.wide)
    assert_weights(load(path), weights)


def test_diffusers_config_beside_the_file_gives_the_heads(save, tiny):
    weights = tiny.weights(tiny.small)
    path = save({name: weights[to_official(name)] for name in diffusers_names(tiny.small)})
    with pytest.raises(ModelFileError, match="width of 48, which 0 heads cannot share"):
        inspect(path)
    sidecar = path.parent / "config.json"
    sidecar.write_text(json.dumps({"_class_name": "WanTransformer3DModel", "num_attention_heads": 2}))
    assert inspect(path).config == tiny.small
    assert_weights(load(path), weights)
    sidecar.write_text("{")
    with pytest.raises(ModelFileError, match=r"config.json' is not a valid model configuration"):
        inspect(path)


def test_header_metadata_gives_what_weights_cannot_tell(save, tiny):
    weights = tiny.weights(tiny.small)
    assert inspect(save(weights, metadata=tiny.heads_metadata)).config == tiny.small
    with pytest.raises(ModelFileError, match=r"'config' in the header .* is not valid JSON"):
        inspect(save(weights, metadata={"config": "{"}))
    with pytest.raises(ModelFileError, match=r"num_heads is 'two'; it must be a whole number"):
        inspect(save(weights, metadata={"config": '{"transformer": {"num_heads": "two"}}'}))


@pytest.mark.parametrize("layout", ["official", "comfy", "diffusers"])
@pytest.mark.parametrize("variant", ["i2v_clip", "flf2v", "i2v", "ti2v"])
def test_every_variant_in_every_layout(save, tiny, variant, layout):
    config = tiny.configs[variant]
    weights = tiny.weights(config)
    if layout == "diffusers":
        tensors = {name: weights[to_official(name)] for name in diffusers_names(config)}
    else:
        prefix = "model.diffusion_model." if layout == "comfy" else ""
        tensors = {prefix + name: value for name, value in weights.items()}
    path = save(tensors, metadata=tiny.heads_metadata)
    info = inspect(path)
    assert (info.layout, info.config) == (layout, config)
    assert_weights(load(path, torch.bfloat16), weights, torch.bfloat16)


def test_left_over_norm_of_early_diffusers_files_is_ignored(save, tiny):
    config = tiny.configs["i2v_clip"]
    weights = tiny.weights(config)
    tensors = {name: weights[to_official(name)] for name in diffusers_names(config)}
    left_over = {f"blocks.{i}.attn2.norm_added_q.weight": torch.ones(config.dim) for i in range(config.num_layers)}
    path = save(tensors | left_over, metadata=tiny.heads_metadata)
    assert inspect(path).num_params == sum(value.numel() for value in weights.values())
    assert_weights(load(path), weights)


def test_image_branch_that_is_incomplete_is_refused(save, tiny):
    weights = tiny.weights(tiny.configs["i2v_clip"])
    without = {name: value for name, value in weights.items() if not name.startswith("img_emb.")}
    with pytest.raises(ModelFileError, match=r"is incomplete: it lacks the weight 'img_emb.proj.0.weight'"):
        inspect(save(without, metadata=tiny.heads_metadata))
    without = {name: value for name, value in weights.items() if not name.startswith("blocks.1.cross_attn.k_img.")}
    with pytest.raises(ModelFileError, match=r"2 weights are missing, such as 'blocks.1.cross_attn.k_img.weight'"):
        inspect(save(without, metadata=tiny.heads_metadata))


def test_channels_that_no_variant_has_are_refused_with_the_file(save, tiny):
    weights = tiny.weights(tiny.configs["i2v_clip"])
    weights["patch_embedding.weight"] = weights["patch_embedding.weight"][:, :20]
    with pytest.raises(ModelFileError, match=r"model.safetensors' cannot be used: .*'i2v' .* has 36 input .* got 20"):
        inspect(save(weights, metadata=tiny.heads_metadata))


@pytest.mark.parametrize(
    ("stated", "kind"), [({"model_type": "animate2"}, "animate2"), ({"causal_ar": True}, "causal_ar")]
)
def test_kind_that_only_the_header_tells_is_refused(save, weights, stated, kind):
    with pytest.raises(ModelFileError, match=rf"Wan model of the kind '{kind}', as its header says.*; use a Wan"):
        inspect(save(weights, metadata={"config": json.dumps({"transformer": stated})}))
    inspect(save(weights, metadata={"config": json.dumps({"transformer": {"model_type": "t2v"}})}))


def write_shards(save, folder, weights):
    names = sorted(weights)
    parts = [names[0::3], names[1::3], names[2::3]]
    weight_map = {}
    for i, part in enumerate(parts):
        file_name = f"diffusion_pytorch_model-{i + 1:05d}-of-00003.safetensors"
        save({name: weights[name] for name in part}, folder / file_name)
        weight_map |= dict.fromkeys(part, file_name)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def test_sharded_set_by_index_folder_and_shard(save, tmp_path, tiny, weights):
    index = write_shards(save, tmp_path / "model", weights)
    shard = index.parent / "diffusion_pytorch_model-00002-of-00003.safetensors"
    infos = [inspect(index), inspect(index.parent), inspect(shard)]
    index.unlink()
    infos.append(inspect(index.parent))
    assert {info.config for info in infos} == {tiny.wide}
    assert {info.identity for info in infos} == {infos[0].identity}
    assert all(len(info.files) == 3 for info in infos)
    for info in infos:
        assert_weights(load_transformer(info, dtype=torch.float32, device="cpu"), weights)


def test_missing_shard_is_named(save, tmp_path, weights):
    index = write_shards(save, tmp_path / "model", weights)
    (index.parent / "diffusion_pytorch_model-00003-of-00003.safetensors").unlink()
    for path in (index, index.parent, index.parent / "diffusion_pytorch_model-00001-of-00003.safetensors"):
        with pytest.raises(ModelFileError, match=r"1 of the 3 parts .* missing, .*'.*-00003-of-00003.safetensors'"):
            inspect(path)


def test_index_cannot_lead_out_of_its_folder(save, weights):
    outside = save(weights, "outside.safetensors")
    index = outside.parent / "sub" / "model.safetensors.index.json"
    index.parent.mkdir()
    index.write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    with pytest.raises(ModelFileError, match=r"'outside.safetensors'; download"):
        inspect(index)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": []}'])
def test_broken_index(tmp_path, content):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content)
    with pytest.raises(ModelFileError, match=r"shard index .* download it again"):
        inspect(index)


def test_folders_that_do_not_name_one_model(save, tmp_path, weights):
    with pytest.raises(ModelFileError, match=r"holds no .safetensors file"):
        inspect(tmp_path)
    save(weights, "pipeline/transformer/a.safetensors")
    with pytest.raises(ModelFileError, match="whole diffusers pipeline; name its subfolder 'transformer'"):
        inspect(tmp_path / "pipeline")
    assert inspect(tmp_path / "pipeline" / "transformer").files[0].name == "a.safetensors"
    save(weights, "pipeline/transformer/b.safetensors")
    with pytest.raises(ModelFileError, match=r"several models \(a.safetensors, b.safetensors"):
        inspect(tmp_path / "pipeline" / "transformer")
    with pytest.raises(ModelFileError, match=r"'.*nowhere.safetensors' does not exist"):
        inspect(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize(("make", "name"), SCALED)
def test_scaled_fp8_means_weight_times_scale(save, weights, make, name):
    stored, meant, metadata = make(weights)
    path = save(stored, metadata=metadata)
    info = inspect(path)
    assert info.weights == name
    assert info.num_params == sum(value.numel() for value in weights.values())
    assert_weights(load(path), meant, embeddings=torch.bfloat16)
    assert_weights(load(path, torch.bfloat16), meant, torch.bfloat16, embeddings=torch.bfloat16)


@pytest.mark.parametrize("variant", ["small", "i2v_clip"])
@pytest.mark.parametrize(("make", "name"), SCALED)
def test_scaled_fp8_runs_like_the_host_runs_the_file(comfy, save, tiny, make, name, variant):
    """The file goes through the host's ordinary loader, in fp32, so that only the reading differs."""
    config = tiny.configs[variant]
    stored, _, metadata = make(tiny.weights(config))
    path = save(stored, metadata={**tiny.heads_metadata, **(metadata or {})})
    host = comfy.sd.load_diffusion_model(str(path), model_options={"dtype": torch.float32}).model.diffusion_model
    inputs = tiny.inputs(config)
    with torch.no_grad():
        ours = load(path)(inputs.latents, inputs.timesteps, inputs.context, **inputs.images)
        x = torch.cat([inputs.latents, *(inputs.images[key] for key in inputs.images if key == "conditioning")], dim=1)
        theirs = host(x, inputs.timesteps, inputs.context, clip_fea=inputs.images.get("clip_features"))
    assert max(tiny.errors(ours, theirs)) < 1e-5
    x = torch.randn(5, config.dim, generator=torch.Generator().manual_seed(0))
    model = load(path)
    parts = ["blocks.1.self_attn.k", "blocks.1.cross_attn.o", "blocks.0.ffn.0"]
    for part in parts + ["blocks.1.cross_attn.v_img"] * (config.image_dim is not None):
        with torch.no_grad():
            assert torch.equal(run_layer(model.get_submodule(part), x), host.get_submodule(part)(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("make", "name"), [*SCALED, (None, "fp8")])
def test_fp8_files_keep_their_numbers_in_fp8(save, weights, make, name, dtype):
    if make is None:
        stored, metadata = {key: value.to(FP8) for key, value in weights.items()}, None
    else:
        stored, _, metadata = make(weights)
    path = save(stored, metadata=metadata)
    assert inspect(path).weights == name
    plain, model = load(path, dtype), load(path, dtype, linear=make_fp8)
    for key in linear_weights(weights):
        layer = model.get_submodule(key.removesuffix(".weight"))
        assert layer.weight.dtype == FP8
        assert torch.equal(layer.weight.view(torch.uint8), stored[key].view(torch.uint8))
        assert torch.equal(layer.matrix(dtype), plain.get_parameter(key))
        assert (layer.bias.dtype, layer.bias.requires_grad) == (dtype, False)
    rest = {key: value for key, value in model.state_dict().items() if key in weights and value.dtype != FP8}
    assert len(rest) == len(weights) - len(linear_weights(weights))
    for key, value in rest.items():
        assert torch.equal(value, plain.state_dict()[key])
    assert model.dtype == dtype


def test_a_format_is_given_one_weight_at_a_time(save, weights):
    """What it was given before is gone when the next comes: peak memory is one tensor above the result."""
    earlier, names = [], []

    def make(name, weight, scale, *, dtype, bias):
        assert all(reference() is None for reference in earlier)
        assert (scale, dtype, tuple(bias.shape)) == (None, torch.bfloat16, weight.shape[:1])
        earlier.append(weakref.ref(weight))
        names.append(name)
        return make_int8(name, weight, scale, dtype=dtype, bias=bias)

    model = load(save({name: value.half() for name, value in weights.items()}), torch.bfloat16, linear=make)
    assert sorted(names) == sorted(name.removesuffix(".weight") for name in linear_weights(weights))
    assert all(isinstance(model.get_submodule(name), FrozenLinear) for name in names)
    assert not any(value.is_meta for value in model.state_dict().values())


def test_a_layer_that_a_format_leaves_out_is_a_plain_one(save, weights):
    def make(name, weight, scale, *, dtype, bias):
        return make_fp8(name, weight, scale, dtype=dtype, bias=bias) if name.endswith("ffn.0") else None

    stored, meant, _ = layer_scaled(weights)
    model = load(save(stored), torch.bfloat16, linear=make)
    assert sum(isinstance(module, FrozenLinear) for module in model.modules()) == 2
    name = "blocks.1.self_attn.q.weight"
    assert torch.equal(model.get_parameter(name), meant[name].bfloat16())


def test_prefixed_scaled_file_with_prefixed_layer_names(save, weights):
    stored, meant, metadata = header_scaled(weights)
    prefix = "model.diffusion_model."
    layers = json.loads(metadata["_quantization_metadata"])["layers"]
    metadata = {"_quantization_metadata": json.dumps({"layers": {prefix + k: v for k, v in layers.items()}})}
    path = save({prefix + name: value for name, value in stored.items()}, metadata=metadata)
    assert inspect(path).weights == "fp8_scaled"
    assert_weights(load(path), meant, embeddings=torch.bfloat16)


def test_scale_per_row(save, weights):
    stored, meant, _ = layer_scaled(weights)
    name = "blocks.0.self_attn.q"
    scale = torch.linspace(0.5, 1.5, 128)[:, None]
    stored[name + ".weight_scale"] = scale
    meant[name + ".weight"] = stored[name + ".weight"].float() * scale
    assert_weights(load(save(stored)), meant, embeddings=torch.bfloat16)


def test_quantization_that_cannot_be_read_back_is_refused(save, weights):
    name = "blocks.0.self_attn.q"
    refused = "quantized in a way that cannot be trained .*fp8_scaled file"
    with pytest.raises(ModelFileError, match=rf"'{name}.weight' is stored as I8\).*use the fp16"):
        inspect(save(weights | {name + ".weight": torch.ones(128, 128, dtype=torch.int8)}))
    stored, _, _ = layer_scaled(weights)
    with pytest.raises(ModelFileError, match=r"block-wise scales of shape \[128, 4\] \(U8\)"):
        inspect(save(stored | {name + ".weight_scale": torch.ones(128, 4, dtype=torch.uint8)}))
    with pytest.raises(ModelFileError, match=rf"lacks the scale '{name}.weight_scale'"):
        inspect(save({key: value for key, value in stored.items() if key != name + ".weight_scale"}))
    unknown = torch.tensor(list(b'{"format": "mxfp8"}'), dtype=torch.uint8)
    with pytest.raises(ModelFileError, match=rf"'{name}.comfy_quant' says mxfp8.*"):
        load(save(stored | {name + ".comfy_quant": unknown}))
    with pytest.raises(ModelFileError, match=refused):
        inspect(save(stored, metadata={"_quantization_metadata": '{"layers": {"a": {"format": "nvfp4"}}}'}))


def test_missing_and_unknown_weights_are_named(save, weights):
    some = {name: value for name, value in weights.items() if not name.startswith("blocks.0.cross_attn.k.")}
    with pytest.raises(ModelFileError, match=r"2 weights are missing, such as 'blocks.0.cross_attn.k.weight'"):
        inspect(save(some))
    with pytest.raises(ModelFileError, match=r"it lacks the weight 'text_embedding.0.weight'"):
        inspect(save({name: value for name, value in weights.items() if not name.startswith("text_embedding")}))
    with pytest.raises(ModelFileError, match=r"has 1 unknown weight, such as 'blocks.0.gate.weight'"):
        inspect(save(weights | {"blocks.0.gate.weight": torch.ones(3)}))
    with pytest.raises(ModelFileError, match=r"'blocks.1.ffn.2.bias' has the shape \[64\], but \[128\] is expected"):
        inspect(save(weights | {"blocks.1.ffn.2.bias": torch.ones(64)}))


def test_file_exchanged_after_inspection_is_noticed(save, tiny, weights):
    info = inspect(save(weights))
    save(tiny.weights(tiny.wide, seed=1))
    with pytest.raises(ModelFileError, match=r"model.safetensors' has changed since it was chosen"):
        load_transformer(info, dtype=torch.float32, device="cpu")


def test_dtype_that_cannot_compute_is_refused(save, weights):
    with pytest.raises(ConfigError, match=r"cannot compute in torch.float8_e4m3fn"):
        load(save(weights), FP8)


def test_identity_follows_the_content_alone(save, tmp_path, weights):
    path = save(weights, "first.safetensors")
    identity = inspect(path).identity
    copied = tmp_path / "elsewhere" / "second.safetensors"
    copied.parent.mkdir()
    shutil.copyfile(path, copied)
    assert inspect(copied).identity == identity
    changed = weights | {"blocks.0.ffn.0.weight": weights["blocks.0.ffn.0.weight"] + 1}
    assert inspect(save(changed, "third.safetensors")).identity != identity
    assert inspect(save(weights, "fourth.safetensors", {"title": "x"})).identity != identity


@pytest.mark.parametrize(
    ("name", "expert"),
    [
        ("wan2.2_t2v_high_noise_14B_fp16.safetensors", "high"),
        ("wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors", "low"),
        ("WAN2.2-HighNoise_style.safetensors", "high"),
        ("Wan2_2-T2V-A14B-LOW_fp8_e4m3fn_scaled_KJ.safetensors", "low"),
        ("Wan2_2-T2V-A14B_HIGH_fp8.safetensors", "high"),
        ("high_noise_model/diffusion_pytorch_model-00001-of-00006.safetensors", "high"),
        ("low_noise_model", "low"),
        ("transformer_2/diffusion_pytorch_model-00001-of-00012.safetensors", "low"),
        ("wan2.1_t2v_1.3B_fp16.safetensors", None),
        ("wan_lowvram_t2v.safetensors", None),
        ("wan_low_vram_t2v.safetensors", None),
        ("wan_high_quality.safetensors", None),
        ("highway_slow.safetensors", None),
        ("wan_high_low_merged.safetensors", None),
        ("wan_low_vram_high_noise.safetensors", "high"),
    ],
)
def test_expert_hint_in_the_name(tmp_path, name, expert):
    assert hints_expert(tmp_path / name) == expert


def test_blocks_go_where_they_shall_and_are_told_of_one_by_one(save, weights):
    """`meta` stands for a second device."""
    told = []

    def loaded(index, block):
        told.append(index)
        assert not any(parameter.requires_grad for parameter in block.parameters())
        assert {parameter.device.type for parameter in block.parameters()} == {"meta" if index else "cpu"}

    def device_of(index):
        return torch.device("meta" if index == 1 else "cpu")

    model = load_transformer(inspect(save(weights)), dtype=torch.float32, device=device_of, loaded=loaded)
    assert sorted(told) == [0, 1]
    for name, value in model.state_dict().items():
        if name.startswith("blocks.1."):
            assert value.is_meta
        else:
            assert torch.equal(value, weights[name])


def test_of_a_model_that_is_loaded_no_more_than_one_block_need_stay(save, weights):
    """Whoever is told of a block may take its tensors away."""
    alive = []

    def loaded(index, block):
        alive.append([weakref.ref(parameter.data.untyped_storage()) for parameter in block.parameters()])
        for parameter in block.parameters():
            parameter.data = torch.empty(0)

    load_transformer(inspect(save(weights)), dtype=torch.float32, device="cpu", loaded=loaded)
    assert len(alive) == 2
    assert all(storage() is None for block in alive for storage in block)


def test_pinned_memory_lasts_until_the_last_tensor_is_copied_from_it(weights, save, monkeypatch):
    """The thread that reads ahead is done before; a GPU that copies from memory that is no longer pinned stops the process."""
    buffers, are_there, all_read = [], [], threading.Event()

    class Buffer(HostBuffer):
        def __init__(self, num_bytes, *, pinned):
            assert pinned
            super().__init__(num_bytes, pinned=False)  # there is no GPU
            buffers.append(weakref.ref(self))

    class OnCpu(_Placer):
        def __call__(self, name, entry, stored, scale):
            if len(are_there) == len(weights) - 1:
                assert all_read.wait(60)
            are_there.append([buffer() is not None for buffer in buffers])
            return super().__call__(name, entry, stored.clone(), scale)  # as a copy to a GPU

    def read(*args, _read=loading._read_by_block):
        items = _read(*args)
        del args
        yield from items
        all_read.set()

    monkeypatch.setattr(loading, "HostBuffer", Buffer)
    monkeypatch.setattr(loading, "_read_by_block", read)
    monkeypatch.setattr(loading, "_Placer", lambda model, _, **options: OnCpu(model, torch.device("cpu"), **options))
    assert_weights(load_transformer(inspect(save(weights)), dtype=torch.float32, device="cuda"), weights)
    assert are_there[-1] == [True, True]
    assert [buffer() for buffer in buffers] == [None, None]
