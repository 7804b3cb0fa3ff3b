import copy
from dataclasses import replace

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from wan_train.core.errors import ConfigError
from wan_train.core.wan.config import WanConfig
from wan_train.core.wan.keys import to_official
from wan_train.core.wan.layers import rope_table
from wan_train.core.wan.model import WanTransformer
from wan_train.core.wan.ops import apply_rope

FP32_TOLERANCE = 1e-5
TI2V_5B = {
    "variant": "ti2v",
    "in_dim": 48,
    "out_dim": 48,
    "dim": 3072,
    "ffn_dim": 14336,
    "num_heads": 24,
    "num_layers": 30,
}


@pytest.fixture(params=["small", "wide", "i2v_clip", "flf2v", "i2v", "ti2v"])
def config(request, tiny):
    return tiny.configs[request.param]


@pytest.fixture
def weights(tiny, config):
    return tiny.weights(config)


def host_model(comfy, config, weights, dtype=torch.float32):
    import comfy.ldm.wan.model
    import comfy.ops

    model = comfy.ldm.wan.model.WanModel(
        model_type="t2v" if config.image_dim is None else "i2v",
        flf_pos_embed_token_number=config.image_positions,
        patch_size=config.patch_size,
        in_dim=config.in_dim,
        dim=config.dim,
        ffn_dim=config.ffn_dim,
        text_dim=config.text_dim,
        out_dim=config.out_dim,
        num_heads=config.num_heads,
        num_layers=config.num_layers,
        device="cpu",
        dtype=dtype,
        operations=comfy.ops.disable_weight_init,
    )
    model.load_state_dict(weights)
    return model.requires_grad_(False).eval()


def run_host(model):
    """`model` as a function of our arguments."""

    def run(latents, timesteps, context, conditioning=None, clip_features=None):
        x = latents if conditioning is None else torch.cat([latents, conditioning], dim=1)
        return model(x, timesteps, context, clip_fea=clip_features)

    return run


def diffusers_model(config, weights):
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    model = WanTransformer3DModel(
        patch_size=config.patch_size,
        num_attention_heads=config.num_heads,
        attention_head_dim=config.dim // config.num_heads,
        in_channels=config.in_dim,
        out_channels=config.out_dim,
        text_dim=config.text_dim,
        freq_dim=config.freq_dim,
        ffn_dim=config.ffn_dim,
        num_layers=config.num_layers,
        eps=config.eps,
        image_dim=config.image_dim,
        added_kv_proj_dim=None if config.image_dim is None else config.dim,
        pos_embed_seq_len=config.image_positions,
    )
    model.load_state_dict({name: weights[to_official(name)] for name in model.state_dict()})
    return model.requires_grad_(False).eval()


def run_diffusers(model, positions):
    """`model` as a function of our arguments: timesteps per token, and the CLIP features of two images apart."""

    def run(latents, timesteps, context, conditioning=None, clip_features=None):
        x = latents if conditioning is None else torch.cat([latents, conditioning], dim=1)
        if timesteps.ndim == 2:
            timesteps = timesteps.repeat_interleave(latents.shape[3] * latents.shape[4] // 4, dim=1)
        if positions is not None:
            clip_features = clip_features.unflatten(1, (2, -1)).flatten(0, 1)
        return model(x, timesteps, context, clip_features, return_dict=False)[0]

    return run


@pytest.fixture
def host_in_training(comfy, monkeypatch):
    """The host's own switch to differentiable RoPE, as its training node sets it; the other path has no gradient."""
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "in_training", True)


def test_parameter_names_equal_the_checkpoint_keys_of_the_host(comfy, config, weights):
    host_names = host_model(comfy, config, weights).state_dict()
    assert {k: v.shape for k, v in host_names.items()} == {k: v.shape for k, v in weights.items()}


@pytest.mark.usefixtures("host_in_training")
def test_forward_and_gradients_equal_the_hosts(comfy, tiny, config, weights):
    inputs = tiny.inputs(config)
    ours = tiny.forward_and_gradients(tiny.model(config, weights), inputs)
    theirs = tiny.forward_and_gradients(run_host(host_model(comfy, config, weights)), inputs)
    for result, reference in zip(ours, theirs, strict=True):
        assert max(tiny.errors(result, reference)) < FP32_TOLERANCE


