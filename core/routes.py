"""Routes of tokens past blocks, as text and as numbers: TREAD (Krause et al., 2025, arXiv:2501.04765).

Legend: F latent frames, A tokens of a frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .errors import ConfigError
from .paths import shown

EXAMPLE = "2 to -2: 0.5"
MAX_ROUTES = 64
_MAX_LENGTH = 64 * MAX_ROUTES


@dataclass(frozen=True)
class Route:
    """From block `first` to block `last`, both included, a share of the video's tokens is left out.

    Blocks count from 0; a negative number counts from the end, -1 is the last.
    """

    first: int
    last: int
    left_out: float

    def num_kept(self, frames: int, frame_tokens: int, *, by_frame: bool) -> int:
        """Tokens of a clip that pass its blocks; `by_frame`: of each frame as many.

        S - round(S r), as SimpleTuner has it (simpletuner/helpers/training/tread.py, bc8e6ab), and at least one.
        """
        groups, tokens = (frames, frame_tokens) if by_frame else (1, frames * frame_tokens)
        return groups * max(1, tokens - round(tokens * self.left_out))


def read_routes(text: str) -> tuple[Route, ...]:
    """Of "2 to -2: 0.5", or several of them with commas between; "" has none. ConfigError for what is no such text."""
    if len(text) > _MAX_LENGTH or text.count(",") >= MAX_ROUTES:
        raise ConfigError(f"tread_routes has more than {MAX_ROUTES} routes: give fewer.")
    return tuple(_route(part.strip()) for part in text.split(",") if part.strip())


def write_routes(routes: Sequence[Route]) -> str:
    """The text of routes."""
    return ", ".join(f"{route.first} to {route.last}: {route.left_out:g}" for route in routes)


def routes_among(routes: Sequence[Route], num_blocks: int) -> tuple[Route, ...]:
    """The routes of a model of so many blocks, with numbers from 0 on.

    ConfigError for blocks that it has not, for a route that ends before it begins, and for two that share a block.
    """
    found = tuple(
        replace(route, first=_from_start(route.first, num_blocks), last=_from_start(route.last, num_blocks))
        for route in routes
    )
    in_order = sorted(found, key=lambda route: route.first)
    for number, route in enumerate(in_order):
        said = f"tread_routes has a route from block {route.first} to block {route.last}"
        if not 1 <= route.first <= route.last < num_blocks:
            raise ConfigError(
                f"{said} of a model with {num_blocks} blocks: give a first block from 1 on, and a last one that is not before "
                f"it, such as {EXAMPLE}. The first block of all, 0, sees all tokens."
            )
        if number and route.first <= in_order[number - 1].last:
            raise ConfigError(
                f"{said}, and one before it that ends at {in_order[number - 1].last}: give each block one route."
            )
    return found


def kept_share(routes: Sequence[Route], num_blocks: int) -> list[tuple[int, float]]:
    """How many blocks see which share of the tokens, in the blocks' order; of a model of so many blocks."""
    found, done = list[tuple[int, float]](), 0
    for route in sorted(routes_among(routes, num_blocks), key=lambda route: route.first):
        found += [(route.first - done, 1.0), (route.last - route.first + 1, 1 - route.left_out)]
        done = route.last + 1
    return [(number, share) for number, share in [*found, (num_blocks - done, 1.0)] if number]


def _from_start(block: int, num_blocks: int) -> int:
    return block if block >= 0 else num_blocks + block


def _route(part: str) -> Route:
    blocks, _, share = part.partition(":")
    first, _, last = blocks.partition(" to ")
    try:
        route = Route(int(first), int(last), float(share))
    except ValueError:
        raise ConfigError(
            f"tread_routes has '{shown(part[:80])}', which is no route: write the first and the last block and the share of "
            f"tokens that is left out, such as {EXAMPLE}."
        ) from None
    if not 0 < route.left_out < 1:
        raise ConfigError(
            f"tread_routes leaves out {route.left_out:g} of the tokens from block {route.first} on: a share is above 0 and "
            "below 1; without routes, all tokens pass all blocks."
        )
    return route
