"""`wantrain look`: write a page that shows each frame and caption as the model will see it, and what looks wrong."""

import argparse
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data.join import join
from ...data.scan import scan_folder
from ...encoders.text import read_tokenizer
from ...errors import WanTrainError
from ...facts import LatentFormat
from ...look.page import check_place, strips_beside, write_page
from ...look.tokens import Tokenizer
from ...look.view import Looker
from ...recipe.recipe import Recipe, apply_changes, read_recipe
from ...serial import from_dict
from ...settings.dataset import DatasetOptions
from ...wan.checkpoint import inspect
from ...words import counted
from ..arguments import add_changes, check_folder_or_recipe
from ..display import Display


@dataclass(frozen=True)
class _Nothing:
    """No setting but those of the dataset belongs to the look at a folder."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("path", type=Path, metavar="FOLDER|RECIPE", help="a dataset folder, or a recipe (.toml, .json)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the page to write, with its pictures in a folder beside it (default: NAME_look.html here)",
    )
    add_changes(parser)


def run(options: argparse.Namespace) -> int:
    """Write the page; where it is and what looks wrong, on standard output."""
    recipe = None
    if options.path.is_dir():
        tables = apply_changes({"dataset": {}}, options.changes)
        wanted = [(options.path, from_dict(DatasetOptions, tables.pop("dataset"), "dataset"))]
        from_dict(_Nothing, tables, "a look at a folder")
    else:
        check_folder_or_recipe(options.path)
        recipe = read_recipe(options.path, options.changes)
        wanted = [(Path(source.folder), source.options) for source in recipe.datasets]
    name = recipe.name if recipe else options.path.resolve().name
    out = (options.out or Path(f"{name}_look.html")).absolute()
    check_place(out, [folder for folder, _ in wanted])
    display = Display()
    index = (strips_beside(out).root if recipe is None else recipe.cache_path) / "files.json"
    found = []
    for folder, settings in wanted:
        found.append(
            scan_folder(
                folder, settings, index_path=index, progress=lambda done, total: display.update("scan", done, total)
            )
        )
        display.end("scan")
    dataset = join(found)
    looker = Looker(store=strips_beside(out), tokenizer=_tokenizer(recipe), latent_format=_latents(recipe))
    done = 0

    def shown(event: dict[str, Any]) -> dict[str, Any]:
        nonlocal done
        if event["event"] == "seen":
            done += len(event["items"])
            display.update("look", done, len(dataset.samples))
        return event

    written = write_page(out, map(shown, looker.look(dataset)))
    display.close()
    sys.stdout.write(_summary(written) + f"{out}\n")
    return 0


def _summary(written: dict[str, Any]) -> str:
    """How many samples have which trouble, a line each."""
    kinds: dict[int, set[str]] = {i: {badge["kind"] for badge in s["badges"]} for i, s in enumerate(written["samples"])}
    for event in written["told"]:
        for item in event.get("items", []):
            kinds[item["i"]] |= {badge["kind"] for badge in item["badges"]}
    counts = Counter(kind for of_sample in kinds.values() for kind in of_sample)
    return "".join(f"- {kind}: {count} of {counted(len(kinds), 'sample')}\n" for kind, count in counts.most_common())


def _tokenizer(recipe: Recipe | None) -> Tokenizer | None:
    """That of the recipe's text encoder; None where there is none to be read: the page then says that it estimates."""
    if recipe is None or not recipe.models.text_encoder:
        return None
    try:
        return read_tokenizer(Path(recipe.models.text_encoder))
    except WanTrainError:
        return None


def _latents(recipe: Recipe | None) -> LatentFormat:
    """Those of the recipe's model; of Wan 2.1 and A14B where it can't be read. The page can show the others."""
    for path in recipe.models.stages.values() if recipe else ():
        try:
            return inspect(Path(path)).config.latent_format
        except WanTrainError:
            continue
    return "wan2.1"
