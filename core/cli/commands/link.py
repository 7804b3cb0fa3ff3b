"""`wantrain link`: make the node pack of an installed wheel known to a ComfyUI, by a link in its custom_nodes."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from ...errors import ConfigError
from ...launch.ahead import PACK

NAME = "ComfyUI-WanTrain"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("comfyui", type=Path, metavar="COMFYUI", help="the folder that holds ComfyUI's main.py")


def run(options: argparse.Namespace) -> int:
    """Link; once more is no error."""
    nodes = options.comfyui / "custom_nodes"
    if not (options.comfyui / "main.py").is_file() or not nodes.is_dir():
        raise ConfigError(f"{options.comfyui} is no ComfyUI: it lacks main.py or custom_nodes.")
    link = nodes / NAME
    if link.resolve() != PACK:
        if link.exists():
            raise ConfigError(f"{link} is there already: remove it first, if this installation shall take its place.")
        _link(link)
    sys.stdout.write(f"{link} leads to {PACK}: start ComfyUI again\n")
    return 0


def _link(link: Path) -> None:
    if os.name == "nt":  # a junction, which needs no rights of an administrator
        subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(PACK)], check=True, capture_output=True)
    else:
        link.symlink_to(PACK, target_is_directory=True)
