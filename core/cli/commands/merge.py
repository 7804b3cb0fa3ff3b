"""`wantrain merge`: write the LoRA files that you keep: checked, merged, named and labelled, as Merge Stages does.

`wantrain merge A.safetensors=0.8 B.safetensors=0.5 --method ties --rank 32 --out FOLDER` merges any number of LoRAs into one.
"""

import argparse
import logging
from pathlib import Path

from ...adapters.afterwards import FileOptions, merge_files
from ...adapters.combine import METHODS, MergeOptions
from ...adapters.ship import KEY_STYLES, PRECISIONS, ShipOptions, Slot, Source, ship
from ...devices import resolve_device
from ...errors import ConfigError
from ...train.chosen import AVERAGE_WIDTH, WEIGHTS, choose_lora, lora_of_run
from ...train.run_folder import RunFolder
from ..display import Display
from ..loras import check_files, lora_path, weighted

SLOTS: tuple[Slot, ...] = ("high", "low", "single")
log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    _add_several(parser)
    defaults = ShipOptions()
    add = parser.add_argument
    add(
        "--high",
        type=lora_path,
        metavar="FILE",
        help="LoRA of the high noise expert: a file, or the folder of a checkpoint or of a run",
    )
    add("--low", type=lora_path, metavar="FILE", help="LoRA of the low noise expert")
    add("--single", type=lora_path, metavar="FILE", help="LoRA of a single model (Wan 2.1, TI2V-5B)")
    choices = "; ".join(f"{name}: {text}" for name, text in WEIGHTS.items())
    add("--weights", choices=WEIGHTS, default="last", help=f"of a run, which to take (%(default)s). {choices}")
    add(
        "--average-width",
        type=float,
        default=AVERAGE_WIDTH,
        metavar="SHARE",
        help="of the average, as a share of the way from the first checkpoint to the last (%(default)s)",
    )
    for slot in SLOTS:
        add(f"--second-{slot}", type=lora_path, metavar="FILE", help=f"another LoRA, merged into that of --{slot}")
    add("--second-strength", type=float, default=defaults.second_strength, help="of the second LoRAs (%(default)s)")
    add("--out", type=Path, required=True, metavar="FOLDER", help="folder for the files, such as ComfyUI/models/loras")
    add("--name", default=defaults.name, help="start of the file names (%(default)s)")
    add("--precision", choices=PRECISIONS, default=defaults.precision, help="number format of the files (%(default)s)")
    add("--key-style", choices=KEY_STYLES, default=defaults.key_style, help="names of the tensors (%(default)s)")
    add("--rank", type=int, default=defaults.rank, help="lower the rank to this; 0: keep it (%(default)s)")
    add("--author", default=defaults.author, help="written into the files")
    add("--description", default=defaults.description, help="written into the files")


def _add_several(parser: argparse.ArgumentParser) -> None:
    defaults = MergeOptions()
    add = parser.add_argument
    add("files", type=weighted, nargs="*", metavar="FILE=STRENGTH", help="LoRAs of one expert to merge into one")
    methods = "; ".join(f"{name}: {text}" for name, text in METHODS.items())
    add("--method", choices=METHODS, default=defaults.method, help=f"how they are merged (%(default)s). {methods}")
    add(
        "--energy",
        type=float,
        metavar="SHARE",
        help="keep the fewest singular values that hold this share, such as 0.99",
    )
    add(
        "--density", type=float, default=defaults.density, help="share of numbers that TIES and DARE keep (%(default)s)"
    )
    add("--seed", type=int, default=defaults.seed, help="of what DARE drops (%(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda:0, ... (%(default)s)")


def run(options: argparse.Namespace) -> int:
    """Write the files, and say what they are."""
    if options.files:
        return _merge_several(options)
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


def _merge_several(options: argparse.Namespace) -> int:
    if any(getattr(options, f"{start}{slot}") for slot in SLOTS for start in ("", "second_")):
        raise ConfigError("files are given both alone and with --high, --low or --single: merge in one way at a time.")
    check_files(*(path for path, _ in options.files))
    merging = MergeOptions(
        method=options.method, rank=options.rank, energy=options.energy, density=options.density, seed=options.seed
    )
    writing = FileOptions(name=options.name, precision=options.precision, key_style=options.key_style)
    display = Display()
    written = merge_files(
        options.out,
        options.files,
        merging,
        writing,
        device=resolve_device(options.device),
        progress=lambda done, total: display.update("merge", done, total),
    )
    display.close()
    for line in written.lines:
        log.info("%s", line)
    return 0


def _chosen(given: Path, options: argparse.Namespace) -> Path:
    run = RunFolder(given.resolve())
    lora = lora_of_run(run) if run.is_there else given.resolve()
    chosen = choose_lora(lora, options.weights, options.average_width)
    if chosen.note:
        log.info("%s", chosen.note)
    return chosen.path


def _sources(options: argparse.Namespace) -> dict[Slot, Source]:
    sources: dict[Slot, Source] = {}
    for slot in SLOTS:
        first, second = getattr(options, slot), getattr(options, f"second_{slot}")
        if second and not first:
            raise ConfigError(f"--second-{slot} is given without --{slot}: there is nothing to merge it into.")
        if first:
            sources[slot] = Source(_chosen(first, options), second)
    return sources
