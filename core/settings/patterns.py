"""Rules that a person writes one a line, each a regular expression that is looked for in the name of a layer."""

import re
from dataclasses import dataclass

from ..errors import ConfigError
from ..paths import shown

_MOST_LINES, _MOST_LETTERS = 64, 500


@dataclass(frozen=True)
class RankRule:
    """The rank, and perhaps the alpha, of the layers in whose names `pattern` is found."""

    pattern: re.Pattern[str]
    rank: int
    alpha: float | None  # None: that of all layers; 0: the rank


def patterns_of(text: str, name: str) -> tuple[re.Pattern[str], ...]:
    """One pattern a line; empty lines do not count. ConfigError, with `name` of the option, for what is no pattern."""
    return tuple(_compiled(line, name) for line in _lines(text, name))


def rank_rules(text: str, name: str, most_rank: int) -> tuple[RankRule, ...]:
    """One rule a line, "PATTERN = RANK" or "PATTERN = RANK, ALPHA". ConfigError for what is none."""
    return tuple(_rule(line, name, most_rank) for line in _lines(text, name))


def _rule(line: str, name: str, most_rank: int) -> RankRule:
    pattern, _, numbers = line.rpartition("=")
    rank, _, alpha = (number.strip() for number in numbers.partition(","))
    is_rank = rank.isascii() and rank.isdigit() and 1 <= int(rank[:9]) <= most_rank
    found = _number(alpha)
    if not (pattern.strip() and is_rank and (not alpha or (found is not None and 0 <= found <= 1e6))):
        raise ConfigError(
            f"{name} has the line '{shown(line)}', which is no rule: write 'PATTERN = RANK' or 'PATTERN = RANK, ALPHA', such"
            f" as 'cross_attn = 8', with a rank of 1 to {most_rank}."
        )
    return RankRule(_compiled(pattern.strip(), name), int(rank), found)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _lines(text: str, name: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > _MOST_LINES or any(len(line) > _MOST_LETTERS for line in lines):
        raise ConfigError(
            f"{name} may have {_MOST_LINES} lines of {_MOST_LETTERS} letters: write fewer or shorter patterns."
        )
    return lines


def _compiled(pattern: str, name: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(
            f"{name} has the pattern '{shown(pattern)}', which is no regular expression ({error}): correct it, or write a"
            " part of a layer's name, such as 'self_attn'."
        ) from error
