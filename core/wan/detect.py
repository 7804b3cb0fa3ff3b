"""Reads the sizes of a Wan transformer from the shapes of its weights and from what its file says about itself."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import ConfigError, ModelFileError
from ..serial import from_dict
from .config import TRAINABLE, Variant, WanConfig
from .limits import parse_json, read_json_file, shown

HEAD_DIM = 128  # of every published Wan model; nothing in the weights tells it
SIZES = {field.name for field in fields(WanConfig)} - {"variant"}


def detect_config(
    path: Path, shapes: Mapping[str, Sequence[int]], variant: Variant, overrides: Mapping[str, Any]
) -> WanConfig:
    """The configuration of a transformer with official names; `overrides` are fields that its file states itself.

    Raises ModelFileError if a weight that tells a size is missing or the sizes contradict each other.
    """
    for name, shape in shapes.items():
        if 0 in shape:
            raise ModelFileError(
                f"The model file '{path}' cannot be used: '{name}' is empty, of the shape {list(shape)}; download it again."
            )
    patch_size = tuple(_shape(path, shapes, "patch_embedding.weight", 5)[2:])
    dim, in_dim = _shape(path, shapes, "patch_embedding.weight", 5)[:2]
    values: dict[str, Any] = {
        "dim": dim,
        "in_dim": in_dim,
        "patch_size": patch_size,
        "out_dim": _shape(path, shapes, "head.head.weight", 2)[0] // math.prod(patch_size),
        "ffn_dim": _shape(path, shapes, "blocks.0.ffn.0.weight", 2)[0],
        "text_dim": _shape(path, shapes, "text_embedding.0.weight", 2)[1],
        "freq_dim": _shape(path, shapes, "time_embedding.0.weight", 2)[1],
        "num_layers": _num_layers(shapes),
        "num_heads": dim // HEAD_DIM,
    }
    values |= _image_sizes(path, shapes)
    values |= overrides
    try:
        config = from_dict(WanConfig, values | {"variant": variant}, "The model's own configuration")
    except ConfigError as error:
        raise ModelFileError(f"The model file '{path}' cannot be used: {shown(str(error), 500)}") from error
    except OverflowError as error:
        raise ModelFileError(
            f"The model file '{path}' cannot be used: a number of its configuration is too large; get it from its maker again."
        ) from error
    if config.num_heads < 1 or config.dim % (2 * config.num_heads):
        raise ModelFileError(
            f"The model file '{path}' has a width of {config.dim}, which {config.num_heads} heads cannot share; Wan "
            f"models have heads of {HEAD_DIM} channels unless the file's metadata 'config' gives num_heads."
        )
    return config


def read_overrides(path: Path, metadata: Mapping[str, str], sidecar: Path | None) -> dict[str, Any]:
    """Fields of WanConfig that the header metadata (`config`: {"transformer": {...}}) or a diffusers config.json state.

    The metadata wins. Fields that WanConfig does not have are left alone. Raises ModelFileError on broken JSON.
    """
    found: dict[str, Any] = {}
    if sidecar is not None and sidecar.is_file():
        try:
            found |= _from_diffusers(read_json_file(sidecar))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ModelFileError(f"'{sidecar}' is not a valid model configuration; download it again.") from error
    found |= _stated_config(path, metadata)
    return {name: value for name, value in found.items() if name in SIZES}


def stated_kind(path: Path, metadata: Mapping[str, str]) -> str | None:
    """What the header metadata says that no weight tells: "animate2", "flow_rvs", "causal_ar"; None for a plain model.

    Such models have the weights of a plain one, and ComfyUI runs them in another way (comfy/supported_models.py).
    """
    config = _stated_config(path, metadata)
    if config.get("causal_ar"):
        return "causal_ar"
    kind = config.get("model_type", "t2v")
    return None if kind in TRAINABLE else shown(kind)


def _stated_config(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The header metadata `config`: {"transformer": {...}}, in ComfyUI's form; {} without one."""
    try:
        return dict(parse_json(metadata.get("config", "{}")).get("transformer", {}))
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelFileError(
            f"The metadata field 'config' in the header of '{path}' is not valid JSON of the form "
            '{"transformer": {...}}; get the file from its maker again.'
        ) from error


def _from_diffusers(config: Mapping[str, Any]) -> dict[str, Any]:
    """diffusers' WanTransformer3DModel configuration in our names; that of another class is ignored."""
    if config.get("_class_name", "WanTransformer3DModel") != "WanTransformer3DModel":
        return {}
    names = {
        "num_attention_heads": "num_heads",
        "in_channels": "in_dim",
        "out_channels": "out_dim",
        "text_dim": "text_dim",
        "freq_dim": "freq_dim",
        "ffn_dim": "ffn_dim",
        "num_layers": "num_layers",
        "patch_size": "patch_size",
        "eps": "eps",
    }
    return {ours: config[theirs] for theirs, ours in names.items() if config.get(theirs) is not None}


def _image_sizes(path: Path, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Sizes of the CLIP branch, which Wan 2.1 I2V and FLF2V have; {} for the other models."""
    if not any(name.startswith("img_emb.") or ".cross_attn.k_img." in name for name in shapes):
        return {}
    sizes = {"image_dim": _shape(path, shapes, "img_emb.proj.0.weight", 1)[0]}
    if "img_emb.emb_pos" in shapes:
        sizes["image_positions"] = _shape(path, shapes, "img_emb.emb_pos", 3)[1]
    return sizes


def _num_layers(shapes: Mapping[str, Sequence[int]]) -> int:
    numbers = {int(match[1]) for match in (re.match(r"blocks\.([0-9]{1,6})\.", name) for name in shapes) if match}
    return max(numbers, default=-1) + 1


def _shape(path: Path, shapes: Mapping[str, Sequence[int]], name: str, num_axes: int) -> Sequence[int]:
    shape = shapes.get(name)
    if shape is None:
        raise ModelFileError(f"The model file '{path}' is incomplete: it lacks the weight '{name}'; download it again.")
    if len(shape) != num_axes:
        raise ModelFileError(
            f"The model file '{path}' cannot be used: '{name}' has the shape {list(shape)}, but {num_axes} axes are "
            "expected; use the unpacked fp16, bf16 or fp8 file of the model."
        )
    return shape
