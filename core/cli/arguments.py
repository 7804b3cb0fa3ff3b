"""Arguments that several commands take."""

import argparse


def add_changes(parser: argparse.ArgumentParser) -> None:
    """--set NAME=VALUE, any number of times."""
    parser.add_argument(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a setting of the recipe, such as seed=7, loop.seed=7 or high.learning_rate=1e-4 (docs/job.toml)",
    )


def add_devices(parser: argparse.ArgumentParser) -> None:
    """--devices A,B."""
    parser.add_argument(
        "--devices",
        type=lambda text: [name.strip() for name in text.split(",") if name.strip()],
        default=[],
        metavar="A,B",
        help="where to train, such as cuda:0,cuda:1; one run each (default: every GPU). cpu:0,cpu:1: two runs on the CPU",
    )
