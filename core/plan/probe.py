"""What a device can do, measured once for a card, its driver and the packages that matter, and kept for the next start.

Free memory is never kept: it is asked for anew.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path

import torch

from ..errors import ConfigError, RunError
from ..memory.attention import ANY_ORDER, AttentionShape, choose_attention, load_attention
from ..memory.deterministic import is_deterministic
from ..torch_compat import cuda_driver_version
from .card import RATES, Card, attention_rate, card_of, measure_rates
from .kept import read_kept, write_kept

_PACKAGES = ("triton", "triton-windows", "flash-attn-4", "flash_attn_3", "flash_attn")
_LEAST_CLASS, _MOST_CLASS = 1024, 8192  # tokens; beyond, which attention is fastest does not change


@dataclass(frozen=True, kw_only=True)
class DeviceProbe:
    """A device as it is now."""

    card: Card
    is_known: bool = True  # nothing had to be measured


@dataclass(frozen=True)
class Remembered:
    """What the file holds of a device. Rates by their names in `Card`; attention by kind and class of shape."""

    rates: Mapping[str, float] = field(default_factory=dict[str, float])
    attention_rates: Mapping[str, float] = field(default_factory=dict[str, float])  # by its name
    attention: Mapping[str, str] = field(default_factory=dict[str, str])  # the kind that is fastest, by class of shape
    overhead: int = 0


def probe(device: torch.device, kind: str, folder: Path, *, first: Callable[[], None] = lambda: None) -> DeviceProbe:
    """The device with attention of this `kind` ("": PyTorch's own), from `folder` as far as it is known there.

    What has to be measured takes a second or two, and is kept; `first` is called before, to end what would disturb it.
    """
    path, version = device_path(folder, device), version_of(device)
    now = known = read_remembered(path, version)
    name = f"{kind}, deterministic" if is_deterministic() else kind  # which takes longer
    if not known.rates or name not in known.attention_rates:
        first()
    if not now.rates:
        now = replace(now, rates=measure_rates(device))
    if name not in now.attention_rates:
        rate = attention_rate(load_attention(kind, device), device)
        now = replace(now, attention_rates={**now.attention_rates, name: rate})
    if now != known:
        with suppress(RunError):  # it is measured again then
            write_remembered(path, version, now)
    card = card_of(device, {**now.rates, "attention": now.attention_rates[name]})
    return DeviceProbe(card=replace(card, overhead=now.overhead), is_known=now == known)


def choose_kind(
    name: str,
    shape: AttentionShape,
    folder: Path | None,
    *,
    compiled: bool = False,
    same_bits: bool = False,
    first: Callable[[], None] = lambda: None,
) -> tuple[str, bool]:
    """The kind of attention that the option `name` comes to for clips of `shape`, and whether it was known from `folder`.

    "" is PyTorch's own. `compiled`: torch.compile has to take it. `same_bits`: it is one that can give the same bits each
    time. What has to be tried takes some seconds, and is kept; `first` as in `probe`. ConfigError if it can't be had.
    """
    if name == "default" or (name == "auto" and shape.device.type != "cuda"):
        return "", True
    path, version = folder and device_path(folder, shape.device), version_of(shape.device)
    known = read_remembered(path, version) if path else Remembered()
    key = _shape_class(name, shape, compiled=compiled) + _order(same_bits)
    if key in known.attention and _is_there(known.attention[key], shape.device):
        return known.attention[key], True
    first()
    kind = choose_attention(name, shape, compiled=compiled, same_bits=same_bits).name
    if path:
        with suppress(RunError):  # it is tried again then
            write_remembered(path, version, replace(known, attention={**known.attention, key: kind}))
    return kind, False


def keep_overhead(folder: Path, device: torch.device, overhead: int) -> None:
    """The most that a process was seen to take beside its tensors. RunError if the folder cannot be written."""
    path, version = device_path(folder, device), version_of(device)
    known = read_remembered(path, version)
    if overhead > known.overhead:
        write_remembered(path, version, replace(known, overhead=overhead))


def read_remembered(path: Path, version: str) -> Remembered:
    """What `path` holds for this `version`; nothing if there is nothing, or damage."""
    try:
        found = read_kept(path, version)
        rates = {name: float(found["rates"][name]) for name in RATES} if found["rates"] else {}
        of_kinds = {str(name): float(rate) for name, rate in found["attention_rates"].items()}
        attention = {str(key): str(value["name"]) for key, value in found["attention"].items()}
        return Remembered(rates, of_kinds, attention, int(found["overhead"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return Remembered()


def write_remembered(path: Path, version: str, known: Remembered) -> None:
    """RunError if the folder cannot be written."""
    attention = {key: {"name": kind} for key, kind in known.attention.items()}
    write_kept(path, version, {**asdict(known), "attention": attention})


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


def _is_there(kind: str, device: torch.device) -> bool:
    """Whether it can still be loaded: its package may have gone since."""
    try:
        load_attention(kind, device)
    except (ConfigError, ImportError):
        return False
    return True


def _shape_class(name: str, shape: AttentionShape, *, compiled: bool) -> str:
    tokens = _LEAST_CLASS
    while tokens < min(shape.tokens, _MOST_CLASS):
        tokens *= 2
    dtype = str(shape.dtype).removeprefix("torch.")
    how = ", compiled" if compiled else ""
    return f"{name}: {tokens} tokens, {shape.num_heads} heads of {shape.head_dim}, {dtype}{how}"


def _order(same_bits: bool) -> str:
    """What makes a choice another one. In a process that does not compute so itself, as the host, the bits are not tried."""
    if not same_bits:
        return ""
    return ", deterministic" if is_deterministic() else f", but for {' and '.join(ANY_ORDER)}"


def device_path(folder: Path, device: torch.device) -> Path:
    """Where what is measured of a kind of device is kept."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return folder / f"card-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
