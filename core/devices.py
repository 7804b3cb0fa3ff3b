"""The device that a person names, checked before anything is put on it."""

import torch

from .errors import ConfigError
from .paths import shown

DEVICE_TYPES = ("cpu", "cuda", "mps", "xpu")


def resolve_device(name: str) -> torch.device:
    """`auto` is the first GPU, or the CPU where there is none. ConfigError for what is no device that can train here."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError, TypeError) as error:
        raise _unknown(name) from error
    if device.type not in DEVICE_TYPES:  # torch knows more: "meta" has no numbers, others are for libraries
        raise _unknown(name)
    if device.type != "cpu" and (device.index or 0) >= (count := _count(device.type)):
        what = {"cuda": "GPU(s)", "mps": "Apple GPU(s)", "xpu": "Intel GPU(s)"}[device.type]
        raise ConfigError(f"the device '{name}' is not there: this machine shows {count} {what}.")
    return device


def _count(kind: str) -> int:
    """How many devices of a kind torch can use on this machine."""
    if kind == "cuda":
        return torch.cuda.device_count()
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    return torch.xpu.device_count() if hasattr(torch, "xpu") and torch.xpu.is_available() else 0


def _unknown(name: str) -> ConfigError:
    return ConfigError(f"the device '{shown(name)}' is not known: use auto, cpu, cuda:0, cuda:1, ...")
