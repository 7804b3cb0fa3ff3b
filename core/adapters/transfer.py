"""What of a LoRA has an effect on a model that it was not trained on: text-to-video and image-to-video, and back.

All Wan models of one size share the layers of their blocks. Wan 2.1's image-to-video models have more of them: k_img and
v_img in every block and img_emb before them, for the CLIP features of the start image. A LoRA's modules without a place
are passed over by the host, with a line in its log for each.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import ConfigError
from ..wan.config import WanConfig
from ..wan.identify import Shapes, identify
from ..wan.model import WanTransformer
from ..words import counted
from .formats import LoraFile
from .other_files import OtherFile, OtherModule

Adapter = LoraFile | OtherFile

SIZES = {1536: "1.3B", 3072: "5B", 5120: "14B"}  # of the published models by their width
_BLOCK = re.compile(r"blocks\.(\d+)\.")
_IMAGE = re.compile(r"\.cross_attn\.[kv]_img$|^img_emb\.")
_FROM_IMAGES = re.compile(r"-(i2v|flf2v)-")
_TO_WIDTH = re.compile(r"blocks\.\d+\.(?:(?:self|cross)_attn\.[qo]|ffn\.2)$")  # their output is as wide as the model


@dataclass(frozen=True, kw_only=True)
class TransferReport:
    """Which modules of a LoRA have their place in a model, by official path."""

    lora: str  # name of the file
    placed: tuple[str, ...]
    missing: tuple[str, ...]  # the model has no such layer
    reshaped: tuple[str, ...]  # the model's layer has another shape
    notes: tuple[str, ...]  # for the user, one sentence each; none where LoRA and model are of one kind


def model_shapes(config: WanConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's weights by official name."""
    with torch.device("meta"):
        model = WanTransformer(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def transfer_report(lora: Adapter, shapes: Shapes) -> TransferReport:
    """What of `lora` has an effect on the model with weights of these `shapes`, by official name.

    ConfigError, with both names, if the LoRA was made for a model of another size or depth, or nothing of it fits.
    """
    name = Path(lora.path).name
    found = {path: _weight_shape(shapes, path) for path in lora.modules}
    missing = tuple(path for path, shape in found.items() if shape is None)
    reshaped = tuple(p for p, shape in found.items() if shape and not _fits(lora, p, shape))
    placed = tuple(path for path in found if path not in missing and path not in reshaped)
    _check_size(lora, shapes, [path for path in reshaped if _BLOCK.match(path)])
    _check_depth(lora, shapes, placed)
    notes = (*_kind_notes(lora, shapes, missing), *_missing_notes(lora, missing), *_shape_notes(lora, shapes, reshaped))
    return TransferReport(
        lora=name, placed=placed, missing=missing, reshaped=reshaped, notes=tuple(f"{name} {note}" for note in notes)
    )


def _fits(lora: Adapter, path: str, shape: tuple[int, int]) -> bool:
    module = lora.modules[path]
    return module.fits(shape) if isinstance(module, OtherModule) else module.shape == shape


def _weight_shape(shapes: Shapes, path: str) -> tuple[int, int] | None:
    """Rows and columns of a layer's weight, that of a convolution flattened; None if there is no such layer."""
    shape = shapes.get(f"{path}.weight")
    return None if shape is None else (shape[0], math.prod(shape[1:]))


def _check_size(lora: Adapter, shapes: Shapes, reshaped: Sequence[str]) -> None:
    if not reshaped:
        return
    path = reshaped[0]
    raise ConfigError(
        f"{Path(lora.path).name} is a LoRA for {_lora_name(lora)}, and the model is {_model_name(shapes)}: they are of "
        f"different size ({path} is {lora.modules[path].shape} in one and {_weight_shape(shapes, path)} in the "
        "other), and nothing of the LoRA can be used; choose the model that it was trained on."
    )


def _check_depth(lora: Adapter, shapes: Shapes, placed: Sequence[str]) -> None:
    """A LoRA that reaches deeper than the model belongs to another."""
    depth = _depth(shapes)
    too_deep = [path for path in lora.modules if (block := _BLOCK.match(path)) and int(block[1]) >= depth]
    if too_deep or not placed:
        belong = "belongs" if len(placed) == 1 else "belong"
        example = f", and there is no {too_deep[0]}" if too_deep else ""
        raise ConfigError(
            f"{Path(lora.path).name} has {counted(len(lora.modules), 'module')}, but only {len(placed)} of them {belong} to "
            f"this model: it is a LoRA for {_lora_name(lora)}, and the model is {_model_name(shapes)} with {depth} "
            f"blocks{example}; choose the model that the LoRA was trained on."
        )


def _kind_notes(lora: Adapter, shapes: Shapes, missing: Sequence[str]) -> list[str]:
    """The kinds differ, as far as the LoRA tells its own."""
    was, is_now = _lora_takes_images(lora), _takes_images(shapes)
    if was is None or was == is_now:
        return []
    kinds = {False: "text-to-video", True: "image-to-video"}
    architecture = f" ({lora.architecture})" if lora.architecture else ""
    whole = f"all {len(lora.modules)} modules have" if len(lora.modules) > 1 else "its one module has"
    text = f"was trained for {kinds[was]}{architecture}, and the model is {_model_name(shapes)}: "
    text += "it is used as far as it fits" if missing else f"{whole} a place in it"
    if is_now and any(_IMAGE.search(name.removesuffix(".weight")) for name in shapes):
        text += ", and the layers that read the start image (k_img, v_img, img_emb) stay as they were"
    return [text + "."]


def _missing_notes(lora: Adapter, missing: Sequence[str]) -> list[str]:
    if not missing:
        return []
    counts = Counter(_part(path) for path in missing)
    have = "it has" if len(missing) == 1 else "they have"
    text = f"has {counted(len(missing), 'module')} without a place in this model, of {len(lora.modules)}; {have} no effect: "
    text += ", ".join(f"{count} {part}" for part, count in counts.items())
    if all(_IMAGE.search(path) for path in missing):
        text += ". They read a start image, which this model does not take in that way"
    return [text + "."]


def _shape_notes(lora: Adapter, shapes: Shapes, reshaped: Sequence[str]) -> list[str]:
    return [
        f"has a module {path} of the shape {lora.modules[path].shape}, which is {_weight_shape(shapes, path)} in this "
        "model: it has no effect."
        for path in reshaped
    ]


def _part(path: str) -> str:
    """What a module is called when those of all blocks are counted together."""
    if path.startswith("img_emb."):
        return "img_emb"
    if path.startswith("vace_"):
        return "vace"
    return path.rpartition(".")[2] if _IMAGE.search(path) else path


def _takes_images(shapes: Shapes) -> bool:
    """Whether the model has input channels for given frames: I2V and FLF2V, not TI2V."""
    return identify(shapes).variant in ("i2v", "flf2v")


def _lora_takes_images(lora: Adapter) -> bool | None:
    """Whether it was trained on such a model; None if the file does not tell."""
    if any(_IMAGE.search(path) for path in lora.modules):
        return True
    return bool(_FROM_IMAGES.search(lora.architecture)) if lora.architecture else None


def _model_name(shapes: Shapes) -> str:
    width = shapes.get("patch_embedding.weight", (0,))[0]
    return f"{identify(shapes).label}{_size(width)}"


def _lora_name(lora: Adapter) -> str:
    widths = {module.shape[0] for path, module in lora.modules.items() if _TO_WIDTH.match(path)}
    size = _size(widths.pop()) if len(widths) == 1 else ""
    return f"{lora.architecture or 'a Wan model'}{size}"


def _size(width: int) -> str:
    name = f"{SIZES[width]}, " if width in SIZES else ""
    return f" ({name}width {width})"


def _depth(shapes: Shapes) -> int:
    return 1 + max((int(block[1]) for name in shapes if (block := _BLOCK.match(name))), default=-1)
