"""Leaving blocks of a model out, for skip-layer guidance."""

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from ..errors import ConfigError
from ..wan.model import RunBlock, WanTransformer


def block_numbers(text: str, num_blocks: int) -> tuple[int, ...]:
    """Blocks named as "9, 10", counted from 0 as everywhere; ConfigError for one that a model of `num_blocks` has not."""
    found = tuple(sorted({int(number) for number in re.findall(r"\d+", text)}))
    if found and found[-1] >= num_blocks:
        raise ConfigError(
            f"preview_skip_layers names block {found[-1]}, but the model has the blocks 0 to {num_blocks - 1}: correct it."
        )
    return found


@contextmanager
def without_blocks(model: WanTransformer, blocks: Collection[int]) -> Iterator[None]:
    """Within it the model goes on with what came into each of these blocks, in its place."""
    run_block = model.run_block
    skipped = {id(model.blocks[index]) for index in blocks}
    model.run_block = partial(_run, run_block, skipped)
    try:
        yield
    finally:
        model.run_block = run_block


def _run(run_block: RunBlock, skipped: Collection[int], block: nn.Module, x: Tensor, *others: Tensor) -> Tensor:
    return x if id(block) in skipped else run_block(block, x, *others)
