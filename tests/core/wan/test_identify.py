import re

import pytest
import torch
from wan_train.core.errors import ModelFileError
from wan_train.core.wan.checkpoint import inspect
from wan_train.core.wan.config import TRAINABLE
from wan_train.core.wan.identify import SIGNATURES, identify, identify_bytes

# Keys as the published files have them; one tensor of each is enough to know it.
FOREIGN = {
    "wan2.1_vae": {"decoder.middle.0.residual.0.gamma": [4, 1, 1, 1], "encoder.conv1.weight": [4, 3, 3, 3, 3]},
    "wan2.2_vae": {
        "decoder.middle.0.residual.0.gamma": [4, 1, 1, 1],
        "decoder.upsamples.0.upsamples.0.residual.2.weight": [4, 4, 3, 3, 3],
    },
    "umt5": {
        "encoder.block.0.layer.0.SelfAttention.q.weight": [8, 8],
        "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight": [32, 8],
    },
    "t5": {
        "encoder.block.0.layer.0.SelfAttention.q.weight": [8, 8],
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": [32, 8],
        "encoder.block.1.layer.0.SelfAttention.q.weight": [8, 8],
    },
    "clip_text": {"text_model.encoder.layers.0.self_attn.q_proj.weight": [8, 8]},
    "clip_vision": {"vision_model.encoder.layers.0.self_attn.q_proj.weight": [8, 8]},
    "llm": {"model.layers.0.self_attn.q_proj.weight": [8, 8]},
    "flux": {"double_blocks.0.img_attn.norm.key_norm.scale": [8], "img_in.weight": [8, 8]},
    "sdxl": {
        "model.diffusion_model.input_blocks.0.0.weight": [8, 4, 3, 3],
        "model.diffusion_model.label_emb.0.0.weight": [8, 8],
        "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight": [8, 8],
    },
    "sd1.5": {
        "model.diffusion_model.input_blocks.0.0.weight": [8, 4, 3, 3],
        "first_stage_model.decoder.conv_in.weight": [8, 4, 3, 3],
    },
    "sd3": {"model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight": [8, 8]},
    "hunyuan_video": {
        "txt_in.individual_token_refiner.blocks.0.norm1.weight": [8],
        "double_blocks.0.img_attn.qkv.weight": [8, 8],
    },
    "qwen_image": {"txt_norm.weight": [8], "transformer_blocks.0.img_mlp.net.0.proj.weight": [8, 8]},
    "ltx": {
        "model.diffusion_model.adaln_single.emb.timestep_embedder.linear_1.bias": [8],
        "model.diffusion_model.scale_shift_table": [2, 8],
    },
    "lumina": {"cap_embedder.1.weight": [8, 8]},
    "cosmos": {"net.blocks.block0.blocks.0.block.attn.to_q.0.weight": [8, 8]},
    "vae": {"decoder.conv_in.weight": [8, 4, 3, 3]},
    "unknown": {"something.else.weight": [8, 8]},
}

LORA_KEYS = [
    "diffusion_model.blocks.0.self_attn.q.lora_A.weight",
    "lora_unet_blocks_0_self_attn_q.lora_down.weight",
    "transformer.blocks.0.attn1.to_q.lora_B.weight",
    "base_model.model.blocks.0.self_attn.q.lora_A.default.weight",
    "diffusion_model.blocks.0.self_attn.q.lora.up.weight",
    "unet.blocks.0.self_attn.q_lora.down.weight",
    "lycoris_blocks_0_self_attn_q.lokr_w1",
    "lora_unet_blocks_0_self_attn_q.hada_w1_a",
    "diffusion_model.blocks.0.self_attn.q.oft_blocks",
    "diffusion_model.blocks.0.self_attn.q.diff_b",
    "diffusion_model.blocks.0.self_attn.q.dora_scale",
]

# (name, input channels, output channels, further keys)
WAN_VARIANTS = [
    ("wan_t2v", 16, 16, {}),
    ("wan2.2_i2v_a14b", 36, 16, {}),
    ("wan2.1_i2v", 36, 16, {"img_emb.proj.0.bias": [1280]}),
    ("wan_flf2v", 36, 16, {"img_emb.proj.0.bias": [1280], "img_emb.emb_pos": [1, 514, 1280]}),
    ("wan2.2_ti2v_5b", 48, 48, {}),
    ("wan_vace", 16, 16, {"vace_patch_embedding.weight": [128, 96, 1, 2, 2]}),
    ("wan_fun_control", 48, 16, {"img_emb.proj.0.bias": [1280]}),
    ("wan_fun_control", 52, 16, {"ref_conv.weight": [128, 16, 2, 2]}),
    ("wan_fun_control", 100, 48, {}),
    ("wan_camera", 36, 16, {"control_adapter.conv.weight": [128, 1536, 2, 2], "img_emb.proj.0.bias": [1280]}),
    ("wan_s2v", 16, 16, {"casual_audio_encoder.encoder.final_linear.weight": [8, 8]}),
    ("wan_humo", 36, 16, {"audio_proj.audio_proj_glob_1.layer.bias": [8]}),
    ("wan_audio", 36, 16, {"blocks.0.audio_cross_attn.q_linear.weight": [8, 8], "img_emb.proj.0.bias": [1280]}),
    ("wan_animate", 36, 16, {"face_adapter.fuser_blocks.0.k_norm.weight": [8], "img_emb.proj.0.bias": [1280]}),
    ("wan_pose", 36, 16, {"patch_embedding_pose.weight": [8, 20, 1, 2, 2]}),
    ("wan_recam", 16, 16, {"blocks.0.cam_encoder.weight": [128, 12]}),
]

