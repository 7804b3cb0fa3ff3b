"""`wantrain run`: the simple way: asks for a dataset, a title and the models, caches, trains both experts of Wan 2.2."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ...launch.exits import EXIT_FINISHED, EXIT_STOPPED
from ...names import check_name
from ...recipe.presets import PRESETS, preset
from ...recipe.recipe import WORK_FOLDER, Recipe, recipe_from_tables, recipe_tables, recipe_to_toml
from ...train.run import RunStoppedError
from ..arguments import add_changes, add_devices
from ..display import Display
from ..find_models import SLOTS, find_model, model_folders
from ..training import train_recipe

TITLE, AUTHOR = "mylora", "authorName"
_LABELS = {"high": "high noise model", "low": "low noise model", "vae": "VAE", "text_encoder": "text encoder"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add = parser.add_argument
    add("--dataset", metavar="FOLDER", help="images and clips, each with a .txt file that holds its caption")
    add("--trigger-word", default="", metavar="WORD", help="takes the place of [trigger] in captions, or their front")
    add("--title", help=f"end of the LoRAs' names ({TITLE})")
    add("--author", help=f"written into the LoRAs ({AUTHOR})")
    for slot in SLOTS:
        add(f"--{slot.replace('_', '-')}", metavar="FILE", help=f"the {_LABELS[slot]} (default: the one in --models)")
    add("--models", type=Path, metavar="FOLDER", help="where models lie (default: the models folder of a ComfyUI)")
    add("--preset", choices=PRESETS, default=next(iter(PRESETS)), help="settings (%(default)s)")
    add("--work", default=WORK_FOLDER, metavar="FOLDER", help="for caches and runs (%(default)s)")
    add("--lora-folder", default="", metavar="FOLDER", help="for the LoRAs, such as ComfyUI/models/loras (WORK/loras)")
    add("--write", type=Path, metavar="FILE", help="write a recipe (.toml or .json) for `wantrain train`, and stop")
    add("--yes", action="store_true", help="ask nothing: take the defaults")
    add_devices(parser)
    add_changes(parser)


def run(options: argparse.Namespace) -> int:
    """Ask for what is not given, then train, or write the recipe."""
    recipe = recipe_of(options, ask=sys.stdin.isatty() and not options.yes)
    if options.write:
        _write(options.write, recipe)
        return EXIT_FINISHED
    try:
        train_recipe(recipe, options.devices, Display(), waits=options.waits)
    except RunStoppedError:
        return EXIT_STOPPED
    return EXIT_FINISHED


def recipe_of(options: argparse.Namespace, *, ask: bool) -> Recipe:
    """The preset with the answers in it."""
    chosen = preset(options.preset)
    dataset = _answer("dataset", options.dataset, None, "dataset folder", ask)
    title = check_name(_answer("title", options.title, TITLE, "title suffix", ask), "title")
    author = _answer("author", options.author, AUTHOR, "author", ask)
    tables: dict[str, Any] = chosen.tables()
    tables |= {
        "name": title,
        "author": author,
        "dataset": {**tables["dataset"], "folder": dataset, "trigger_word": options.trigger_word},
        "models": _models(options, ask),
        "lora": {
            **{stage: name.format(name=title) for stage, name in chosen.lora_names.items()},
            "folder": options.lora_folder,
        },
        "work": options.work,
    }
    return recipe_from_tables(tables, Path.cwd(), "the recipe", options.changes)


def _models(options: argparse.Namespace, ask: bool) -> dict[str, str]:
    folders = model_folders(options.models)
    files = {}
    for slot in SLOTS:
        given = getattr(options, slot)
        found = None if given else find_model(slot, folders)
        files[slot] = _answer(slot.replace("_", "-"), given, str(found) if found else None, _LABELS[slot], ask)
    return files


def _answer(flag: str, given: str | None, default: str | None, question: str, ask: bool) -> str:
    """The flag's value, or the answer to the question, or the default."""
    if given:
        return given
    if ask:
        hint = f" [{default}]" if default else ""
        default = input(f"{question[0].upper()}{question[1:]}{hint}: ").strip().strip("\"'") or default
    if not default:
        where = (
            " It was not found in the model folders either." if flag in ("high", "low", "vae", "text-encoder") else ""
        )
        raise ConfigError(f"the {question} is not known: give it with --{flag}.{where}")
    return default


def _write(path: Path, recipe: Recipe) -> None:
    if path.exists():
        raise ConfigError(f"{path} exists: choose another name, or remove it.")
    is_json = path.suffix.lower() == ".json"
    text = json.dumps(recipe_tables(recipe), indent=2, ensure_ascii=False) + "\n" if is_json else _toml(path, recipe)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} can't be written ({error.strerror or error}): choose another place.") from error
    sys.stdout.write(f"wrote {path}: edit it, and train with: wantrain train {path}\n")


def _toml(path: Path, recipe: Recipe) -> str:
    return f"# A training: change what you like, then: wantrain train {path.name}\n\n{recipe_to_toml(recipe)}"
