"""CLIP vision files of ViT-H/14's outer sizes with few, narrow layers, and the host's way to load them."""

from pathlib import Path

import torch
from torch import Tensor

WIDTH, HIDDEN, LAYERS, PROJECTED = 1280, 64, 2, 8
_LAYER = {
    "layer_norm1": (WIDTH,), "layer_norm2": (WIDTH,), "mlp.fc1": (HIDDEN, WIDTH), "mlp.fc2": (WIDTH, HIDDEN),
    **{f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in ("k", "v", "q", "out")},
}  # fmt: skip


def clip_vision_shapes() -> dict[str, tuple[int, ...]]:
    """transformers' names, as clip_vision_h.safetensors has them."""
    shapes: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (WIDTH,),
        "vision_model.embeddings.patch_embedding.weight": (WIDTH, 3, 14, 14),
        "vision_model.embeddings.position_embedding.weight": (257, WIDTH),
        "visual_projection.weight": (PROJECTED, WIDTH),
    }
    modules = {"pre_layrnorm": (WIDTH,), "post_layernorm": (WIDTH,)}
    modules |= {f"encoder.layers.{i}.{name}": shape for i in range(LAYERS) for name, shape in _LAYER.items()}
    for name, shape in modules.items():
        shapes |= {f"vision_model.{name}.weight": shape, f"vision_model.{name}.bias": shape[:1]}
    return shapes


def clip_vision(dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """Random weights that keep attention busy and every weight seen."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in clip_vision_shapes().items():
        values = torch.randn(shape, generator=generator) * (0.2 if len(shape) == 1 else 0.05)
        tensors[name] = (values + 1.0 if "norm" in name and name.endswith(".weight") else values).to(dtype)
    return tensors


def open_clip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights as open_clip names and arranges them."""
    inner = {name.removeprefix("vision_model."): tensor for name, tensor in tensors.items()}
    made = {
        "class_embedding": inner["embeddings.class_embedding"],
        "conv1.weight": inner["embeddings.patch_embedding.weight"],
        "positional_embedding": inner["embeddings.position_embedding.weight"],
        "proj": inner["visual_projection.weight"].T.contiguous(),
    }
    for kind in ("weight", "bias"):
        made |= {f"ln_pre.{kind}": inner[f"pre_layrnorm.{kind}"], f"ln_post.{kind}": inner[f"post_layernorm.{kind}"]}
        for index in range(LAYERS):
            layer, block = f"encoder.layers.{index}", f"transformer.resblocks.{index}"
            joined = torch.cat([inner[f"{layer}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"])
            made |= {
                f"{block}.attn.in_proj_{kind}": joined,
                f"{block}.attn.out_proj.{kind}": inner[f"{layer}.self_attn.out_proj.{kind}"],
                f"{block}.ln_1.{kind}": inner[f"{layer}.layer_norm1.{kind}"],
                f"{block}.ln_2.{kind}": inner[f"{layer}.layer_norm2.{kind}"],
                f"{block}.mlp.c_fc.{kind}": inner[f"{layer}.mlp.fc1.{kind}"],
                f"{block}.mlp.c_proj.{kind}": inner[f"{layer}.mlp.fc2.{kind}"],
            }
    text = {"transformer.resblocks.0.ln_1.weight": torch.ones(4), "logit_scale": torch.zeros(())}  # the other half
    return {f"visual.{name}": tensor for name, tensor in made.items()} | text


def load_as_host(path: Path):
    """The host's model, loaded as its Load CLIP Vision does, but of any size: its own loader takes full sizes alone."""
    import comfy.clip_vision
    import comfy.utils

    state = comfy.utils.load_torch_file(str(path), safe_load=True)
    if any(name.startswith("visual.") for name in state):
        state = comfy.clip_vision.convert_to_transformers(state, "visual.")
    model = comfy.clip_vision.ClipVisionModel(
        {
            "hidden_size": WIDTH, "intermediate_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 16,
            "image_size": 224, "patch_size": 14, "projection_dim": PROJECTED, "num_channels": 3, "hidden_act": "gelu",
            "model_type": "clip_vision_model",
        }
    )  # fmt: skip
    missing, _ = model.load_sd(state)
    assert not missing
    return model
