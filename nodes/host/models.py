"""The host's own objects of model files."""

from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils
import folder_paths
import torch

from ...core.errors import ConfigError


def load_diffusion_model(path: Path) -> Any:
    """The host's MODEL of a file."""
    return comfy.sd.load_diffusion_model(str(path))


def load_vae(path: Path) -> Any:
    """The host's VAE of a file."""
    state, metadata = comfy.utils.load_torch_file(str(path), return_metadata=True)
    vae = comfy.sd.VAE(sd=state, metadata=metadata)
    vae.throw_exception_if_invalid()
    return vae


def load_umt5(path: Path) -> Any:
    """The host's CLIP of a umT5 file of any size."""
    state = comfy.utils.load_torch_file(str(path), safe_load=True)
    return comfy.sd.load_clip(
        ckpt_paths=[str(path)],
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        clip_type=comfy.sd.CLIPType.WAN,
        model_options={"umt5xxl_model_config": umt5_config(state, path.name)},
    )


def umt5_config(state: dict[str, torch.Tensor], name: str) -> dict[str, int]:
    """The sizes of a umT5 encoder, read off its tensors, as the host's loader takes them."""
    try:
        vocab_size, d_model = state["shared.weight"].shape
        query = state["encoder.block.0.layer.0.SelfAttention.q.weight"]
        heads = state["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"].shape[1]
        d_ff = state["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"].shape[0]
    except KeyError as error:
        raise ConfigError(
            f"'{name}' is not a umT5 text encoder (it has no {error}): load umt5_xxl_fp16.safetensors or a file made for"
            " this node."
        ) from error
    return {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "d_ff": d_ff,
        "d_kv": query.shape[0] // heads,
        "num_heads": heads,
        "num_layers": sum(key.endswith("SelfAttention.q.weight") for key in state),
    }
