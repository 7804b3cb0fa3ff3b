"""The host's own objects of model files."""

from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils
import folder_paths
import torch

from ...core.encoders.text import transformers_name
from ...core.encoders.tokenizer import find_tokenizer
from ...core.encoders.weights import EncoderWeights, open_weights
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
    """The host's CLIP of a umT5 file of any size, also of the official .pth, whose names and tokenizer the host lacks.

    ConfigError or ModelFileError for another file, or if there is no tokenizer for it.
    """
    weights = open_weights(path)
    if path.suffix.lower() in (".safetensors", ".sft") and "spiece_model" in weights.shapes:
        state = comfy.utils.load_torch_file(str(path), safe_load=True)
        options = {"umt5xxl_model_config": umt5_config(state, path.name)}
        del state
        embeddings = folder_paths.get_folder_paths("embeddings")
        return comfy.sd.load_clip([str(path)], embeddings, comfy.sd.CLIPType.WAN, options)
    return _load_converted(weights, path.name)


def _load_converted(weights: EncoderWeights, name: str) -> Any:
    """The host's CLIP of weights under other names, or without a tokenizer: what the host's own loader can't read."""
    config = umt5_config(
        {transformers_name(key): torch.empty(s, device="meta") for key, s in weights.shapes.items()}, name
    )
    folders = [Path(folder) for folder in folder_paths.get_folder_paths("text_encoders")]
    _, tokenizer = find_tokenizer(weights, folders=folders)
    state = {transformers_name(key): tensor for key, tensor in weights.read(weights.shapes)}
    state["spiece_model"] = torch.frombuffer(bytearray(tokenizer), dtype=torch.uint8)
    state, _ = comfy.utils.convert_old_quants(state, model_prefix="", metadata={})
    return comfy.sd.load_text_encoder_state_dicts(
        [state],
        folder_paths.get_folder_paths("embeddings"),
        comfy.sd.CLIPType.WAN,
        {"umt5xxl_model_config": config},
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
            f"'{name}' is not a umT5 text encoder (it has no {error}): load umt5_xxl_fp16.safetensors,"
            " models_t5_umt5-xxl-enc-bf16.pth or a file made for this node."
        ) from error
    return {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "d_ff": d_ff,
        "d_kv": query.shape[0] // heads,
        "num_heads": heads,
        "num_layers": sum(key.endswith("SelfAttention.q.weight") for key in state),
    }
