"""`wantrain train`: train a run folder, a job (job.json, or in a LoRA's metadata) or a recipe, or go on with it."""

import argparse
import logging
import math
from pathlib import Path

from ...adapters.peft_hooks import begin_importing_adapters
from ...later_compiler import import_compiler_later
from ...launch.ahead import WAITS, assigned
from ...launch.exits import EXIT_FINISHED, EXIT_STOPPED
from ...launch.ranks import train_here
from ...parallel.world import started_by_torchrun
from ...plan.host import note_idle, process_age
from ...train.run import RunStoppedError
from ..arguments import add_changes, add_devices, add_machines, machines_of

log = logging.getLogger(__name__)


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
        path = _assigned() if options.path == Path(WAITS) else options.path
        return train_here(path, machines_of(options), follow_stdin=options.follow_stdin)
    from ..follow_train import train  # what the training process has no use for

    try:
        train(options)
    except RunStoppedError:
        return EXIT_STOPPED
    return EXIT_FINISHED


def _assigned() -> Path:
    """The folder for a process that was started ahead, which gets ready for any while it waits."""
    import_compiler_later()
    begin_importing_adapters()
    age = process_age() or math.nan
    path, idle = assigned()
    note_idle(idle)
    log.info("All was imported after %.1f s, and the folder told %.1f s later.", age, idle)
    return path