TRAINED = {"wan_t2v", "wan2.1_i2v", "wan_flf2v", "wan2.2_i2v_a14b", "wan2.2_ti2v_5b"}


def wan_shapes(in_dim, out_dim):
    return {
        "patch_embedding.weight": [128, in_dim, 1, 2, 2],
        "head.head.weight": [out_dim * 4, 128],
        "head.modulation": [1, 2, 128],
        "blocks.0.self_attn.q.weight": [128, 128],
    }


@pytest.mark.parametrize("name", FOREIGN)
def test_other_files_are_known(name):
    assert identify(FOREIGN[name]).name == name


@pytest.mark.parametrize("key", LORA_KEYS)
def test_every_style_of_lora_is_known(key):
    assert identify({key: [4, 8]}).name == "lora"


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize(("name", "in_dim", "out_dim", "further"), WAN_VARIANTS)
def test_wan_variants_are_told_apart(name, in_dim, out_dim, further, prefix):
    shapes = wan_shapes(in_dim, out_dim) | further
    assert identify({prefix + key: shape for key, shape in shapes.items()}).name == name


def test_diffusers_names_of_variants():
    shapes = {
        "patch_embedding.weight": [128, 36, 1, 2, 2],
        "proj_out.weight": [64, 128],
        "scale_shift_table": [1, 2, 128],
        "blocks.0.attn1.to_q.weight": [128, 128],
    }
    assert identify(shapes).name == "wan2.2_i2v_a14b"
    image = {"blocks.0.attn2.add_k_proj.weight": [128, 128], "condition_embedder.image_embedder.norm1.bias": [1280]}
    assert identify(shapes | image).name == "wan2.1_i2v"
    position = {"condition_embedder.image_embedder.pos_embed": [1, 514, 1280]}
    assert identify(shapes | image | position).name == "wan_flf2v"


def test_every_signature_is_covered_by_a_case_above():
    covered = {"lora", *FOREIGN, *(name for name, *_ in WAN_VARIANTS)}
    assert {signature.kind.name for signature in SIGNATURES} <= covered


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ("small", "wan_t2v"),
        ("i2v_clip", "wan2.1_i2v"),
        ("flf2v", "wan_flf2v"),
        ("i2v", "wan2.2_i2v_a14b"),
        ("ti2v", "wan2.2_ti2v_5b"),
    ],
)
def test_real_weights_of_what_can_be_trained(tiny, config, name):
    kind = identify({key: value.shape for key, value in tiny.weights(tiny.configs[config]).items()})
    assert (kind.name, kind.variant) == (name, tiny.configs[config].variant)
    assert kind.variant in TRAINABLE


def test_what_cannot_be_trained_says_why():
    refused = [signature.kind for signature in SIGNATURES if signature.kind.variant not in (None, *TRAINABLE)]
    assert {kind.name for kind in refused} == {name for name, *_ in WAN_VARIANTS} - TRAINED
    assert all(
        re.match(r"which cannot be trained yet, because it learns from \w.* too; use", kind.advice) for kind in refused
    )


@pytest.mark.parametrize(
    ("first_bytes", "suffix", "name"),
    [
        (b"GGUF\x03\0\0\0\0", ".safetensors", "gguf"),
        (b"PK\x03\x04\0\0\0\0\0", ".safetensors", "pickle"),
        (b"\x80\x02}q\0X\0\0\0", ".pth", "pickle"),
        (b"whatever it is", ".ckpt", "pickle"),
        (b"version https://git-lfs.github.com", ".safetensors", "git_lfs_pointer"),
        (b"<!DOCTYPE html>", ".safetensors", "web_page"),
    ],
)
def test_other_formats_by_first_bytes_or_suffix(first_bytes, suffix, name):
    kind = identify_bytes(first_bytes, suffix)
    assert kind is not None
    assert kind.name == name


@pytest.mark.parametrize("length", [0x0280, int.from_bytes(b"GGUF", "little")])
def test_header_length_is_not_mistaken_for_another_format(length):
    assert identify_bytes(length.to_bytes(8, "little") + b"{", ".safetensors") is None
    assert identify_bytes(length.to_bytes(8, "little") + b"{", ".bin") is None


def test_messages_name_the_file_what_it_is_and_what_is_wanted(tmp_path, save):
    fun = {
        key: torch.zeros(shape) for key, shape in (wan_shapes(52, 16) | {"ref_conv.weight": [128, 16, 2, 2]}).items()
    }
    with pytest.raises(
        ModelFileError,
        match=r"'.*fun.safetensors' is a Wan Fun-Control model, which cannot be trained yet, because it learns from "
        r"control videos too; use a Wan .* T2V, I2V, FLF2V or TI2V model file",
    ):
        inspect(save(fun, "fun.safetensors"))
    vae = {key: torch.zeros(shape) for key, shape in FOREIGN["wan2.1_vae"].items()}
    with pytest.raises(ModelFileError, match=r"'.*' is a Wan 2.1 VAE, which goes into the VAE loader; for the model"):
        inspect(save(vae, "vae.safetensors"))
    flux = {key: torch.zeros(shape) for key, shape in FOREIGN["flux"].items()}
    with pytest.raises(ModelFileError, match=r"is a Flux or Chroma model, not a Wan video model; use a Wan"):
        inspect(save(flux, "flux.safetensors"))
    with pytest.raises(ModelFileError, match=r"is not a model that this pack knows, use a Wan"):
        inspect(save({"x": torch.zeros(1)}, "x.safetensors"))
    pickle = tmp_path / "model.pth"
    torch.save({"x": torch.zeros(1)}, pickle)
    with pytest.raises(ModelFileError, match=r"'.*model.pth' is a pickle file, .* use the .safetensors file"):
        inspect(pickle)
