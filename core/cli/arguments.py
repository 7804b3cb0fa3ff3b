"""Arguments that several commands take."""

import argparse
from pathlib import Path

from ..data.media import MEDIA_SUFFIXES
from ..errors import DatasetError
from ..launch.meeting import Called, Meeting
from ..launch.rank_environment import Machines
from ..paths import shown

_RECIPES = (".toml", ".json")


def add_changes(parser: argparse.ArgumentParser) -> None:
    """--set NAME=VALUE, any number of times."""
    parser.add_argument(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a setting of the recipe, such as trigger_word=ohwx, seed=7 or high.learning_rate=1e-4 (docs/job.toml)",
    )


def check_folder_or_recipe(path: Path) -> None:
    """DatasetError for a path that is neither a folder nor a recipe, where a look at the file's name or place tells."""
    if path.is_file() and path.suffix.lower() in MEDIA_SUFFIXES:
        raise DatasetError(f"{shown(path)} is an image or a clip: give the folder that it lies in.")
    if not path.exists() and path.suffix.lower() not in _RECIPES:
        raise DatasetError(f"{shown(path)} does not exist: give a dataset folder, or a recipe ({', '.join(_RECIPES)}).")


def add_devices(parser: argparse.ArgumentParser) -> None:
    """--devices A,B; all; A+B."""
    parser.add_argument(
        "--devices",
        type=lambda text: [name.strip() for name in text.split(",") if name.strip()],
        default=[],
        metavar="A,B",
        help="where to train, such as cuda:0,cuda:1; one run each (default: every GPU). all: each run over all GPUs; "
        "cuda:0+cuda:1: over these. cpu:0,cpu:1: two runs on the CPU",
    )
    parser.add_argument(
        "--no-wait",
        dest="waits",
        action="store_false",
        help="start at once, also where other programs have filled the GPU (default: wait for them)",
    )


def add_machines(parser: argparse.ArgumentParser) -> None:
    """--nodes, --node-rank and --rendezvous, as torchrun calls them."""
    add = parser.add_argument
    add("--nodes", type=int, default=1, metavar="N", help="train over the GPUs of N machines (docs/many-gpus.md)")
    add(
        "--node-rank",
        type=int,
        default=0,
        metavar="R",
        help="number of this machine: 0 is the one that makes the caches",
    )
    add("--rendezvous", default="", metavar="HOST:PORT", help="address of machine 0, with a free port: the same on all")
    add("--meeting", default="", help=argparse.SUPPRESS)


def called(options: argparse.Namespace) -> Called | None:
    """What the command line says of several machines; None for one. ConfigError for what can't be."""
    if options.nodes == 1 and not options.rendezvous and not options.node_rank:
        return None
    return Called(options.node_rank, options.nodes, options.rendezvous)


def machines_of(options: argparse.Namespace) -> Machines | None:
    """For the process that starts the ranks of this machine."""
    if called(options) is None:
        return None
    devices = ",".join(options.devices)
    return Machines(options.node_rank, options.nodes, options.rendezvous, options.meeting, devices)


def worker_arguments(meeting: Meeting, name: str) -> list[str]:
    """Of this machine's worker, for a start of a run that `meeting` has called to."""
    called = meeting.called
    return [
        *("--nodes", str(called.size)),
        *("--node-rank", str(called.number)),
        *("--rendezvous", called.address),
        *("--meeting", name),
        *("--devices", "+".join(meeting.devices)),
    ]
