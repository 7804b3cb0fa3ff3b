"""Training a recipe from the command line, from its dataset to the LoRA files."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..devices import AUTO, device_name
from ..launch.meeting import Called, Meeting
from ..launch.planned import pool_of
from ..recipe.pipeline import prepare_recipe, ship_loras
from ..recipe.recipe import Recipe
from .display import Display
from .machines import join, leading
from .stage_queue import StageQueue, refuse


def train_recipe(
    recipe: Recipe, devices: Sequence[str], display: Display, call: Called | None = None, *, waits: bool = True
) -> list[Path]:
    """Train every stage of the recipe; the LoRA files. RunError if a stage failed, after the others' end.

    `call`: over several machines. Those that join one write no files. `waits`: see `StageQueue`.
    """
    if call is None:
        return _train(recipe, pool_of(devices), display, waits=waits)
    if call.number:
        join(call, devices, recipe.runs_path, display)
        return []
    recipe = _on_auto(recipe)
    with leading(call, devices, display) as (meeting, gpus):
        return _train(recipe, [device_name(meeting.devices)], display, meeting, gpus, waits=waits)


def _on_auto(recipe: Recipe) -> Recipe:
    """The devices are those of the command line, which each machine has of its own."""
    high, low = (
        {name: value for name, value in stage.items() if name != "device"} for stage in (recipe.high, recipe.low)
    )
    return replace(recipe, device=AUTO, high=high, low=low)


def _train(
    recipe: Recipe,
    pool: Sequence[str],
    display: Display,
    meeting: Meeting | None = None,
    gpus: int = 0,
    *,
    waits: bool,
) -> list[Path]:
    planned = prepare_recipe(recipe, pool, display, gpus=gpus)
    finished, problems = StageQueue(planned, pool, display, meeting, waits=waits).run()
    files = ship_loras(recipe, finished, display)
    refuse(problems)
    return files
