"""What no setting of a job exceeds: a job may come from a file that somebody else wrote.

The bounds are far beyond what makes sense, and near enough that no number hangs the machine or overflows on the way.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from .errors import ConfigError
from .paths import MAX_PATH

MAX_TEXT = 100_000  # characters of a caption
MAX_WORD = 1_000  # of a name, a key, a trigger word
MAX_SAMPLES = 1_000_000  # of an epoch, each as often as it repeats: their order is drawn anew for every epoch
MAX_SIDE = 4096  # latents on a side: 32768 pixels
MAX_TOKENS = 2**22  # of a sample
_LARGE = 10**9

# The lowest and the highest value by group and field; numbers that are not here lie between 0 and _LARGE.
_BOUNDS: dict[str, tuple[float, float]] = {
    "adapter.rank": (1, 4096),
    "adapter.alpha": (1e-6, 1e6),
    "timesteps.shift": (1e-4, 1e4),
    "timesteps.sigmoid_scale": (1e-4, 1e4),
    "timesteps.strata": (1, 10_000),
    "optimizer.weight_decay": (0, 1000),
    "optimizer.beta1": (0, 1 - 1e-9),
    "optimizer.beta2": (0, 1 - 1e-9),
    "optimizer.eps": (1e-30, 1),
    "schedule.power": (1e-4, 1000),
    "loop.steps": (1, 100_000_000),
    "loop.batch_size": (1, 4096),
    "loop.gradient_accumulation": (1, 100_000),
    "loop.seed": (-(2**63), 2**64 - 1),
    "memory.keep_attention": (0, 10_000),
    "memory.keep_linears": (0, 10_000),
    "memory.streamed_blocks": (0, 10_000),
    "memory.mapped_blocks": (0, 10_000),
    "memory.ffn_pieces": (1, 1024),
    "memory.budget_gb": (0, 1e6),
    "previews.cfg": (0, 1000),
    "previews.shift": (1e-4, 1e4),
}


def check_options(options: Any, group: str) -> None:
    """ConfigError, by name, for a number of this group of settings that is not finite or out of bounds."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            name = f"{group}.{field.name}"
            check_number(value, name, *_BOUNDS.get(name, (0, _LARGE)))


def check_number(value: float, name: str, low: float, high: float) -> None:
    """ConfigError unless `value` is finite and within bounds."""
    is_finite = isinstance(value, int) or math.isfinite(value)  # of an integer that is too large for a float, too
    if not (is_finite and low <= value <= high):
        raise ConfigError(f"{name} is {_shown(value)}: it must lie between {_bound(low)} and {_bound(high)}.")


def check_texts(
    where: str, *, words: Iterable[str] = (), paths: Iterable[str] = (), captions: Iterable[str] = ()
) -> None:
    """ConfigError for text that is longer than text of its kind is."""
    for kind, texts, most in (
        ("name", words, MAX_WORD),
        ("path", paths, MAX_PATH),
        ("caption", captions, MAX_TEXT),
    ):
        for text in texts:
            if len(text) > most:
                raise ConfigError(f"{where} holds a {kind} of {len(text)} characters: {most} are the most.")


def check_shape(shape: tuple[int, int, int, int], name: str) -> None:
    """ConfigError for latents [C, F, H, W] of a size that no model takes."""
    channels, frames, height, width = shape
    is_sane = 1 <= channels <= 1024 and 1 <= frames <= MAX_SIDE and min(height, width) >= 2
    if not (is_sane and max(height, width) <= MAX_SIDE and frames * height * width <= 4 * MAX_TOKENS):
        raise ConfigError(f"{name} has latents of the shape {_shown(list(shape))}, which no model takes.")


def check_amount(repeats: Iterable[int], what: str) -> None:
    """ConfigError if an epoch of samples, each of which repeats so often, is too long to be drawn."""
    total = sum(repeats)
    if total > MAX_SAMPLES:
        raise ConfigError(
            f"{what} comes to {_shown(total)} samples an epoch, and {MAX_SAMPLES} are the most: lower repeats."
        )


def _bound(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _shown(value: object) -> str:
    try:
        text = str(value)
    except ValueError:  # an integer of more digits than Python prints
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."
