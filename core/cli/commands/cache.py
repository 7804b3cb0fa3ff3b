"""`wantrain cache`: encode what is new or changed in a recipe's dataset, so that training can start at once."""

import argparse
from pathlib import Path

from ...data.report import list_notes
from ...recipe.pipeline import cache, check_recipe, scan
from ...recipe.recipe import read_recipe
from ...words import counted
from ..arguments import add_changes
from ..display import Display


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="a recipe (.toml, .json)")
    parser.add_argument("--no-report", action="store_true", help="do not tell what happened to the files")
    add_changes(parser)


def run(options: argparse.Namespace) -> int:
    """Scan and encode."""
    recipe, display = read_recipe(options.recipe, options.changes), Display()
    check_recipe(recipe)
    dataset = scan(recipe, display, report=not options.no_report)
    cached = cache(recipe, dataset, display)
    if cached.notes and not options.no_report:
        display.say(list_notes(cached.notes, limit=None))
    num_samples, num_captions = len(cached.latents.entries), len(cached.text.entries)
    display.say(f"{counted(num_samples, 'sample')} and {counted(num_captions, 'caption')} are in {recipe.cache_path}")
    return 0
