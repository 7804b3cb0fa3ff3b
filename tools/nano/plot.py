"""What a bench found, as a picture: SVG, one panel for each concept."""

import statistics
from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from .results import Group, Row, common_parts, groups

INK, LINE, LEARNT, KEPT = "#222", "#ccc", "#1f5fbf", "#c2571a"
ROW, LETTER, AXIS, CURVE, MARGIN = 24, 6.7, 260, 120, 16  # pixels: height, widths


def plot(rows: Sequence[Row]) -> str:
    """SVG: a panel for each concept, a line for each setting: learnt and kept as dots, then learnt over the steps."""
    found = groups(rows)
    left = MARGIN + LETTER * max(len(group.setting) for group in found) + 12
    width = max(580, left + AXIS + 24 + CURVE + 16 + LETTER * max(14, *(len(group.steps_to_90()) for group in found)))
    most = max(step for group in found for step, _ in group.curve())
    parts = list(_legend())
    top = 52.0
    for concept in dict.fromkeys(group.concept for group in found):
        panel = [group for group in found if group.concept == concept]
        parts += _panel(concept, panel, (left, top), most)
        top += ROW * (len(panel) + 2) + 14
    if common_parts(rows):
        parts.append(text(MARGIN, top, f"In all settings: {' '.join(common_parts(rows))}"))
        top += 14
    return svg(width, top, parts)


def svg(width: float, height: float, parts: Sequence[str]) -> str:
    """A picture of these parts, on white."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="Helvetica, Arial, sans-serif" font-size="12" fill="{INK}">\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _legend() -> Iterator[str]:
    yield dot(MARGIN + 5, 20, LEARNT)
    yield text(MARGIN + 15, 24, "learnt: prompts with the trigger that show the concept")
    yield _ring(MARGIN + 5, 40, KEPT)
    yield text(MARGIN + 15, 44, "kept: prompts without it that are as asked; bar: without the LoRA")
    yield text(MARGIN + 380, 44, "several seeds: small, with their mean")


def _panel(concept: str, panel: Sequence[Group], corner: tuple[float, float], most: int) -> Iterator[str]:
    left, top = corner
    bottom = top + ROW * (len(panel) + 1)
    curve = left + AXIS + 24
    yield text(MARGIN, top + 16, concept, 'font-weight="bold" font-size="14"')
    yield text(curve, top + 16, f"learnt over {most} steps", 'font-size="11"')
    yield text(curve + CURVE + 16, top + 16, "steps to 90 %", 'font-size="11"')
    for quarter in range(5):
        x = left + AXIS * quarter / 4
        yield f'<path d="M{x:.1f} {top + ROW:.1f}V{bottom:.1f}" stroke="{LINE}"/>'
        yield text(x, bottom + 14, f"{quarter / 4:.0%}", 'font-size="11" text-anchor="middle"')
    for number, group in enumerate(panel, start=1):
        middle = top + ROW * (number + 0.5)
        yield text(left - 12, middle + 4, group.setting, 'text-anchor="end"')
        yield from _dots(group, left, middle)
        yield _line(group, curve, middle, most)
        yield text(curve + CURVE + 16, middle + 4, group.steps_to_90())


def _dots(group: Group, left: float, middle: float) -> Iterator[str]:
    """Small marks for the seeds, large ones for their mean."""
    base = left + AXIS * (group.mean("kept_base") or 0.0)
    yield f'<path d="M{base:.1f} {middle - 7:.1f}v14" stroke="{KEPT}" stroke-width="2"/>'
    for column, colour, mark in (("kept", KEPT, _ring), ("learnt", LEARNT, dot)):
        values = group.values(column)
        for value in values if len(values) > 1 else ():
            yield dot(left + AXIS * value, middle, colour, 2)
        yield mark(left + AXIS * statistics.fmean(values), middle, colour)


def _line(group: Group, left: float, middle: float, most: int) -> str:
    """Learnt over the steps, from nothing at step 0."""
    low, height = middle + 9, 18
    points = [(0, 0.0), *group.curve()]
    path = " ".join(f"{left + CURVE * step / most:.1f},{low - height * value:.1f}" for step, value in points)
    return (
        f'<path d="M{left:.1f} {low:.1f}h{CURVE}m0 {-height}h{-CURVE}" stroke="{LINE}" fill="none"/>'
        f'<polyline points="{path}" stroke="{LEARNT}" stroke-width="1.5" fill="none"/>'
    )


def text(x: float, y: float, text: str, more: str = "") -> str:
    """Words at a place."""
    return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{escape(text)}</text>'


def dot(x: float, y: float, colour: str, radius: float = 5) -> str:
    """A full circle."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}"/>'


def _ring(x: float, y: float, colour: str, radius: float = 5) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="none" stroke="{colour}" stroke-width="2"/>'
