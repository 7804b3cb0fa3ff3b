"""`wantrain train`: train the job of a run folder, or go on with it."""

import argparse
from pathlib import Path

from ..worker import train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("run_folder", type=Path, help="the folder that holds job.json")
    parser.add_argument("--follow-stdin", action="store_true", help="stop when standard input closes")


def run(options: argparse.Namespace) -> int:
    """Train to the end."""
    return train(options.run_folder, follow_stdin=options.follow_stdin)
