"""What a device can do, measured once for a card, its driver and the packages that matter, and kept for the next start.

Free memory is never kept: it is asked for anew.
"""

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..disk import write_atomic
from ..errors import ConfigError, RunError
from ..memory.attention import Decided, Shape, choose_attention, load_attention
from ..torch_compat import cuda_driver_version
from .card import RATES, Card, attention_rate, card_of, measure_rates

_PACKAGES = ("triton", "flash-attn-4", "flash_attn_3", "flash_attn")
_LEAST_CLASS, _MOST_CLASS = 1024, 8192  # tokens; beyond, which attention is fastest does not change


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A device as it is now, and the attention that is fastest on it; None: as PyTorch chooses, or to be tried later."""

    card: Card
    attention: Decided | None = None
    is_known: bool = True  # nothing had to be measured


@dataclass(frozen=True)
class Kept:
    """What the file holds of a device. Rates by their names in `Card`; attention by kind and class of shape."""

    rates: Mapping[str, float] = field(default_factory=dict)
    attention_rates: Mapping[str, float] = field(default_factory=dict)  # by its name
    attention: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    overhead: int = 0


def probe(
    device: torch.device, name: str, shape: Shape, folder: Path, *, first: Callable[[], None] = lambda: None
) -> Probe:
    """The device with the kind of attention `name` for clips of `shape`, from `folder` as far as it is known there.

    What has to be measured takes a second or two, and is kept; `first` is called before, to end what would disturb it.
    ConfigError is left to whoever uses the attention.
    """
    path, version = _path(folder, device), version_of(device)
    kept = known = read_kept(path, version)
    if not _is_complete(kept, name, shape):
        first()
    if not kept.rates:
        kept = replace(kept, rates=measure_rates(device))
    decided, kept = _decide(name, shape, kept)
    kind = decided.name if decided else ""
    if kind not in kept.attention_rates:
        rate = attention_rate(load_attention(kind, device), device)
        kept = replace(kept, attention_rates={**kept.attention_rates, kind: rate})
    if kept != known:
        with suppress(RunError):  # it is measured again then
            write_kept(path, version, kept)
    card = card_of(device, {**kept.rates, "attention": kept.attention_rates[kind]})
    return Probe(card=replace(card, overhead=kept.overhead), attention=decided, is_known=kept == known)


def keep_overhead(folder: Path, device: torch.device, overhead: int) -> None:
    """The most that a process was seen to take beside its tensors. RunError if the folder cannot be written."""
    path, version = _path(folder, device), version_of(device)
    kept = read_kept(path, version)
    if overhead > kept.overhead:
        write_kept(path, version, replace(kept, overhead=overhead))


def read_kept(path: Path, version: str) -> Kept:
    """What `path` holds for this `version`; nothing if there is nothing, or damage."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["version"] != version:
            return Kept()
        rates = {name: float(found["rates"][name]) for name in RATES}
        of_kinds = {str(name): float(rate) for name, rate in found["attention_rates"].items()}
        attention = {str(key): asdict(Decided(**value)) for key, value in found["attention"].items()}
        return Kept(rates, of_kinds, attention, int(found["overhead"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Kept()


def write_kept(path: Path, version: str, kept: Kept) -> None:
    """RunError if the folder cannot be written."""
    content = json.dumps({"version": version, **asdict(kept)}, indent=1).encode()
    write_atomic(path, lambda file: file.write(content))


def version_of(device: torch.device) -> str:
    """All that a measurement depends on, in words: card, driver, PyTorch and its libraries, packages with kernels."""
    if device.type != "cuda":
        return f"{device.type}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    parts = [torch.cuda.get_device_name(device), f"driver {cuda_driver_version()}", f"torch {torch.__version__}"]
    parts += [f"cuda {torch.version.cuda}", f"cudnn {torch.backends.cudnn.version()}"]
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            parts.append(f"{name} {metadata.version(name)}")
    return ", ".join(parts)


def _is_complete(kept: Kept, name: str, shape: Shape) -> bool:
    """Whether nothing has to be measured."""
    kind = ""
    if name != "default" and shape.device.type == "cuda":
        kind = kept.attention.get(_shape_class(name, shape), {}).get("name")
    return bool(kept.rates) and kind in kept.attention_rates


def _decide(name: str, shape: Shape, kept: Kept) -> tuple[Decided | None, Kept]:
    if name == "default" or shape.device.type != "cuda":
        return None, kept
    key = _shape_class(name, shape)
    if key in kept.attention:
        return Decided(**kept.attention[key]), kept
    try:
        decided = Decided(choose_attention(name, shape).name)
    except ConfigError:
        return None, kept
    return decided, replace(kept, attention={**kept.attention, key: asdict(decided)})


def _shape_class(name: str, shape: Shape) -> str:
    tokens = _LEAST_CLASS
    while tokens < min(shape.tokens, _MOST_CLASS):
        tokens *= 2
    dtype = str(shape.dtype).removeprefix("torch.")
    return f"{name}: {tokens} tokens, {shape.num_heads} heads of {shape.head_dim}, {dtype}"


def _path(folder: Path, device: torch.device) -> Path:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return folder / f"card-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
