"""`wantrain fold`: add LoRAs to a model for good, and write the model: a file that needs no LoRA loader."""

import argparse
import logging
from pathlib import Path

from ...adapters.fold import FOLD_PRECISIONS, fold
from ...wan.checkpoint import inspect
from ..display import Display
from ..loras import check_files, weighted

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add = parser.add_argument
    add("loras", type=weighted, nargs="+", metavar="FILE=STRENGTH", help="LoRAs, of any kind")
    add("--model", type=Path, required=True, metavar="FILE", help="the diffusion model")
    add("--out", type=Path, required=True, metavar="FILE", help="the model to write (.safetensors)")
    precisions = "; ".join(f"{name}: {text}" for name, text in FOLD_PRECISIONS.items())
    add(
        "--precision",
        choices=FOLD_PRECISIONS,
        default="same",
        help=f"of the blocks' layers (%(default)s). {precisions}",
    )


def run(options: argparse.Namespace) -> int:
    """Write the model, and say what was changed."""
    check_files(options.model, *(path for path, _ in options.loras))
    display = Display()
    folded = fold(
        inspect(options.model),
        options.loras,
        options.out,
        precision=options.precision,
        progress=lambda done, total: display.update("fold", done, total),
    )
    display.close()
    for note in folded.notes:
        log.warning("%s", note)
    log.info("%s: %d layers changed", options.out, folded.num_changed)
    return 0
