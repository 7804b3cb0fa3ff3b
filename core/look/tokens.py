"""How many tokens a caption has for umT5, and where the limit cuts it."""

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any, Protocol

from ..facts import TEXT_TOKENS

# Where no tokenizer is at hand: umT5's pieces are about 4 letters of English, and 1.5 of Chinese, Japanese or Korean.
_LETTERS_PER_TOKEN, _WIDE_PER_TOKEN = 4.0, 1.5
_WIDE_FROM = 0x2E80  # the first block of East Asian signs


class Tokenizer(Protocol):
    """What is used of a sentencepiece processor."""

    def encode(self, text: str, /) -> Any:
        """The ids of a text, without the end token."""
        ...

    def decode(self, ids: list[int], /) -> Any:
        """The text of ids."""
        ...


@dataclass(frozen=True, kw_only=True)
class Counted:
    """The length of a caption for the text encoder."""

    num_tokens: int  # with the end token, before the cut
    cut_at: int | None = None  # the first letter that is cut off; None: the whole caption is used
    is_estimate: bool = False

    @property
    def is_too_long(self) -> bool:
        """Whether a part of the caption is not used."""
        return self.num_tokens > TEXT_TOKENS


def count_tokens(caption: str, tokenizer: Tokenizer | None) -> Counted:
    """The tokens of a caption; without a tokenizer an estimate from its letters, which says so."""
    if tokenizer is None:
        return _estimate(caption)
    ids = tokenizer.encode(_as_encoded(caption))
    if len(ids) + 1 <= TEXT_TOKENS:
        return Counted(num_tokens=len(ids) + 1)
    return Counted(num_tokens=len(ids) + 1, cut_at=_cut_at(caption, list(ids), tokenizer))


def _as_encoded(caption: str) -> str:
    """The caption as both text encoders put it to the tokenizer: no embeddings, no escaped brackets."""
    return caption.replace("embedding:", "embedding :").replace("\\)", ")").replace("\\(", "(")


def _cut_at(caption: str, ids: list[int], tokenizer: Tokenizer) -> int:
    """The letter of the caption at which its 511 kept tokens end (the last of 512 is the end token)."""
    kept, text = tokenizer.decode(ids[: TEXT_TOKENS - 1]), _as_encoded(caption)
    if not text.startswith(kept):  # the tokenizer normalised letters: look for the longest start that fits
        limit = TEXT_TOKENS - 1
        length = bisect_left(range(len(text)), limit + 1, key=lambda n: len(tokenizer.encode(text[: n + 1])))
    else:
        length = len(kept)
    return bisect_left(range(len(caption) + 1), length, key=lambda n: len(_as_encoded(caption[:n])))


def _estimate(caption: str) -> Counted:
    costs = [1 / _WIDE_PER_TOKEN if ord(letter) >= _WIDE_FROM else 1 / _LETTERS_PER_TOKEN for letter in caption]
    total, cut_at = 1.0, None
    for position, cost in enumerate(costs):
        total += cost
        if cut_at is None and total > TEXT_TOKENS:
            cut_at = position
    return Counted(num_tokens=round(total), cut_at=cut_at if round(total) > TEXT_TOKENS else None, is_estimate=True)
