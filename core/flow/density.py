"""How often each noise level will be trained, as numbers, words and a picture, before anything is trained."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..facts import NUM_TIMESTEPS
from ..settings.loss import LossOptions
from ..settings.timesteps import TimestepOptions
from .sigmas import share_below, sigma_at
from .timesteps import SAMPLINGS
from .weightings import WEIGHTINGS

CELLS = 240  # of a window, in the picture
_COLOURS = ((214, 110, 20), (30, 98, 190))
_INK, _GREY, _PAPER = (40, 40, 40), (200, 200, 200), (255, 255, 255)
_MARGINS = 64, 24, 24, 88  # left, top, right, bottom, in pixels


@dataclass(frozen=True)
class Density:
    """What one stage trains: cells of equal width over its window, and how often each is drawn."""

    name: str  # "high noise"
    edges: tuple[float, ...]  # sigmas, one more than cells
    heights: tuple[float, ...]  # of each cell, in multiples of an even distribution over the window
    weighted: tuple[float, ...] | None  # the same times the weight of the loss there; None: all weigh the same
    quartiles: tuple[float, float, float]  # sigmas below which 25, 50 and 75 % of all draws lie
    shift: str = ""  # where the shift follows the size: what it comes to

    @property
    def sentence(self) -> str:
        """The window, and where most draws lie, in timesteps; and the shift, where the size decides it."""
        low, first, middle, third, high = (
            round(NUM_TIMESTEPS * sigma) for sigma in (self.edges[0], *self.quartiles, self.edges[-1])
        )
        where = f"half of all draws from {first} to {third}, the middle one {middle}"
        return f"{self.name}, timesteps {low} to {high}: {where}{self.shift}"


def density_of(
    name: str, options: TimestepOptions, loss: LossOptions, shape: Sequence[int] | None = None, cells: int = CELLS
) -> Density:
    """The density inside the window of `options`; `shape` of the latents, [..., F, H, W], where the distribution asks."""
    edges = np.linspace(options.sigma_min, options.sigma_max, cells + 1)
    shares = np.diff([share_below(float(edge), options, shape) for edge in edges])
    middles = torch.from_numpy((edges[1:] + edges[:-1]) / 2).float()
    weights = WEIGHTINGS.get(loss.weighting).weight(middles, loss).double().numpy()
    weighted = shares * weights
    quartiles = sigma_at(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), options, shape).tolist()
    return Density(
        name,
        tuple(edges.tolist()),
        tuple((shares * cells).tolist()),
        None if np.ptp(weights) == 0 else tuple((weighted / weighted.sum() * cells).tolist()),
        (quartiles[0], quartiles[1], quartiles[2]),
        _shift_of(options, shape),
    )


def _shift_of(options: TimestepOptions, shape: Sequence[int] | None) -> str:
    sampling = SAMPLINGS.get(options.sampling)
    if sampling.at_size is None or shape is None:
        return ""
    shift = sampling.at_size(options, shape).shift
    is_capped = "shift_cap" in sampling.uses and shift == options.shift_cap
    return f", shift {shift:.3g}{', which is timestep_shift_cap' if is_capped else ''}"


def draw(densities: Sequence[Density], width: int = 960, height: int = 540) -> Image.Image:
    """Filled: how often a noise level is drawn. A line over it: times its weight in the loss, where there is one."""
    image = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(image, "RGBA")
    left, top, right, bottom = _MARGINS
    box = left, top, width - right, height - bottom
    highest = max(max(*d.heights, *(d.weighted or ())) for d in densities) * 1.05
    _axes(pen, box, highest)
    for place, (density, colour) in enumerate(zip(densities, _COLOURS, strict=False)):
        corners = _corners(density.edges, density.heights, box, highest)
        foot = [(corners[0][0], box[3]), *corners, (corners[-1][0], box[3])]
        pen.polygon(foot, fill=(*colour, 90))
        pen.line(corners, fill=colour, width=2)
        if density.weighted is not None:
            pen.line(_corners(density.edges, density.weighted, box, highest), fill=_INK, width=2)
        pen.text((left, box[3] + 44 + 20 * place), density.sentence, fill=colour, font=_font(14))
    if any(density.weighted is not None for density in densities):
        pen.text((left + 8, top + 4), "black: times its weight in the loss", fill=_INK, font=_font(14))
    return image


def _corners(
    edges: Sequence[float], heights: Sequence[float], box: tuple[int, int, int, int], highest: float
) -> list[tuple[float, float]]:
    left, top, right, bottom = box
    corners = list[tuple[float, float]]()
    for low, high, tall in zip(edges[:-1], edges[1:], heights, strict=True):
        y = bottom - (bottom - top) * tall / highest
        corners += [(left + (right - left) * low, y), (left + (right - left) * high, y)]
    return corners


def _axes(pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int], highest: float) -> None:
    left, top, right, bottom = box
    for tenth in range(11):
        x = left + (right - left) * tenth / 10
        pen.line([(x, top), (x, bottom)], fill=_GREY)
        pen.text((x, bottom + 6), str(100 * tenth), fill=_INK, font=_font(14), anchor="ma")
    pen.text(((left + right) / 2, bottom + 24), "timestep (1000: pure noise)", fill=_INK, font=_font(14), anchor="ma")
    even = bottom - (bottom - top) / highest
    pen.line([(left, even), (right, even)], fill=_INK)
    pen.text((left - 6, even), "even", fill=_INK, font=_font(14), anchor="rm")
    pen.line([(left, top), (left, bottom), (right, bottom)], fill=_INK, width=2)


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