def test_forward_equals_the_hosts_inference_path(comfy, tiny, config, weights):
    inputs = tiny.inputs(config, frames=1, height=10, width=4)
    with torch.no_grad():
        ours = tiny.model(config, weights)(inputs.latents, inputs.timesteps, inputs.context, **inputs.images)
        host = run_host(host_model(comfy, config, weights))
        theirs = host(inputs.latents, inputs.timesteps, inputs.context, **inputs.images)
    assert max(tiny.errors(ours, theirs)) < FP32_TOLERANCE


def test_forward_and_gradients_equal_those_of_diffusers(tiny, config, weights):
    reference_model = diffusers_model(config, weights)
    inputs = tiny.inputs(config)
    ours = tiny.forward_and_gradients(tiny.model(config, weights), inputs)
    theirs = tiny.forward_and_gradients(run_diffusers(reference_model, config.image_positions), inputs)
    for result, reference in zip(ours, theirs, strict=True):
        assert max(tiny.errors(result, reference)) < FP32_TOLERANCE


@pytest.mark.parametrize("embedding_dtype", [torch.float32, torch.bfloat16])
def test_bf16_base_stays_near_fp32(tiny, config, weights, embedding_dtype):
    """bf16 keeps 8 bits (2 ** -9 = 0.2 % per rounding); over three blocks, 2 % of the norm is the stated tolerance."""
    inputs = tiny.inputs(config)
    exact = tiny.forward_and_gradients(tiny.model(config, weights), inputs)
    linear = (".q.", ".k.", ".v.", ".o.", ".k_img.", ".v_img.", ".ffn.")
    low = {
        name: value.to(torch.bfloat16 if any(part in name for part in linear) else embedding_dtype)
        for name, value in weights.items()
    }
    model = tiny.model(config, low)
    assert model.dtype == torch.bfloat16
    rounded = tiny.forward_and_gradients(model, inputs)
    assert rounded[0].dtype == embedding_dtype
    for result, reference in zip(rounded, exact, strict=True):
        assert 1e-5 < tiny.errors(result, reference)[1] < 0.02


def test_residual_stream_of_a_bf16_base_is_bf16(tiny):
    weights = {name: value.bfloat16() for name, value in tiny.weights(tiny.small).items()}
    model = tiny.model(tiny.small, weights)
    seen = []
    model.run_block = lambda block, x, *rest: seen.append((x.dtype, rest[1].dtype)) or block(x, *rest)
    inputs = tiny.inputs(tiny.small)
    model(inputs.latents, inputs.timesteps, inputs.context)
    assert set(seen) == {(torch.bfloat16, torch.float32)}


def test_sample_of_a_batch_does_not_depend_on_the_others(tiny):
    model = tiny.model(tiny.small, tiny.weights(tiny.small))
    inputs = tiny.inputs(tiny.small)
    both = model(inputs.latents, inputs.timesteps, inputs.context)
    second = model(inputs.latents[1:], inputs.timesteps[1:], inputs.context[1:])
    assert max(tiny.errors(second, both[1:])) < FP32_TOLERANCE


def test_run_block_is_called_once_per_block_in_order(tiny):
    model = tiny.model(tiny.small, tiny.weights(tiny.small))
    inputs = tiny.inputs(tiny.small)
    expected = model(inputs.latents, inputs.timesteps, inputs.context)
    called = []

    def run_block(block, *args):
        called.append(block)
        return block(*args)

    model.run_block = run_block
    assert model.run_block is run_block
    result = model(inputs.latents, inputs.timesteps, inputs.context)
    assert [id(block) for block in called] == [id(block) for block in model.blocks]
    assert torch.equal(result, expected)


