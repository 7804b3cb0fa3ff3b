"""`wantrain merge`: write the LoRA files that you keep: checked, merged, named and labelled, as Merge Stages does."""

import argparse
import logging
from pathlib import Path

from ...adapters.ship import KEY_STYLES, PRECISIONS, ShipOptions, Slot, Source, ship
from ...errors import ConfigError

SLOTS: tuple[Slot, ...] = ("high", "low", "single")
log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    defaults = ShipOptions()
    add = parser.add_argument
    add("--high", type=Path, metavar="FILE", help="LoRA of the high noise expert")
    add("--low", type=Path, metavar="FILE", help="LoRA of the low noise expert")
    add("--single", type=Path, metavar="FILE", help="LoRA of a single model (Wan 2.1, TI2V-5B)")
    for slot in SLOTS:
        add(f"--second-{slot}", type=Path, metavar="FILE", help=f"another LoRA, merged into that of --{slot}")
    add("--second-strength", type=float, default=defaults.second_strength, help="of the second LoRAs (%(default)s)")
    add("--out", type=Path, required=True, metavar="FOLDER", help="folder for the files, such as ComfyUI/models/loras")
    add("--name", default=defaults.name, help="start of the file names (%(default)s)")
    add("--precision", choices=PRECISIONS, default=defaults.precision, help="number format of the files (%(default)s)")
    add("--key-style", choices=KEY_STYLES, default=defaults.key_style, help="names of the tensors (%(default)s)")
    add("--rank", type=int, default=defaults.rank, help="lower the rank to this; 0: keep it (%(default)s)")
    add("--author", default=defaults.author, help="written into the files")
    add("--description", default=defaults.description, help="written into the files")


def run(options: argparse.Namespace) -> int:
    """Write the files, and say what they are."""
    settings = ShipOptions(
        name=options.name,
        precision=options.precision,
        key_style=options.key_style,
        rank=options.rank,
        second_strength=options.second_strength,
        author=options.author,
        description=options.description,
    )
    shipment = ship(options.out, _sources(options), settings)
    for line in shipment.lines():
        log.info("%s", line)
    return 0


def _sources(options: argparse.Namespace) -> dict[Slot, Source]:
    sources: dict[Slot, Source] = {}
    for slot in SLOTS:
        first, second = getattr(options, slot), getattr(options, f"second_{slot}")
        if second and not first:
            raise ConfigError(f"--second-{slot} is given without --{slot}: there is nothing to merge it into.")
        if first:
            sources[slot] = Source(first, second)
    return sources
