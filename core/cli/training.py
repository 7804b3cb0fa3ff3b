"""Training a recipe from the command line, from its dataset to the LoRA files."""

from collections.abc import Sequence
from pathlib import Path

from ..launch.planned import pool_of
from ..recipe.pipeline import prepare_recipe, ship_loras
from ..recipe.recipe import Recipe
from .display import Display
from .stage_queue import StageQueue, refuse


def train_recipe(recipe: Recipe, devices: Sequence[str], display: Display) -> list[Path]:
    """Train every stage of the recipe; the LoRA files. RunError if a stage failed, after the others' end."""
    pool = pool_of(devices)
    planned = prepare_recipe(recipe, pool, display)
    finished, problems = StageQueue(planned, pool, display).run()
    files = ship_loras(recipe, finished, display)
    refuse(problems)
    return files
