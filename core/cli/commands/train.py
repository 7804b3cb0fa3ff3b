"""`wantrain train`: train a run folder, a job (job.json, or in a LoRA's metadata) or a recipe, or go on with it."""

import argparse
import json
from pathlib import Path

from ...errors import ConfigError
from ...launch.exits import EXIT_FINISHED, EXIT_STOPPED
from ...launch.planned import describe_devices, gpus_of, pool_of
from ...launch.ranks import train_here
from ...paths import shown
from ...recipe.jobs import holds_job, places, plan_existing
from ...recipe.recipe import read_recipe
from ...train.run import RunStoppedError
from ..arguments import add_changes, add_devices
from ..display import Display
from ..stage_queue import StageQueue, refuse
from ..training import train_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add = parser.add_argument
    add(
        "path",
        type=Path,
        metavar="RUN_FOLDER|JOB|LORA|RECIPE",
        help="a recipe (.toml, .json), the folder of a run, its job.json, or a LoRA that was trained here",
    )
    add(
        "--work",
        type=Path,
        metavar="FOLDER",
        help="for caches and runs (default: what the recipe says, or wan_train beside a job or a LoRA)",
    )
    add(
        "--follow-stdin",
        action="store_true",
        help="for programs: train a run folder in this process; stop when standard input closes",
    )
    add_devices(parser)
    add_changes(parser)


def run(options: argparse.Namespace) -> int:
    """Train to the end, in processes that are followed here; with --follow-stdin in this one."""
    if options.follow_stdin:
        return train_here(options.path)
    try:
        _train(options)
    except RunStoppedError:
        return EXIT_STOPPED
    return EXIT_FINISHED


def _train(options: argparse.Namespace) -> None:
    display = Display()
    if not holds_job(options.path):
        work = [f"work={json.dumps(str(options.work.resolve()))}"] if options.work else []
        train_recipe(read_recipe(options.path, [*options.changes, *work]), options.devices, display)
        return
    if options.changes:
        raise ConfigError("--set is for recipes: the settings of a job decide its run, and stay as they are.")
    planned = plan_existing(options.path, options.work, options.devices)
    display.say(f"{shown(options.path)} has these files read:")
    for place in places(planned.job):
        display.say(f"  {place}")
    pool = pool_of(options.devices)
    for sentence in describe_devices([planned.job], pool, {planned.job.stage: gpus_of(planned.job.device, pool)}):
        display.say(sentence)
    finished, problems = StageQueue([planned], pool, display).run()
    refuse(problems)
    for path in finished.values():
        display.say(f"the LoRA is {path}")