def test_run_block_takes_checkpointing_with_equal_gradients(tiny):
    model = tiny.model(tiny.small, tiny.weights(tiny.small))
    inputs = tiny.inputs(tiny.small)
    plain = tiny.forward_and_gradients(model, inputs)
    model.run_block = lambda block, *args: checkpoint(block, *args, use_reentrant=False)
    recomputed = tiny.forward_and_gradients(model, inputs)
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))


def test_deepcopy_shares_run_block_and_runs_its_own_blocks(tiny):
    model = tiny.model(tiny.small, tiny.weights(tiny.small))
    called = []

    class Runner:
        def __deepcopy__(self, memo):
            raise AssertionError("a runner may hold streams and buffers; it must not be copied")

        def run(self, block, *args):
            called.append(block)
            return block(*args)

    model.run_block = Runner().run
    inputs = tiny.inputs(tiny.small)
    expected = model(inputs.latents, inputs.timesteps, inputs.context)
    clone = copy.deepcopy(model)
    called.clear()
    assert torch.equal(clone(inputs.latents, inputs.timesteps, inputs.context), expected)
    assert [id(block) for block in called] == [id(block) for block in clone.blocks]


@pytest.mark.parametrize("name", ["small", "flf2v"])
def test_attend_is_called_for_every_attention_and_shared_by_deepcopy(tiny, name):
    config = tiny.configs[name]
    model = tiny.model(config, tiny.weights(config))
    inputs = tiny.inputs(config)
    expected = tiny.forward_and_gradients(model, inputs)
    shapes = []

    class Backend:
        def __deepcopy__(self, memo):
            raise AssertionError("a backend may hold buffers of the device; it must not be copied")

        def attend(self, q, k, v):
            shapes.append((list(q.shape), list(k.shape), list(v.shape)))
            scores = torch.einsum("blnk,bsnk->bnls", q, k) / q.shape[-1] ** 0.5
            return torch.einsum("bnls,bsnk->blnk", scores.softmax(dim=-1), v)

    model.attend = Backend().attend
    assert copy.deepcopy(model).attend == model.attend
    for clone in (model, copy.deepcopy(model)):
        shapes.clear()
        for result, reference in zip(tiny.forward_and_gradients(clone, inputs), expected, strict=True):
            assert max(tiny.errors(result, reference)) < FP32_TOLERANCE
        keys = [45, 512, 514] if config.image_dim else [45, 512]
        queries = [2, 45, 2, 24]
        assert shapes == [(queries, [2, num, 2, 24], [2, num, 2, 24]) for num in keys] * config.num_layers


def test_rope_tables_are_kept_per_grid_and_outside_the_state_dict(tiny):
    model = tiny.model(tiny.small, tiny.weights(tiny.small))
    names = set(model.state_dict())
    device = torch.device("cpu")
    table = model.rope((3, 3, 5), device)
    assert model.rope((3, 3, 5), device) is table
    assert model.rope((3, 5, 3), device) is not table
    assert set(model.state_dict()) == names
    for frames in range(1, 30):
        model.rope((frames, 2, 2), device)
    assert model.rope((3, 3, 5), device) is not table, "old grids must be dropped"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_a_compiler_is_given_rotates_to_the_same_bits(dtype):
    rope = rope_table((2, 3, 4), 128)
    x = torch.randn(2, 24, 3, 128, dtype=dtype, requires_grad=True)
    compiled = torch.compile(apply_rope, fullgraph=True, backend="eager")
    expected, found = apply_rope(x, rope), compiled(x, rope)
    assert torch.equal(found, expected)
    grad = torch.randn_like(expected)
    (expected_grad,), (found_grad,) = (torch.autograd.grad(y, x, grad) for y in (expected, found))
    assert torch.equal(found_grad, expected_grad)
    assert not torch.equal(expected, x)


def test_rope_table_made_in_inference_mode_can_be_trained_with(tiny):
    model = tiny.model(tiny.small, tiny.weights(tiny.small))
    inputs = tiny.inputs(tiny.small)
    with torch.inference_mode():
        model(inputs.latents, inputs.timesteps, inputs.context)
    _, latents_grad, _ = tiny.forward_and_gradients(model, inputs)
    assert latents_grad.abs().sum() > 0


