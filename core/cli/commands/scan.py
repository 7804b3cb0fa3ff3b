"""`wantrain scan`: say what a dataset folder holds, and everything that would be dropped, cut or changed."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from ...data.counting import describe_lengths
from ...data.join import join
from ...data.report import describe_dataset
from ...data.scan import scan_folder
from ...recipe.lengths import planned_lengths
from ...recipe.recipe import apply_changes, read_recipe
from ...serial import from_dict
from ...settings.dataset import DatasetOptions
from ..arguments import add_changes, check_folder_or_recipe
from ..display import Display


@dataclass(frozen=True)
class _Nothing:
    """No setting but those of the dataset belongs to the scan of a folder."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("path", type=Path, metavar="FOLDER|RECIPE", help="a dataset folder, or a recipe (.toml, .json)")
    add_changes(parser)


def run(options: argparse.Namespace) -> int:
    """Print the report on standard output."""
    display, recipe = Display(), None
    if options.path.is_dir():
        tables = apply_changes({"dataset": {}}, options.changes)
        wanted = [(options.path, from_dict(DatasetOptions, tables.pop("dataset"), "dataset"))]
        from_dict(_Nothing, tables, "a scan of a folder")
    else:
        check_folder_or_recipe(options.path)
        recipe = read_recipe(options.path, options.changes)
        wanted = [(Path(source.folder), source.options) for source in recipe.datasets]
    found = []
    for folder, settings in wanted:
        found.append(scan_folder(folder, settings, progress=lambda done, total: display.update("scan", done, total)))
        display.end("scan")
    dataset = join(found)
    lengths = None if recipe is None else describe_lengths(planned_lengths(recipe, dataset))
    sys.stdout.write(describe_dataset(dataset, limit=None, lengths=lengths) + "\n")
    return 0
