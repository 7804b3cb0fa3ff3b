"""`wantrain split`: make two files of a LoRA file that holds two LoRAs, one for each expert of Wan 2.2.

Such files come from diffusers (names that begin with transformer. and transformer_2.), OneTrainer, and AI-Toolkit with
split_multistage_loras: false. ComfyUI's loaders read none of them.
"""

import argparse
import logging
from pathlib import Path

from ...adapters.drafts import KEY_STYLES, PRECISIONS
from ...adapters.split_file import SAME, SplitOptions, split_file
from ..loras import check_files

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    defaults = SplitOptions()
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="the file that holds both LoRAs")
    add("--out", type=Path, required=True, metavar="FOLDER", help="folder for the files, such as ComfyUI/models/loras")
    add(
        "--name",
        default=defaults.name,
        help="start of the files' names, before _high_noise and _low_noise; nothing is overwritten (that of FILE)",
    )
    add(
        "--precision",
        choices=(SAME, *PRECISIONS),
        default=defaults.precision,
        help="number format of the files; same: as in FILE (%(default)s)",
    )
    add(
        "--key-style",
        choices=KEY_STYLES,
        default=defaults.key_style,
        help="names of the tensors: comfyui (AI-Toolkit's and diffusion-pipe's too), kohya (musubi-tuner's), diffusers"
        " (%(default)s)",
    )


def run(options: argparse.Namespace) -> int:
    """Write the files, and say what they are."""
    check_files(options.file)
    writing = SplitOptions(name=options.name, precision=options.precision, key_style=options.key_style)
    for written in split_file(options.out, options.file, writing):
        for line in written.lines:
            log.info("%s", line)
    return 0
