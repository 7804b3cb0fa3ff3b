"""What no setting of a job exceeds: a job may come from a file that somebody else wrote.

The bounds are far beyond what makes sense, and near enough that no number hangs the machine or overflows on the way.
"""

import math
import re
from collections.abc import Iterable

from .errors import ConfigError
from .paths import MAX_PATH, shown

MAX_TEXT = 100_000  # characters of a caption
MAX_WORD = 1_000  # of a name, a key, a trigger word
MAX_SAMPLES = 1_000_000  # of an epoch, each as often as it repeats: their order is drawn anew for every epoch
MAX_SIDE = 4096  # latents on a side: 32768 pixels
MAX_TOKENS = 2**22  # of a sample
HALF_LETTER = re.compile("[\ud800-\udfff]")  # half of a surrogate pair, as JSON can hold it: no encoder takes it


def check_number(value: float, name: str, low: float, high: float) -> None:
    """ConfigError unless `value` is finite and within bounds."""
    is_finite = isinstance(value, int) or math.isfinite(value)  # of an integer that is too large for a float, too
    if not (is_finite and low <= value <= high):
        raise ConfigError(
            f"{name} is {shown_value(value)}: it must lie between {shown_number(low)} and {shown_number(high)}."
        )


def check_texts(
    where: str,
    *,
    words: Iterable[str] = (),
    paths: Iterable[str] = (),
    captions: Iterable[str] = (),
    has_halves: bool = False,
) -> None:
    """ConfigError for text that is longer than text of its kind is, and for words and captions with halves of letters.

    `has_halves`: these are let through, as in a job of before, whose text is encoded already.
    """
    for kind, texts, most in (
        ("name", words, MAX_WORD),
        ("path", paths, MAX_PATH),
        ("caption", captions, MAX_TEXT),
    ):
        for text in texts:
            if len(text) > most:
                raise ConfigError(f"{where} holds a {kind} of {len(text)} characters: {most} are the most.")
            if kind != "path" and not has_halves and HALF_LETTER.search(text):
                raise ConfigError(
                    f"{where} holds the {kind} '{shown(text, 60)}' with halves of letters (\\ud800 to \\udfff), which are no "
                    "text: write it anew."
                )


def check_shape(shape: tuple[int, int, int, int], name: str) -> None:
    """ConfigError for latents [C, F, H, W] of a size that no model takes."""
    channels, frames, height, width = shape
    is_sane = 1 <= channels <= 1024 and 1 <= frames <= MAX_SIDE and min(height, width) >= 2
    if not (is_sane and max(height, width) <= MAX_SIDE and frames * height * width <= 4 * MAX_TOKENS):
        raise ConfigError(f"{name} has latents of the shape {shown_value(list(shape))}, which no model takes.")


def check_amount(repeats: Iterable[int], what: str) -> None:
    """ConfigError if an epoch of samples, each of which repeats so often, is too long to be drawn."""
    total = sum(repeats)
    if total > MAX_SAMPLES:
        raise ConfigError(
            f"{what} comes to {shown_value(total)} samples an epoch, and {MAX_SAMPLES} are the most: lower repeats."
        )


def shown_number(value: float) -> str:
    """A bound for a sentence."""
    return shown_value(value) if isinstance(value, int) else f"{value:g}"


def shown_value(value: object) -> str:
    """A value for a sentence, and not longer than one."""
    try:
        text = str(value)
    except ValueError:  # an integer of more digits than Python prints
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."
