"""Captions of similar length through a text encoder together. Shapes: S tokens, D width."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

from ..shortage import is_out_of_memory, try_twice

Token = TypeVar("Token")

TOKENS_AT_ONCE = 4096  # padding counted: eight of the longest captions


def encode_in_batches(
    rows: Sequence[Sequence[Token]],
    encode: Callable[[Sequence[Sequence[Token]]], list[Tensor]],
    free: Callable[[], None],
) -> list[Tensor]:
    """An embedding [S, D] for each row of tokens, in their order, by `encode` of rows of similar length.

    Where memory runs out, `free` is called and half as many go at once; the error comes out when one is too many.
    """
    contexts: dict[int, Tensor] = {}
    for batch in group_by_length([len(row) for row in rows]):
        contexts |= zip(batch, _encode_or_halve([rows[index] for index in batch], encode, free), strict=True)
    return [contexts[index] for index in range(len(rows))]


def group_by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of rows that go together, the longest first: padded to their longest, no more than TOKENS_AT_ONCE tokens."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= TOKENS_AT_ONCE:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _encode_or_halve(
    rows: Sequence[Sequence[Token]],
    encode: Callable[[Sequence[Sequence[Token]]], list[Tensor]],
    free: Callable[[], None],
) -> list[Tensor]:
    if len(rows) == 1:
        return try_twice(lambda: encode(rows), free)
    try:
        return encode(rows)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    free()
    middle = len(rows) // 2
    return [*_encode_or_halve(rows[:middle], encode, free), *_encode_or_halve(rows[middle:], encode, free)]
