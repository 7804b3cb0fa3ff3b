"""What peft's settings say of a LoRA's strength where its file has no alpha."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from ..errors import ModelFileError
from ..wan.limits import parse_json, read_json_file, shown
from .keys import module_names, official_path

_MAX_ALPHA = 1e30  # a float32 holds it


def adapter_config(metadata: Mapping[str, str], where: str) -> dict[str, Any]:
    """peft's settings, which diffusers keeps in the header and peft in a file beside it; {} where there are none."""
    text = metadata.get("lora_adapter_metadata")
    beside = Path(where).parent / "adapter_config.json"
    try:
        if text is not None:
            config = parse_json(text)
        elif Path(where).name == "adapter_model.safetensors" and beside.is_file():
            config = read_json_file(beside)
        else:
            return {}
    except (ValueError, OSError) as error:
        raise ModelFileError(
            f"{where} has adapter settings that are not JSON ({shown(str(error))}): without them its strength is unknown."
        ) from error
    return {key.rsplit(".", 1)[-1]: value for key, value in config.items()} if isinstance(config, dict) else {}


def config_alpha(config: Mapping[str, Any], path: str, rank: int) -> float:
    """Alpha where the file has no `.alpha`: peft's settings, else the rank, which means a scale of 1 as in the host."""
    patterns = config.get("alpha_pattern")  # exceptions by the end of a module's name, the first that fits
    own = (
        next((alpha for name, alpha in patterns.items() if _ends_with(path, name)), None)
        if _is_table(patterns)
        else None
    )
    alpha = config.get("lora_alpha") if own is None else own
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        return float(rank)
    if abs(alpha) > _MAX_ALPHA:
        return math.inf  # which is refused
    # rank-stabilised LoRA scales by alpha / sqrt(r) (arXiv:2312.03732)
    return float(alpha) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)


def _is_table(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _ends_with(path: str, pattern: str) -> bool:
    """Whether peft would take `pattern`, the last parts of a name in any dialect, for the module at `path`."""
    found = official_path(pattern)
    return (
        found[0] == path
        if found
        else f".{module_names(path)[1]}".endswith(f".{pattern}") or path.endswith(f".{pattern}")
    )