def test_lora_by_peft_on_a_bf16_base_trains_in_fp32(tiny):
    from peft import LoraConfig, get_peft_model

    low = {
        name: value.bfloat16() if name.startswith("blocks.") else value
        for name, value in tiny.weights(tiny.small).items()
    }
    model = tiny.model(tiny.small, low)
    inputs = tiny.inputs(tiny.small)
    before = model(inputs.latents, inputs.timesteps, inputs.context)
    targets = ["q", "k", "v", "o", "ffn.0", "ffn.2", "text_embedding.0", "time_projection.1", "head.head"]
    wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=4, target_modules=targets))  # type: ignore[arg-type]
    output = wrapped(inputs.latents, inputs.timesteps, inputs.context)
    assert torch.equal(output, before), "an untrained LoRA adds nothing"
    (output * inputs.probe).sum().backward()
    grads = {name: p.grad for name, p in wrapped.named_parameters() if "lora_B" in name}
    assert len(grads) == 3 * 10 + 3
    assert all(grad is not None and grad.dtype == torch.float32 and grad.abs().sum() > 0 for grad in grads.values())


def test_eight_bit_weight_leaves_the_dtype_to_the_bias(tiny):
    """Quantized linears hold integers or fp8 in `weight`: the activations must not be cast to that."""
    model = tiny.model(tiny.small, {name: value.bfloat16() for name, value in tiny.weights(tiny.small).items()})
    for block in model.blocks:
        block.self_attn.q.weight = torch.nn.Parameter(
            block.self_attn.q.weight.to(torch.float8_e4m3fn), requires_grad=False
        )
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("variant", ["vace", "fun_control", "other"])
def test_other_variants_are_refused_by_name(variant):
    with pytest.raises(ConfigError, match=rf"variant '{variant}' is not supported yet.*'t2v'"):
        WanTransformer(WanConfig(variant=variant, dim=48, num_heads=2, num_layers=1))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"variant": "t2v", "in_dim": 36}, "'t2v' with 16 output channels has 16 input channels, got 36"),
        ({"variant": "i2v", "in_dim": 16}, "'i2v' with 16 output channels has 36 input channels, got 16"),
        ({"variant": "ti2v", "in_dim": 48}, "'ti2v' with 16 output channels has 16 input channels, got 48"),
        ({"variant": "t2v", "image_dim": 1280}, "'t2v' has no CLIP branch, got image_dim 1280"),
        ({"variant": "i2v", "in_dim": 36, "image_positions": 514}, "'i2v' has no image_positions, got 514"),
        (
            {"variant": "flf2v", "in_dim": 36, "image_dim": 1280},
            "'flf2v' needs image_dim and image_positions, got 1280 and None",
        ),
    ],
)
def test_sizes_that_contradict_the_variant_are_refused(sizes, message):
    with pytest.raises(ConfigError, match=message):
        WanTransformer(WanConfig(dim=48, num_heads=2, num_layers=1, **sizes))


