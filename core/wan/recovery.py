"""Files of AI-Toolkit's accuracy recovery adapters: a frozen LoRA for one expert, or one file for both."""

import re
from pathlib import Path
from typing import Literal

from torch import Tensor

from ..errors import ModelFileError
from .header import content_digest, read_header, read_in_order
from .keys import to_official

LoraPair = tuple[Tensor, Tensor]  # down [rank, in], up [out, rank]; the adapter adds up @ down to the weight

_EXPERTS = {"high": "transformer_1.", "low": "transformer_2."}
_KEY = re.compile(
    r"(?:diffusion_model\.|transformer\.)?(transformer_[12]\.)?(blocks\.[0-9]{1,6}\..+)\.lora_(A|B)\.weight"
)


def read_recovery_adapter(path: Path, expert: Literal["high", "low"] | None) -> dict[str, LoraPair]:
    """Factors in their stored dtype by the official name of the layer, of the `expert` where the file tells experts apart.

    AI-Toolkit loads them with alpha = rank, so that up @ down counts as it is (toolkit/util/quantize.py). Raises
    ModelFileError if the file is damaged, is no such adapter, or if only the expert could say which half is meant.
    """
    header = read_header(path)
    keys = {name: match for name in header.entries if (match := _KEY.fullmatch(name))}
    if not keys:
        raise ModelFileError(
            f"'{path}' is no accuracy recovery adapter for Wan: it has no weights such as "
            "'diffusion_model.transformer_1.blocks.0.attn1.to_q.lora_A.weight'; download it from "
            "huggingface.co/ostris/accuracy_recovery_adapters."
        )
    prefixes = {match[1] for match in keys.values()}
    if prefixes != {None} and expert is None:
        raise ModelFileError(
            f"'{path}' holds accuracy recovery adapters for the high and the low noise expert of Wan 2.2: say which "
            "expert the model is."
        )
    wanted = None if prefixes == {None} else _EXPERTS[expert or "high"]
    tensors = {name: (header, header.entries[name]) for name, match in keys.items() if match[1] == wanted}
    if not tensors:
        raise ModelFileError(f"'{path}' holds nothing for the {expert} noise expert: choose the file for this expert.")
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in read_in_order(tensors, tensors):
        part = parts.setdefault(to_official(keys[name][2]), {})
        if keys[name][3] in part:
            raise ModelFileError(f"'{path}' holds '{name}' under two names; download it again.")
        part[keys[name][3]] = value
    return {layer: _factors(path, layer, pair) for layer, pair in parts.items()}


def _factors(path: Path, layer: str, pair: dict[str, Tensor]) -> LoraPair:
    if len(pair) != 2:
        raise ModelFileError(f"'{path}' is incomplete: it has half of the factors of '{layer}'; download it again.")
    down, up = pair["A"], pair["B"]
    fits = down.ndim == up.ndim == 2 and down.shape[0] == up.shape[1] and 0 not in (*down.shape, *up.shape)
    if not fits or not (down.dtype.is_floating_point and up.dtype.is_floating_point):
        raise ModelFileError(
            f"'{path}' is damaged: the factors of '{layer}' do not fit together, {list(up.shape)} times {list(down.shape)} "
            f"({up.dtype}, {down.dtype}); download it again."
        )
    return down, up


def file_identity(path: Path) -> str:
    """Digest of the file's content. Raises ModelFileError if it cannot be read."""
    return content_digest(read_header(path))
