"""`wantrain train`: train a run folder, a job (job.json, or in a LoRA's metadata) or a recipe, or go on with it."""

import argparse
import json
from pathlib import Path

from ...devices import device_name
from ...errors import ConfigError
from ...launch.exits import EXIT_FINISHED, EXIT_STOPPED
from ...launch.meeting import Meeting
from ...launch.planned import describe_devices, gpus_of, pool_of
from ...launch.ranks import train_here
from ...parallel.world import started_by_torchrun
from ...paths import shown
from ...recipe.jobs import holds_job, places, plan_existing
from ...recipe.recipe import read_recipe
from ...train.run import RunStoppedError
from ...train.spread import check_spread
from ..arguments import add_changes, add_devices, add_machines
from ..display import Display
from ..machines import called, join, leading, machines_of
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
    add_machines(parser)
    add_changes(parser)


def run(options: argparse.Namespace) -> int:
    """Train to the end, in processes that are followed here; with --follow-stdin in this one."""
    if options.follow_stdin or started_by_torchrun():
        return train_here(options.path, machines_of(options), follow_stdin=options.follow_stdin)
    try:
        _train(options)
    except RunStoppedError:
        return EXIT_STOPPED
    return EXIT_FINISHED


def _train(options: argparse.Namespace) -> None:
    display, call = Display(), called(options)
    if not holds_job(options.path):
        work = [f"work={json.dumps(str(options.work.resolve()))}"] if options.work else []
        train_recipe(
            read_recipe(options.path, [*options.changes, *work]), options.devices, display, call, waits=options.waits
        )
        return
    if options.changes:
        raise ConfigError("--set is for recipes: the settings of a job decide its run, and stay as they are.")
    if call is not None and call.number:
        join(call, options.devices, options.path.resolve().parent, display)
        return
    if call is None:
        _train_job(options, pool_of(options.devices), display)
        return
    with leading(call, options.devices, display) as (meeting, gpus):
        _train_job(options, [device_name(meeting.devices)], display, meeting, gpus)


def _train_job(
    options: argparse.Namespace, pool: list[str], display: Display, meeting: Meeting | None = None, gpus: int = 0
) -> None:
    planned = plan_existing(options.path, options.work, options.devices if meeting is None else pool)
    display.say(f"{shown(options.path)} has these files read:")
    for place in places(planned.job):
        display.say(f"  {place}")
    count = gpus or gpus_of(planned.job.device, pool)
    check_spread(planned.job, count)
    for sentence in describe_devices([planned.job], pool, {planned.job.stage: count}):
        display.say(sentence)
    finished, problems = StageQueue([planned], pool, display, meeting, waits=options.waits).run()
    refuse(problems)
    for path in finished.values():
        display.say(f"the LoRA is {path}")
