"""`wantrain train`, as the process sees it that follows the training: what is trained where, and how it goes."""

import argparse
import json

from ..devices import device_name
from ..errors import ConfigError
from ..launch.meeting import Meeting
from ..launch.planned import describe_devices, gpus_of, pool_of
from ..paths import shown
from ..recipe.jobs import holds_job, places, plan_existing
from ..recipe.recipe import read_recipe
from ..train.spread import check_spread
from .arguments import called
from .display import Display
from .machines import join, leading
from .stage_queue import StageQueue, refuse
from .training import train_recipe


def train(options: argparse.Namespace) -> None:
    """Train to the end what `wantrain train` names. RunStoppedError if it was stopped."""
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
