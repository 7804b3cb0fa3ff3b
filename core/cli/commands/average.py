"""`wantrain average`: average the checkpoints of a run, or LoRA files of one run, into one LoRA (post-hoc EMA)."""

import argparse
import logging
from pathlib import Path

import torch

from ...adapters.formats import write_lora
from ...adapters.post_hoc import constant_decays, power_decays
from ...errors import ConfigError
from ...train.chosen import average_checkpoints, average_files
from ...train.run_folder import RunFolder
from ..loras import check_files

_BETA = 0.95
log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add = parser.add_argument
    add(
        "paths",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="a run folder, whose kept checkpoints are averaged; or LoRA files, the earliest first",
    )
    add("--out", type=Path, required=True, metavar="FILE", help="the LoRA to write (.safetensors)")
    way = parser.add_mutually_exclusive_group()
    way.add_argument(
        "--beta", type=float, default=_BETA, help="how much of the mean stays at each further file (%(default)s)"
    )
    way.add_argument(
        "--sigma-rel",
        type=float,
        metavar="SHARE",
        help="instead: the width of the mean, as a share of the way from the first file to the last, such as 0.2",
    )


def run(options: argparse.Namespace) -> int:
    """Write the mean, and say of what it is."""
    out: Path = options.out
    if out.suffix.lower() != ".safetensors":
        raise ConfigError(f"--out is {out}: name a file that ends in .safetensors.")
    folder = RunFolder(options.paths[0].resolve()) if options.paths[0].is_dir() else None
    if folder is not None and len(options.paths) > 1:
        raise ConfigError("one run folder is averaged alone: name nothing beside it.")
    if folder is not None and not folder.is_there:
        raise ConfigError(f"{folder.path} is no run folder: name one, or LoRA files.")
    check_files(*options.paths)
    paths: list[Path] = [path for _, path in folder.checkpoints()] if folder is not None else options.paths
    sigma = options.sigma_rel
    decays = constant_decays(len(paths), options.beta) if sigma is None else power_decays(len(paths), sigma)
    mean, metadata = average_files(paths, decays) if folder is None else average_checkpoints(folder, decays, out.stem)
    write_lora(out, mean.modules, metadata=metadata, dtype=torch.float32)
    log.info("%s is the mean of %s", out, ", ".join(map(str, paths)))
    return 0
