"""CLIP's vision model by transformers: ViT-H/14, whose features Wan 2.1 image-to-video is given. Shape: H W pixels."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ..data.latents import unit_range
from ..errors import ModelFileError
from ..facts import CLIP_DIM, CLIP_TOKENS
from ..wan.identify import identify
from ..wan.quantized import is_extra
from .identity import vision_identity
from .light_import import for_encoders
from .weights import EncoderWeights, check_weights, headless_packages, open_weights

# ViT-H/14 as it was trained: open_clip, model_configs/ViT-H-14.json and constants.py.
PATCH, NUM_HEADS = 14, 16
SIDE = 224  # pixels of the square that is looked at
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

HOST_DTYPE = torch.float16  # in which ComfyUI holds the weights, whatever the file has; it computes in float32

_PREFIX = "vision_model."
_PROJECTION = "visual_projection.weight"
_PATCHES = "vision_model.embeddings.patch_embedding.weight"
_POSITIONS = "vision_model.embeddings.position_embedding.weight"
_FIRST_NORM = re.compile(r"vision_model\.encoder\.layers\.\d+\.layer_norm1\.weight|visual\..+\.ln_1\.weight")
_HIDDEN = "vision_model.encoder.layers.0.mlp.fc1.weight"

# transformers -> open_clip, whose file holds q, k and v in one tensor and the projection transposed
_OPEN_CLIP_MARK = "visual.transformer.resblocks.0.attn.in_proj_weight"
_ENDS = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    _PATCHES: "visual.conv1.weight",
    _POSITIONS: "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    _PROJECTION: "visual.proj",
}
_LAYER = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_QKV = re.compile(r"self_attn\.([qkv])_proj")
_PARTS = {
    "layer_norm1": "ln_1.",
    "layer_norm2": "ln_2.",
    "self_attn.out_proj": "attn.out_proj.",
    **{f"self_attn.{letter}_proj": "attn.in_proj_" for letter in "qkv"},
    "mlp.fc1": "mlp.c_fc.",
    "mlp.fc2": "mlp.c_proj.",
}


class ClipVisionEncoder:
    """A CLIP vision model as `core.data.types.VisionEncoder`."""

    def __init__(self, model: Any, identity: str) -> None:
        self.identity = identity
        self._model = model

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """[H, W, 3] uint8 to the hidden states before the last layer, [257, 1280] float32 on the CPU."""
        pixels = whole_as_square(image.to(self._model.device))
        return self._model(pixel_values=pixels, output_hidden_states=True).hidden_states[-2][0].cpu()


def whole_as_square(image: Tensor) -> Tensor:
    """[H, W, 3] uint8 to CLIP's [1, 3, 224, 224] float32: the whole image, squeezed, as Wan was trained.

    The numbers are those of ComfyUI's CLIPVisionEncode with crop "none", which goes through 8 bits again.
    """
    pixels = unit_range(image).permute(2, 0, 1)[None]
    if pixels.shape[2:] != (SIDE, SIDE):
        pixels = torch.nn.functional.interpolate(pixels, size=(SIDE, SIDE), mode="bicubic", antialias=True)
    pixels = (255.0 * pixels).clamp(0, 255).round() / 255.0
    mean, std = (torch.tensor(values, device=pixels.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / std


def check_vision_file(path: Path) -> None:
    """ModelFileError unless `path` is CLIP ViT-H/14 in a layout that can be read; reads headers alone."""
    _stored_shapes(_open(path))


def load_vision_encoder(path: Path, device: torch.device | str) -> ClipVisionEncoder:
    """The CLIP vision model at `path`: clip_vision_h.safetensors, an open_clip file, or diffusers' folder.

    Computes in float32, as ComfyUI does. Raises ModelFileError if the file is anything but a whole CLIP ViT-H/14,
    ConfigError if a package is missing.
    """
    weights, device = _open(path), torch.device(device)
    shapes = _stored_shapes(weights)
    model = _build_on_meta(sum(bool(_FIRST_NORM.fullmatch(name)) for name in weights.shapes), shapes[_HIDDEN][0])
    inner = {_PREFIX + name.removeprefix(_PREFIX): name for name in model.state_dict()}
    expected = {name: tuple(model.state_dict()[own].shape) for name, own in inner.items()}
    if _PROJECTION in shapes:
        expected[_PROJECTION] = shapes[_PROJECTION]
    groups = _groups(weights, expected)
    check_weights(weights, {name: name for name in weights.shapes}, _file_shapes(groups, expected))
    # Under inference mode the weights could not be moved or used outside of it.
    with torch.inference_mode(False), torch.no_grad():
        state: dict[str, Tensor] = {}
        for name, tensor in weights.read(groups):
            parts = [tensor.T] if name == _ENDS[_PROJECTION] else tensor.chunk(len(groups[name]))
            state |= {n: part.to(device, torch.float32) for n, part in zip(groups[name], parts, strict=True)}
        identity = vision_identity(state, HOST_DTYPE)
        model.load_state_dict({own: state[name] for name, own in inner.items()}, strict=True, assign=True)
        _number_positions(model, device)
    return ClipVisionEncoder(model.requires_grad_(False).eval(), identity)


def _open(path: Path) -> EncoderWeights:
    path = Path(path)
    weights = open_weights(path / "image_encoder" if (path / "image_encoder").is_dir() else path)
    kind = identify(weights.shapes)
    if kind.name != "clip_vision":
        raise ModelFileError(
            f"'{weights.path}' is {kind.label}; a CLIP vision encoder is needed: clip_vision_h.safetensors."
        )
    if any(map(is_extra, weights.shapes)):
        raise ModelFileError(
            f"'{weights.path}' is quantized, which cannot be read here; use clip_vision_h.safetensors in fp16."
        )
    return weights


def _stored_shapes(weights: EncoderWeights) -> dict[str, tuple[int, ...]]:
    """Shapes of what tells the sizes, by transformers' names. ModelFileError if it is no ViT-H/14."""
    shapes = {}
    for name in (_PATCHES, _POSITIONS, _HIDDEN, _PROJECTION):
        shape = weights.shapes.get(_file_name(name, weights.shapes))
        if shape is not None:
            shapes[name] = shape[::-1] if name == _PROJECTION and _is_open_clip(weights.shapes) else shape
    wanted = {_PATCHES: (CLIP_DIM, 3, PATCH, PATCH), _POSITIONS: (CLIP_TOKENS, CLIP_DIM)}
    if any(shapes.get(name) != shape for name, shape in wanted.items()) or len(shapes.get(_HIDDEN, ())) != 2:
        raise ModelFileError(
            f"'{weights.path}' is a CLIP vision encoder, but not the one that Wan 2.1 was trained with (ViT-H/14 in "
            "ComfyUI's or open_clip's layout): use clip_vision_h.safetensors."
        )
    return shapes


