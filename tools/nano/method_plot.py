"""What the bench of methods found, as a picture: SVG, a line for each method, small dots for seeds, large ones for means."""

import statistics
from collections.abc import Iterator, Sequence

from .method_runs import Row
from .method_table import SHARES, Found, beyond_chance, found_in
from .methods import BASELINE, METHODS
from .plot import INK, LINE, dot, svg, text

DRAWN = ("look", "move", "both", "kept")
BETTER, WORSE, SAME = "#1a7f37", "#b3261e", "#57606a"
ROW, LEFT, WIDE, GAP, TOP = 17, 196, 136, 18, 62  # pixels


def draw(rows: Sequence[Row]) -> str:
    """The methods by group; a column for each of what was learnt or kept."""
    found = found_in(rows)
    sure = {name: beyond_chance(found, lambda one, name=name: one.ends(name)) for name in DRAWN}
    parts, y, group = list(_head()), float(TOP), ""
    for method, one in found.items():
        if METHODS[method].group != group:
            group = METHODS[method].group
            y += 6
        y += ROW
        parts.append(text(LEFT - 10, y + 4, method, 'text-anchor="end"'))
        for number, name in enumerate(DRAWN):
            gap = sure[name].get(method, 0.0)
            colour = BETTER if gap > 0 else WORSE if gap < 0 else SAME
            parts += _dots(one, name, _left(number), y, colour)
    lines = [
        f'<path d="M{_left(number) + WIDE * found[BASELINE].mean(name):.1f} {TOP}V{y + 10:.1f}" stroke="{INK}" '
        'stroke-dasharray="3 3" stroke-width="1"/>'
        for number, name in enumerate(DRAWN)
        if BASELINE in found
    ]
    frames = [
        f'<path d="M{_left(number) + WIDE * share:.1f} {TOP}V{y + 10:.1f}" stroke="{LINE}"/>'
        for number in range(len(DRAWN))
        for share in (0, 0.5, 1)
    ]
    return svg(_left(len(DRAWN)), y + 20, [*frames, *lines, *parts])


def _left(number: int) -> float:
    return float(LEFT + number * (WIDE + GAP))


def _head() -> Iterator[str]:
    yield text(16, 20, "Means of seeds (small dots) after equal steps. Dashed: the baseline.")
    for colour, words, x in ((BETTER, "more", 430), (WORSE, "less", 500), (SAME, "no more than chance", 560)):
        yield dot(x, 16, colour)
        yield text(x + 10, 20, words)
    for number, name in enumerate(DRAWN):
        yield text(_left(number), 42, SHARES[name], 'font-weight="bold"')
        yield text(_left(number), 56, "0", 'font-size="10"')
        yield text(_left(number) + WIDE, 56, "100 %", 'font-size="10" text-anchor="end"')


def _dots(one: Found, name: str, left: float, y: float, colour: str) -> Iterator[str]:
    values = list(one.ends(name).values())
    for value in values if len(values) > 1 else ():
        yield dot(left + WIDE * value, y, colour, 2)
    yield dot(left + WIDE * statistics.fmean(values), y, colour, 4.5)
