"""What the commands `teach` and `bench` have in common: their arguments, and how they end."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from ...core.errors import ConfigError, WanTrainError
from .exam import PROMPTS
from .family import Files
from .lessons import Train, train_here, train_in_worker
from .settings import Settings, changed, field_hints
from .workshop import Workshop


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """What both take."""
    parser.add_argument("--out", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--family", type=Path, default=Files().root, help="folder of the nano family")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=Settings().loop.steps)
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="prompts with the trigger, and as many without")
    parser.add_argument("--worker", action="store_true", help="train in a process of its own, as the node does")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help=f"a setting of the training, for example adapter.rank=4; one of: {', '.join(field_hints())}",
    )


def common_settings(options: argparse.Namespace) -> Settings:
    """The settings that --steps and --set ask for."""
    settings = changed(Settings(), "loop.steps", str(options.steps))
    for assignment in options.set:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"'{assignment}' must have the form FIELD=VALUE, for example adapter.rank=4.")
        settings = changed(settings, name, text)
    return settings


def workshop_of(options: argparse.Namespace) -> Workshop:
    """Where --family, --out and --device say."""
    return Workshop(files=Files(options.family), folder=options.out, device=options.device)


def trainer_of(options: argparse.Namespace) -> Train:
    """How --worker says."""
    return train_in_worker if options.worker else train_here


def run_command(command: Callable[[], None]) -> None:
    """Run a command; what the user can mend ends it with one sentence."""
    try:
        command()
    except WanTrainError as error:
        sys.exit(str(error))
