"""The devices that a person names, checked before anything is put on them.

A run has one device, or several that train it together: `all`, or a list such as `cuda:0,cuda:1`.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch

from .errors import ConfigError
from .paths import shown

DEVICE_TYPES = ("cpu", "cuda", "mps", "xpu")
AUTO, ALL = "auto", "all"
_SEPARATORS = str.maketrans(";+", ",,")


def resolve_device(name: str) -> torch.device:
    """`auto` is the first GPU, or the CPU where there is none. ConfigError for what is no device that can train here."""
    if name == AUTO:
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
    if device.type == "cuda" and device.index is None:  # some functions of torch want a number
        return torch.device("cuda", 0)
    return device


def auto_devices() -> list[str]:
    """What `auto` may choose from: every GPU, or the CPU where there is none."""
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]


def device_list(name: str) -> list[str]:
    """The devices that train one run, as `name` lists them: `auto` as it stands, `all` as every GPU of this machine.

    "0, 1" and "cuda:0+cuda:1" mean ["cuda:0", "cuda:1"]; "cpu,cpu" means two processes on the CPU, ["cpu:0", "cpu:1"].
    ConfigError for a device that is not there or is named twice, and for devices of several kinds.
    """
    if name.strip() == ALL:
        return auto_devices()
    names = [_whole(word.strip()) for word in name.translate(_SEPARATORS).split(",") if word.strip()]
    if len(names) <= 1:
        resolve_device(names[0] if names else name)
        return names
    if set(names) == {"cpu"}:
        names = [f"cpu:{index}" for index in range(len(names))]
    given = ", ".join(names)
    if AUTO in names or ALL in names:
        raise ConfigError(f"the devices '{shown(given)}': {AUTO} and {ALL} stand alone, not in a list.")
    _check_several(given, names, [resolve_device(word) for word in names])
    return names


def device_name(names: Sequence[str]) -> str:
    """How a job names the devices that train it: as `device_list` reads it."""
    return ",".join(names)


def _whole(word: str) -> str:
    return f"cuda:{word}" if word.isdecimal() else word


def _check_several(given: str, names: list[str], devices: list[torch.device]) -> None:
    if len({device.type for device in devices}) > 1:
        raise ConfigError(f"the devices '{shown(given)}' are of several kinds: one run is trained on GPUs of one kind.")
    places = [(device.type, device.index or 0) for device in devices]
    twice = [word for index, word in enumerate(names) if places[index] in places[:index]]
    if twice:
        raise ConfigError(f"the devices '{shown(given)}' name {shown(twice[0])} twice: each GPU trains once in a run.")


def _count(kind: str) -> int:
    """How many devices of a kind torch can use on this machine."""
    if kind == "cuda":
        return torch.cuda.device_count()
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    return torch.xpu.device_count() if hasattr(torch, "xpu") and torch.xpu.is_available() else 0


def _unknown(name: str) -> ConfigError:
    return ConfigError(
        f"the device '{shown(name)}' is not known: use auto, all, cpu, cuda:0, or a list (cuda:0,cuda:1)."
    )


def gpu_uuid(device: torch.device) -> str:
    """Of a CUDA device, without "GPU-"; asking for it takes no memory there. "" where PyTorch does not tell."""
    return str(getattr(cast(Any, torch.cuda).get_device_properties(device), "uuid", ""))
