"""How long a recipe's runs will be, told from a scan alone: before anything is encoded."""

from dataclasses import replace
from pathlib import Path

from ..data.counting import Length, batches_of
from ..data.types import Dataset
from ..devices import AUTO
from ..errors import WanTrainError
from ..facts import LatentFormat
from ..launch.planned import gpus_of
from ..settings.job import Stage
from ..settings.stage import StageSettings
from ..train.spread import context_of
from ..wan.checkpoint import inspect
from .recipe import Recipe


def planned_lengths(recipe: Recipe, dataset: Dataset) -> dict[Stage, Length]:
    """The length of each stage's run, as `core/train/length.py` has it once latents are made.

    Files that can be decoded only in part are counted too, since a scan does not decode.
    """
    if recipe.conditioning != "none":  # an image-to-video model learns nothing from single pictures
        dataset = replace(dataset, samples=tuple(s for s in dataset.samples if len(s.frame_indices) > 1))
    found: dict[Stage, Length] = {}
    if all(sample.held_out for sample in dataset.samples):  # which is refused before training
        return found
    for stage, path in recipe.runs.items():
        settings = recipe.settings(stage)
        loop = settings.loop
        length = Length(
            batches=batches_of(dataset, _latent_format(path), loop.batch_size, loop.token_budget or None),
            batch_size=loop.batch_size,
            accumulation=loop.gradient_accumulation * _side_by_side(settings),
            steps=loop.steps,
        )
        found[stage] = replace(length, steps=length.steps_of(settings.epochs)) if settings.epochs else length
    return found


def _side_by_side(settings: StageSettings) -> int:
    """Samples that train at the same time on the GPUs of a run; of devices that are not there, as if they were one."""
    try:
        gpus = gpus_of(settings.device, [AUTO])
        return gpus // context_of(settings.parallel, gpus)
    except WanTrainError:
        return 1


def _latent_format(path: str) -> LatentFormat:
    """That of a model, if its file is there: it decides which sizes are the same."""
    try:
        return inspect(Path(path)).config.latent_format
    except WanTrainError:
        return "wan2.1"
