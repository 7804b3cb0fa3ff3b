"""`wantrain log`: show the diary of a run in TensorBoard or on Weights & Biases, or tell a webhook of it, also afterwards."""

import argparse
import sys
import time
from pathlib import Path

from ...errors import ConfigError, RunError
from ...settings.track import TrackOptions
from ...track.process import follow
from ...track.tracker import ENDS, Tracker
from ...words import counted

POLL_S = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add = parser.add_argument
    add("run_folder", type=Path, metavar="RUN", help="a run folder, such as wan_train/runs/my_lora_high_1a2b3c")
    add("--tensorboard", default="", metavar="FOLDER", help="write TensorBoard files there")
    add(
        "--wandb",
        default="",
        metavar="PROJECT",
        help="log to this project on Weights & Biases (WANDB_MODE=offline works)",
    )
    add("--wandb-name", default="", metavar="NAME", help="the run's name there (the LoRA's name)")
    add(
        "--webhook",
        default="",
        metavar="ADDRESS",
        help="tell this address, or that of an environment variable, by POST",
    )
    add("--follow", action="store_true", help="go on until the run ends; else what there is now")
    add("--follow-stdin", action="store_true", help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> int:
    """Log what there is, and with --follow what comes."""
    folder = options.run_folder.resolve()
    if options.follow_stdin:
        return follow(folder)
    place = str(Path(options.tensorboard).absolute()) if options.tensorboard else ""
    wanted = TrackOptions(
        tensorboard=place, wandb=options.wandb, wandb_name=options.wandb_name, webhook=options.webhook
    )
    if not wanted.is_on:
        raise ConfigError("say where to: --tensorboard FOLDER, --wandb PROJECT or --webhook ADDRESS.")
    problems: list[str] = []
    tracker = Tracker(folder, wanted, problems.append, since=time.time() if options.follow else 0.0)
    count = tracker.read()
    try:
        while options.follow and tracker.state not in ENDS and tracker.names:
            time.sleep(POLL_S)
            count += tracker.read()
    except KeyboardInterrupt:
        pass  # what was read is logged
    names = tracker.names
    tracker.close()
    if problems:
        raise RunError(" ".join(problems))
    sys.stdout.write(
        f"{tracker.run.title}: {counted(count, 'event')} read for {', '.join(names)}; what was logged before is not again\n"
    )
    return 0
