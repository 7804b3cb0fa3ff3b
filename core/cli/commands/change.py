"""`wantrain change`: lower a LoRA's rank, leave out blocks, or write it in the names of another program."""

import argparse
import logging

from ...adapters.afterwards import Changes, change_file
from ..loras import add_writing, check_files, lora_path, writing

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    defaults = Changes()
    add = parser.add_argument
    add("file", type=lora_path, metavar="FILE", help="the LoRA, of any trainer, or a checkpoint's folder")
    add(
        "--rank",
        type=int,
        default=defaults.rank,
        help="lower the rank to this, layer by layer; 0: keep it (%(default)s)",
    )
    add(
        "--energy",
        type=float,
        default=defaults.energy,
        metavar="SHARE",
        help="keep the fewest singular values whose squares hold this share, such as 0.99; 0: all (%(default)s)",
    )
    add("--drop-blocks", default="", metavar="NUMBERS", help="blocks to leave out, such as 0-9,15")
    add(
        "--drop-layers",
        action="append",
        default=[],
        metavar="PATTERN",
        help="layers to leave out: a part of their name or a regular expression, such as ffn; may be given again",
    )
    add("--strength", type=float, default=defaults.strength, help="folded into the weights (%(default)s)")
    add_writing(parser, "changed_lora")


def run(options: argparse.Namespace) -> int:
    """Write the file, and say what it is."""
    check_files(options.file)
    changes = Changes(
        rank=options.rank,
        energy=options.energy,
        drop_blocks=options.drop_blocks,
        drop_layers="\n".join(options.drop_layers),
        strength=options.strength,
    )
    for line in change_file(options.out, options.file, changes, writing(options)).lines:
        log.info("%s", line)
    return 0
