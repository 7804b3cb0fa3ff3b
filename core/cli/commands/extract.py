"""`wantrain extract`: make a LoRA of the difference between a fine-tuned model and its base."""

import argparse
import logging
from pathlib import Path

from ...adapters.extracted import ExtractOptions, extract_file
from ...devices import resolve_device
from ..display import Display
from ..loras import add_writing, writing

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    defaults = ExtractOptions()
    add = parser.add_argument
    add("--base", type=Path, required=True, metavar="FILE", help="the model that the fine-tune began from")
    add("--tuned", type=Path, required=True, metavar="FILE", help="the fine-tuned model")
    add("--rank", type=int, default=defaults.rank, help="of the LoRA, at most (%(default)s)")
    add(
        "--energy",
        type=float,
        default=defaults.energy,
        metavar="SHARE",
        help="keep the fewest singular values whose squares hold this share, such as 0.99; 0: as many as the rank",
    )
    add("--all-linears", action="store_true", help="also the embeddings' layers outside the blocks")
    add("--seed", type=int, default=defaults.seed, help="of the search for singular values (%(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda:0, ... (%(default)s)")
    add_writing(parser, "extracted_lora")


def run(options: argparse.Namespace) -> int:
    """Write the file, and say what it is."""
    settings = ExtractOptions(
        rank=options.rank, energy=options.energy, all_linears=options.all_linears, seed=options.seed
    )
    display = Display()
    written = extract_file(
        options.out,
        options.base,
        options.tuned,
        settings,
        writing(options),
        device=resolve_device(options.device),
        progress=lambda done, total: display.update("extract", done, total),
    )
    display.close()
    for line in written.lines:
        log.info("%s", line)
    return 0
