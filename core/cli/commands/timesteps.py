"""`wantrain timesteps`: say how often each noise level will be trained, and draw it."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from ...disk import check_writable
from ...errors import ConfigError
from ...facts import latent_shape, official_boundary
from ...flow.density import Density, density_of, draw
from ...recipe.recipe import Recipe, read_recipe
from ...settings.job import stage_window
from ..arguments import add_changes

_NAMES = {"high": "high noise", "low": "low noise", "single": "single model"}
_ROWS, _WIDTH, _CHANNELS = 16, 48, 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("path", type=Path, metavar="RECIPE", help="a recipe (.toml, .json); no model is needed")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it into this picture (.png)")
    add_changes(parser)


def run(options: argparse.Namespace) -> int:
    """Print a line and a chart for each stage of the recipe."""
    if options.plot is not None and options.plot.suffix.lower() != ".png":
        raise ConfigError(f"--plot is {options.plot}: give a file that ends in .png.")
    found = densities(read_recipe(options.path, options.changes), cells=_ROWS)
    for density in found:
        sys.stdout.write(f"{density.sentence}\n{_chart(density)}\n")
    if options.plot is not None:
        check_writable(options.plot.absolute().parent)
        draw(densities(read_recipe(options.path, options.changes))).save(options.plot)
        sys.stdout.write(f"{options.plot} is written\n")
    return 0


def densities(recipe: Recipe, **changes: int) -> list[Density]:
    """What each stage of a recipe trains, at the size that the dataset, or the largest of several, is brought to."""
    size = max(recipe.datasets, key=lambda dataset: dataset.width * dataset.height * dataset.num_frames)
    shape = latent_shape(_CHANNELS, size.num_frames, size.height, size.width)
    boundary = official_boundary("t2v" if recipe.conditioning == "none" else "i2v")
    found = []
    for stage in recipe.models.stages:
        settings = recipe.settings(stage)
        low, high = stage_window(stage, settings.boundary or boundary)
        timesteps = replace(settings.timesteps, sigma_min=low, sigma_max=high)
        found.append(density_of(_NAMES[stage], timesteps, settings.loss, shape, **changes))
    return found


def _chart(density: Density) -> str:
    """Highest noise first; the longest bar is the most frequent level."""
    most = max(density.heights)
    rows = []
    for low, high, tall in reversed(list(zip(density.edges[:-1], density.edges[1:], density.heights, strict=True))):
        bar = "#" * round(_WIDTH * tall / most)
        rows.append(
            f"  {1000 * low:4.0f} to {1000 * high:4.0f}  {100 * tall / len(density.heights):5.1f} %  {bar}".rstrip()
        )
    return "\n".join(rows)