def test_heads_must_share_the_width():
    with pytest.raises(ConfigError, match=r"dim\) of 48 cannot be split into 5 heads"):
        WanTransformer(WanConfig(dim=48, num_heads=5, num_layers=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 7}, "height of the latents must be a positive multiple of 2, got 7"),
        ({"width": 9}, "width of the latents must be a positive multiple of 2, got 9"),
        ({"frames": 0}, "frames of the latents must be a positive multiple of 1, got 0"),
        ({"tokens": 513}, "513 text tokens, but the model takes at most 512"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(tiny, change, message):
    model = tiny.model(tiny.small, tiny.weights(tiny.small))
    inputs = tiny.inputs(tiny.small, **change)
    with pytest.raises(ConfigError, match=message):
        model(inputs.latents, inputs.timesteps, inputs.context)


def test_inputs_of_another_model_are_refused(tiny):
    model = tiny.model(tiny.small, tiny.weights(tiny.small))
    inputs = tiny.inputs(tiny.small)
    with pytest.raises(ConfigError, match=r"latents must have the shape \[batch, 16, .* got \[2, 12,"):
        model(inputs.latents[:, :12], inputs.timesteps, inputs.context)
    with pytest.raises(ConfigError, match=r"context must have the shape \[2, tokens, 64\], got \[2, 512, 32\]"):
        model(inputs.latents, inputs.timesteps, inputs.context[..., :32])
    for timesteps, got in ((inputs.timesteps[:1], r"\[1\]"), (torch.ones(2, 45), r"\[2, 45\]")):
        with pytest.raises(ConfigError, match=rf"timesteps must have the shape \[2\], .* or \[2, 3\], .* got {got}"):
            model(inputs.latents, timesteps, inputs.context)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("small", {"conditioning": [2, 20, 3, 6, 10]}, r"\('t2v'\) takes no conditioning, got .* \[2, 20, 3, 6, 10\]; leave"),
        ("ti2v", {"conditioning": [2, 20, 3, 6, 10]}, r"\('ti2v'\) takes no .* first frame into latents, with the timestep 0"),
        ("i2v", {"conditioning": None}, r"from images .* needs conditioning of the shape \[2, 20, 3, 6, 10\].* got none"),
        ("i2v", {"conditioning": [2, 20, 3, 3, 5]}, r"conditioning of the shape \[2, 20, 3, 6, 10\].* got \[2, 20, 3, 3, 5\]"),
        ("i2v", {"conditioning": [2, 16, 3, 6, 10]}, r"4 mask channels and the latents of the given frames, got \[2, 16,"),
        ("small", {"clip_features": [2, 257, 1280]}, r"\('t2v'\) has no CLIP branch and takes no clip_features"),
        ("i2v", {"clip_features": [2, 257, 1280]}, r"\('i2v'\) has no CLIP branch .* \[2, 257, 1280\]; leave .* Wan 2.1 I2V"),
        ("i2v_clip", {"clip_features": None}, r"clip_features of the shape \[2, tokens, 1280\], got none; .* the first frame"),
        ("i2v_clip", {"clip_features": [2, 257, 1024]}, r"of the shape \[2, 257, 1280\], got \[2, 257, 1024\]"),
        ("i2v_clip", {"clip_features": [2, 0, 1280]}, r"of the shape \[2, tokens, 1280\], got \[2, 0, 1280\]"),
        ("i2v_clip", {"clip_features": [1, 257, 1280]}, r"of the shape \[2, 257, 1280\], got \[1, 257, 1280\]"),
        ("i2v_clip", {"clip_features": [2, 1280]}, r"of the shape \[2, tokens, 1280\], got \[2, 1280\]"),
        ("flf2v", {"clip_features": [2, 257, 1280]}, r"shape \[2, 514, 1280\], got \[2, 257, .* first and the last frame"),
    ],
)  # fmt: skip
def test_images_that_do_not_fit_the_variant_are_refused(tiny, name, change, message):
    config = tiny.configs[name]
    inputs = tiny.inputs(config)
    images = inputs.images | {key: None if shape is None else torch.zeros(shape) for key, shape in change.items()}
    with torch.device("meta"):
        model = WanTransformer(config)
    with pytest.raises(ConfigError, match=message):
        model(inputs.latents, inputs.timesteps, inputs.context, **images)


def test_sizes_of_wan_2_2_latents_are_said_in_pixels(tiny):
    with torch.device("meta"):
        model = WanTransformer(tiny.configs["ti2v"])
    inputs = tiny.inputs(tiny.configs["ti2v"], height=7)
    with pytest.raises(ConfigError, match="multiple of 2, got 7; use a video size that is a multiple of 32 pixels"):
        model(inputs.latents, inputs.timesteps, inputs.context)


def test_equal_timesteps_of_all_frames_are_one_timestep(tiny):
    config = tiny.configs["ti2v"]
    model = tiny.model(config, tiny.weights(config))
    inputs = tiny.inputs(config)
    timesteps = torch.tensor([937.5, 12.25])
    per_sample = tiny.forward_and_gradients(model, replace(inputs, timesteps=timesteps))
    per_frame = tiny.forward_and_gradients(model, replace(inputs, timesteps=timesteps[:, None].expand(-1, 3)))
    for result, reference in zip(per_frame, per_sample, strict=True):
        assert max(tiny.errors(result, reference)) < FP32_TOLERANCE
    clean_first = tiny.forward_and_gradients(model, inputs)
    assert tiny.errors(clean_first[0], per_sample[0])[1] > 0.01


