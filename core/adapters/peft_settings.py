"""What peft's settings say of a LoRA's strength where its file has no alpha."""

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import ModelFileError
from ..wan.limits import parse_json, read_json_file, shown
from .keys import module_names, official_path

METADATA = "lora_adapter_metadata"  # diffusers' name for them in a header
Settings = dict[str, dict[str, Any]]  # of each part of a pipeline ("transformer", "transformer_2"); "" of all

_MAX_ALPHA = 1e30  # a float32 holds it
_MOST_LETTERS, _MOST_REPEATS = 200, 4  # of a pattern: more of them could take hours on one name


def adapter_config(metadata: Mapping[str, str], where: str) -> Settings:
    """peft's settings, which diffusers keeps in the header and peft in a file beside it; {} where there are none."""
    text = metadata.get(METADATA)
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
    found: Settings = {}
    for key, value in config.items() if isinstance(config, dict) else ():
        part, _, name = key.rpartition(".")
        found.setdefault(part, {})[name] = value
    return found


def config_alpha(settings: Settings, part: str, path: str, rank: int) -> float:
    """Alpha where the file has no `.alpha`: peft's settings, else the rank, which means a scale of 1 as in the host.

    `part`: of the pipeline, as the tensor's key names it. ModelFileError for a pattern that can't be followed.
    """
    config = _of_part(settings, part)
    patterns = config.get("alpha_pattern")  # exceptions; the first that fits counts
    own = None
    if isinstance(patterns, dict):
        own = next((alpha for pattern, alpha in patterns.items() if _fits(pattern, path)), None)
    alpha = config.get("lora_alpha") if own is None else own
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        return float(rank)
    if abs(alpha) > _MAX_ALPHA:
        return math.inf  # which is refused
    # rank-stabilised LoRA scales by alpha / sqrt(r) (arXiv:2312.03732)
    return float(alpha) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)


def _of_part(settings: Settings, part: str) -> dict[str, Any]:
    """Those of the tensor's own part; where it names none, or one that has none, those of all or of the transformer."""
    for name in (part, "", "transformer"):
        if name in settings:
            return settings[name]
    return next(iter(settings.values())) if len(settings) == 1 else {}


def _fits(pattern: str, path: str) -> bool:
    """Whether peft takes `pattern` for the module at `path`: a regular expression for the whole name, or for its end.

    peft (0.21, utils/other.py, get_pattern_key) matches the name in the model it trained, which may be diffusers'.
    """
    found = official_path(pattern)
    if found is not None:  # a whole name, perhaps with a prefix
        return found[0] == path
    compiled = _compiled(pattern)
    return any(compiled.fullmatch(name) for name in module_names(path))


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    repeats = sum(pattern.count(letter) for letter in "*+{")
    try:
        if len(pattern) > _MOST_LETTERS or repeats > _MOST_REPEATS or re.search(r"\)[*+{]", pattern):
            raise ValueError("it is too long, or repeats too much")
        return re.compile(rf"(?:.*\.)?(?:{pattern})")
    except (re.error, ValueError, RecursionError, OverflowError) as error:
        raise ModelFileError(
            f"the adapter settings of the LoRA have the alpha_pattern '{shown(pattern)}', which can't be followed ({error}):"
            " its strength is unknown; export the file with alphas."
        ) from error
