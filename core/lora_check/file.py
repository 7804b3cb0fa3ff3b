"""What a LoRA's own file says and holds: layers, ranks, strengths, zeros, numbers that are none."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters.formats import LoraModule
from ..adapters.named_expert import is_for_both
from ..adapters.other_files import OtherModule
from ..adapters.transfer import SIZES, Adapter
from ..words import some
from .findings import EMPTY, Finding, Weight

_TINY = 1e-6  # root mean square of a change; that of Wan's weights is 0.01 to 0.05
_TO_WIDTH = re.compile(r"blocks\.\d+\.(?:(?:self|cross)_attn\.[qo]|ffn\.2)$")  # their output is as wide as the model
_IMAGE = re.compile(r"\.cross_attn\.[kv]_img$|^img_emb\.")


@dataclass(frozen=True)
class Layer:
    """The change of one layer."""

    path: str
    rank: int
    scale: float  # alpha / rank; 1 of OFT, whose alpha is no strength
    rms: float | None  # root mean square of the change; None: not finite, or it depends on the base

    @property
    def block(self) -> str:
        """What it is counted with: "block 3", or its own name outside of the blocks."""
        found = re.match(r"(?:vace_)?blocks\.(\d+)\.", self.path)
        return f"block {found[1]}" if found else self.path


def change_norm(module: LoraModule) -> float:
    """Frobenius norm of (alpha / r) up @ down, from the factors' [r, r] products; nan where one is not finite."""
    up, down = module.up.double(), module.down.double()
    squared = ((up.T @ up) * (down @ down.T)).sum()
    return abs(module.scale) * float(squared.clamp(min=0).sqrt())


def layers_of(file: Adapter) -> list[Layer]:
    """All layers, in the model's order."""
    return [Layer(path, module.rank, _scale(module), _rms(module)) for path, module in file.modules.items()]


def _scale(module: LoraModule | OtherModule) -> float:
    is_oft = isinstance(module, OtherModule) and module.kind == "oft"
    return 1.0 if is_oft else module.alpha / module.rank


def base_of(file: Adapter) -> str:
    """What it was made for, as far as metadata and sizes tell: "wan2.2-t2v-a14b (14B, width 5120), high noise expert"."""
    widths = {module.shape[0] for path, module in file.modules.items() if _TO_WIDTH.match(path)}
    width = widths.pop() if len(widths) == 1 else 0
    name = file.architecture or ("a Wan 2.1 image-to-video model" if has_image_layers(file) else "a Wan model")
    size = f" ({SIZES[width]}, width {width})" if width in SIZES else f" (width {width})" if width else ""
    expert = f", {file.expert} noise expert" if file.expert else ", both experts" if is_for_both(file.metadata) else ""
    return f"{name}{size}{expert}"


def has_image_layers(file: Adapter) -> bool:
    """Whether it has layers that Wan 2.1's image-to-video models alone have."""
    return any(_IMAGE.search(path) for path in file.modules)


def size_of(file: Adapter) -> str:
    """ "1.3B", "5B" or "14B"; "" for another size."""
    widths = {module.shape[0] for path, module in file.modules.items() if _TO_WIDTH.match(path)}
    return SIZES.get(widths.pop(), "") if len(widths) == 1 else ""


def check_file(file: Adapter, layers: Sequence[Layer]) -> list[Finding]:
    """What is wrong with the file by itself."""
    found = [*_bad_numbers(file), *_zeros(layers)]
    for note in file.notes:
        weight = Weight.NO_EFFECT if "no effect" in note else Weight.WRONG
        sentence, _, remedy = note.partition("; ")
        found.append(
            Finding(
                weight,
                f"{sentence}.",
                f"{remedy[:1].upper()}{remedy[1:].rstrip('.')}: any change or merge of the LoRA does that.",
            )
        )
    return found


def _bad_numbers(file: Adapter) -> list[Finding]:
    bad = [path for path, module in file.modules.items() if not all(bool(t.isfinite().all()) for t in _tensors(module))]
    if not bad:
        return []
    return [
        Finding(
            Weight.WRONG,
            f"{some(len(bad), len(file.modules), 'layer', 'holds', 'hold')} numbers that are not finite (NaN or infinite), "
            f"such as {bad[0]}: videos become black or noise.",
            "Take an earlier checkpoint, and train with a lower learning rate.",
        )
    ]


def _zeros(layers: Sequence[Layer]) -> list[Finding]:
    known = [layer for layer in layers if layer.rms is not None]
    zero = [layer for layer in known if layer.rms == 0]
    if known and len(zero) == len(known):
        is_alpha = all(layer.scale == 0 for layer in zero)
        if is_alpha:
            remedy = "Write the file again where it was made, with the alpha that it was trained with."
            return [Finding(Weight.NO_EFFECT, "The LoRA changes nothing: alpha is 0 in every layer.", remedy, EMPTY)]
        return [
            Finding(
                Weight.NO_EFFECT,
                "The LoRA changes nothing: a matrix of every layer is zero.",
                "It was saved before the first step, or its average is too young: take a later checkpoint.",
                EMPTY,
            )
        ]
    tiny = [layer for layer in known if layer.rms is not None and layer.rms < _TINY]
    if known and len(tiny) == len(known):
        most = max(layer.rms or 0.0 for layer in known)
        return [
            Finding(
                Weight.NO_EFFECT,
                f"The changes of all layers are tiny (at most {most:.1e}; the weights are about 0.03).",
                "Train longer, or with a higher learning rate or alpha.",
                EMPTY,
            )
        ]
    if zero:
        sentence = f"{some(len(zero), len(known), 'layer', 'is', 'are')} zero, the first is {zero[0].path}."
        return [Finding(Weight.HINT, sentence, "They have no effect: they were not trained, or were left out.")]
    return []


def _tensors(module: LoraModule | OtherModule) -> list[Tensor]:
    return [module.up, module.down] if isinstance(module, LoraModule) else list(module.parts.values())


def _rms(module: LoraModule | OtherModule) -> float | None:
    if isinstance(module, LoraModule):
        norm = change_norm(module)
    elif module.kind == "oft":  # which turns the weight by these angles
        return None if bool(module.parts["oft_blocks"].any()) else 0.0
    elif module.kind == "dora":
        return None
    else:
        norm = float(module.delta(torch.empty(0)).norm())
    out, width = module.shape
    rms = norm / (out * width) ** 0.5
    return rms if torch.tensor(rms).isfinite() else None