def test_timesteps_per_frame_keep_no_row_per_token(tiny):
    """What the backward keeps, in bytes: a timestep per frame must not make modulations as long as the video."""
    config = tiny.configs["ti2v"]
    model = tiny.model(config, tiny.weights(config))
    inputs = tiny.inputs(config, frames=3, height=32, width=32)
    kept = {}
    for name, timesteps in (("sample", inputs.timesteps[:, 1]), ("frame", inputs.timesteps)):
        sizes = {}

        def pack(tensor, sizes=sizes):
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model(inputs.latents.clone().requires_grad_(), timesteps, inputs.context)
        kept[name] = sum(sizes.values())
        assert output.requires_grad
    per_frame_rows = 2 * 3 * config.dim * 4  # one vector for each frame, fp32
    assert kept["frame"] - kept["sample"] < 32 * per_frame_rows * config.num_layers
    assert 2 * 3 * 16 * 16 * config.dim * 4 > 100 * per_frame_rows, "a row per token would be told apart"


def test_run_block_gets_the_image_tokens_last(tiny):
    config = tiny.configs["flf2v"]
    model = tiny.model(config, tiny.weights(config))
    inputs = tiny.inputs(config)
    plain = tiny.forward_and_gradients(model, inputs)
    shapes = []

    def run_block(block, *args):
        shapes.append([list(arg.shape) for arg in args])
        return checkpoint(block, *args, use_reentrant=False)

    model.run_block = run_block
    recomputed = tiny.forward_and_gradients(model, inputs)
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))
    assert shapes == [[[2, 45, 48], [2, 1, 6, 48], [2, 45, 12], [2, 512, 48], [2, 514, 48]]] * 2


def test_mask_and_image_follow_the_noisy_latents(tiny):
    """The input's channels are latents, mask, image: a weight on channel 16 sees the first mask channel alone."""
    config = tiny.configs["i2v"]
    weights = tiny.weights(config)
    weights["patch_embedding.weight"][:, 17:] = 0
    model = tiny.model(config, weights)
    inputs = tiny.inputs(config)
    _, *grads = tiny.forward_and_gradients(model, inputs)
    seen = grads[2].abs().sum(dim=(0, 2, 3, 4)) > 0
    assert seen.nonzero().flatten().tolist() == [0]


def test_image_branch_carries_a_lora(tiny):
    from wan_train.core.adapters.setup import adapter_modules, add_adapter
    from wan_train.core.settings.adapter import AdapterOptions

    config = tiny.configs["i2v_clip"]
    model = tiny.model(config, tiny.weights(config))
    parameters = add_adapter(model, AdapterOptions(rank=2, targets=("cross_attn",)), seed=0)
    names = {name for name in adapter_modules(model) if name.startswith("blocks.1.")}
    assert names == {f"blocks.1.cross_attn.{part}" for part in ("q", "k", "v", "o", "k_img", "v_img")}
    inputs = tiny.inputs(config)
    tiny.forward_and_gradients(model, inputs)
    ups = [parameter for name, parameter in parameters if "_img.lora_B" in name]
    assert len(ups) == 4
    assert all(up.grad is not None and up.grad.abs().sum() > 0 for up in ups)


@pytest.mark.parametrize(
    ("sizes", "num_params"),
    [
        ({"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30}, 1_418_996_800),  # Wan 2.1 T2V 1.3B
        ({}, 14_288_491_584),  # Wan 2.1 T2V 14B, each expert of Wan 2.2 T2V-A14B
        (TI2V_5B, 4_999_787_712),
    ],
)
def test_published_sizes_have_the_published_number_of_parameters(sizes, num_params):
    with torch.device("meta"):
        model = WanTransformer(WanConfig(**sizes))
    assert sum(parameter.numel() for parameter in model.parameters()) == num_params
