"""`wantrain push`: upload a run's LoRA, its checkpoints and previews, or LoRA files, to Hugging Face, with a model card."""

import argparse
import sys
import tempfile
from pathlib import Path

from ...track.push import Order, push


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add = parser.add_argument
    add(
        "paths",
        type=Path,
        nargs="+",
        metavar="RUN_OR_FILE",
        help="run folders, such as those of both experts, or LoRA files",
    )
    add("--to", required=True, metavar="USER/NAME", help="the repository, which is made if it is not there")
    add("--checkpoints", action="store_true", help="the checkpoints' LoRAs too, in the folder checkpoints")
    add("--public", action="store_true", help="make a new repository public (default: only you see it)")
    add(
        "--with-job",
        action="store_true",
        help="leave captions, paths and workflow in the files",
    )


def run(options: argparse.Namespace) -> int:
    """Upload, and say where it is."""
    order = Order(to=options.to, checkpoints=options.checkpoints, public=options.public, with_job=options.with_job)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "repository"
        folder.mkdir()
        address = push(options.paths, order, folder, _say)
    _say(f"it is at {address}")
    return 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
