"""`wantrain import`: make a recipe and a workflow of the files of another trainer, and say what becomes of each option."""

import argparse
import json
import sys
from pathlib import Path

from ...errors import ConfigError
from ...importers.report import report
from ...importers.setup import Imported, import_setup
from ...importers.texts import read_sources
from ...importers.workflow import workflow
from ...launch.exits import EXIT_FINISHED
from ...recipe.recipe import recipe_tables, recipe_to_toml


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add = parser.add_argument
    add(
        "files",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="all files of one setup: musubi-tuner's dataset.toml and command lines (.sh, .bat, .txt), AI-Toolkit's job (.yaml,"
        " .json), SimpleTuner's config.json with multidatabackend.json, diffusion-pipe's two .toml",
    )
    add("--recipe", type=Path, metavar="FILE", help="where the recipe goes, .toml or .json (default: NAME.toml)")
    add("--workflow", type=Path, metavar="FILE", help="write a workflow for ComfyUI too, a .json")


def run(options: argparse.Namespace) -> int:
    """Print the report, and write what was asked for; nothing that is there is written over."""
    imported = import_setup(read_sources(options.files))
    path = options.recipe or Path(f"{imported.recipe.name}.toml")
    texts = {path: _recipe_text(path, imported)}
    notes: list[str] = []
    if options.workflow:
        graph, notes = workflow(imported)
        texts[options.workflow] = json.dumps(graph, indent=1, ensure_ascii=False) + "\n"
    for target in texts:
        if target.exists():
            raise ConfigError(f"{target} exists: choose another name with --recipe or --workflow, or remove it.")
    sys.stdout.write(report(imported))
    if notes:
        sys.stdout.write("\nOf the workflow:\n" + "".join(f"  - {note}\n" for note in notes))
    for target, text in texts.items():
        try:
            with target.open("x", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise ConfigError(
                f"{target} can't be written ({error.strerror or error}): choose another place."
            ) from error
    sys.stdout.write(f"\nwrote {' and '.join(map(str, texts))}\n")
    sys.stdout.write(f"{'When that is done, train' if imported.to_fill else 'Train'} with: wantrain train {path}\n")
    return EXIT_FINISHED


def _recipe_text(path: Path, imported: Imported) -> str:
    if path.suffix.lower() == ".json":
        return json.dumps(recipe_tables(imported.recipe), indent=2, ensure_ascii=False) + "\n"
    lines = [f"# From a {imported.trainer} setup, by: wantrain import"]
    lines += [f"# To do: {sentence}" for sentence in imported.to_fill]
    return "\n".join(lines) + f"\n\n{recipe_to_toml(imported.recipe)}"