def _is_open_clip(names: Mapping[str, Any]) -> bool:
    return _OPEN_CLIP_MARK in names


def _file_name(name: str, names: Mapping[str, Any]) -> str:
    """The name that the file, whose names are given, has for a weight of transformers' name."""
    layer = _LAYER.fullmatch(name)
    if not _is_open_clip(names):
        return name
    if layer is None:
        return _ENDS.get(name, name)
    return f"visual.transformer.resblocks.{layer[1]}.{_PARTS.get(layer[2], layer[2])}{layer[3]}"


def _groups(weights: EncoderWeights, names: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names in the file to transformers': one each, or, where the file has q, k and v in one, these three in order."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names, key=_place_in_qkv):
        groups.setdefault(_file_name(name, weights.shapes), []).append(name)
    return groups


def _place_in_qkv(name: str) -> int:
    letter = _QKV.search(name)
    return 0 if letter is None else "qkv".index(letter[1])


def _file_shapes(groups: Mapping[str, list[str]], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """What the tensors of the file have to be."""
    expected = {}
    for stored, names in groups.items():
        rows, *rest = shapes[names[0]]
        expected[stored] = (rest[0], rows) if stored == _ENDS[_PROJECTION] else (rows * len(names), *rest)
    return expected


def _build_on_meta(num_layers: int, hidden: int) -> Any:
    """transformers' vision model without memory for its weights."""
    with headless_packages(), for_encoders():
        from transformers import CLIPVisionConfig, CLIPVisionModel
    config = cast(Any, CLIPVisionConfig)(  # its signature leaves out what every configuration takes
        hidden_size=CLIP_DIM,
        intermediate_size=hidden,
        num_hidden_layers=num_layers,
        num_attention_heads=NUM_HEADS,
        image_size=SIDE,
        patch_size=PATCH,
        hidden_act="gelu",
        layer_norm_eps=1e-5,
        attn_implementation="sdpa",
    )
    with torch.device("meta"):
        return CLIPVisionModel(config)


def _number_positions(model: Any, device: torch.device) -> None:
    """A buffer that is in no file, and has no values yet."""
    for module in model.modules():
        if hasattr(module, "position_ids"):
            module.position_ids = torch.arange(CLIP_TOKENS, device=device)[None]
