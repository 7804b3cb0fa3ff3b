"""Which expert of Wan 2.2 a LoRA is for, by what its file says: the tensors of both are alike."""

import re
from collections.abc import Mapping
from pathlib import Path

from ..facts import EXPERTS, Expert

TRAINED_THROUGH = "wantrain.experts"  # of a file's metadata: the experts, where it is one LoRA for several

# What follows "high" or "low" in the name of a subject, a look or a setting.
_NO_NOISE = (
    "poly|res|key|light|angle|fi(?![a-z])|contrast|quality|detail|definition|fps|v?ram|mem|rank|dim|alpha|step|lr|learn|motion|speed"
    "|heel|waist|cut|rise|neck|pony|bun|tide|school|fashion|end|tech|fantasy|kick|jump|five|sky|tone|color|colour|saturation|shot|dose"
)


def expert_of_metadata(metadata: Mapping[str, str]) -> Expert | None:
    """Expert by `modelspec.timestep_range`, whose boundary is 875 (T2V) or 900 (I2V); None if it spans both."""
    match = re.fullmatch(r"\s*([0-9]{1,9})\s*,\s*([0-9]{1,9})\s*", metadata.get("modelspec.timestep_range", ""))
    if match is None:
        return None
    start, stop = int(match[1]), int(match[2])
    if start >= 800:
        return "high"
    return "low" if stop <= 950 else None


def is_for_both(metadata: Mapping[str, str]) -> bool:
    """Whether the file says that it is one LoRA, trained through both experts."""
    return metadata.get(TRAINED_THROUGH) == ",".join(EXPERTS)


def expert_of_name(path: str | Path) -> Expert | None:
    """Expert by file name ("x_high_noise", "WAN2.2-LowNoise_x", "x-low"); None if it names neither or both.

    "high" and "low" followed by "noise" say most. Alone they count where no word follows that they belong to: low-poly.
    """
    name = Path(path).stem.lower()
    for pattern in (r"(high|low)[ _.-]?noise", rf"(?<![a-z])(high|low)(?![a-z])(?![ _.-]?(?:{_NO_NOISE}))"):
        named = set(re.findall(pattern, name))
        if named:
            return None if len(named) > 1 else "high" if "high" in named else "low"
    return None
