"""`wantrain run`: the simple way: asks for a recipe, a dataset, a title and the models, caches, and trains."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from ...errors import ConfigError
from ...launch.exits import EXIT_FINISHED, EXIT_STOPPED
from ...names import check_name
from ...recipe.presets import PRESETS, Preset, of_card, preset, variants
from ...recipe.recipe import WORK_FOLDER, Recipe, recipe_from_tables, recipe_tables, recipe_to_toml
from ...train.run import RunStoppedError
from ..arguments import add_changes, add_devices
from ..display import Display
from ..find_models import SLOTS, find_model, model_folders
from ..training import train_recipe

TITLE, AUTHOR = "mylora", "authorName"
_LABELS = {
    "high": "high noise model",
    "low": "low noise model",
    "single": "model",
    "vae": "VAE",
    "text_encoder": "text encoder",
}
_DEFAULT = next(iter(PRESETS))
_KINDS = {
    "images": "Anything, from captioned pictures (AI_Characters' recipe)",
    "character": "A character: a person or a figure that a word calls",
    "style": "A style: a look for any scene",
    "motion": "A motion or a camera move, from clips",
    "effect": "An image-to-video effect, for Wan 2.2 I2V",
    "quickstart": "Wan 2.1 1.3B, SimpleTuner's quick start",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add = parser.add_argument
    names = ", ".join([kind for kind in _KINDS if len(variants(kind)) > 1] + list(PRESETS))
    add(
        "--recipe",
        "--preset",
        dest="preset",
        metavar="NAME",
        help=f"what is trained, and how: {names}; of character, style, motion and effect the one for your GPU "
        f"({_DEFAULT}; docs/recipes.md)",
    )
    add("--dataset", metavar="FOLDER", help="images and clips, each with a .txt file that holds its caption")
    add("--trigger-word", metavar="WORD", help="takes the place of [trigger] in captions, or their front")
    add("--title", help=f"name of the training, in the LoRAs' names ({TITLE})")
    add("--author", help=f"written into the LoRAs ({AUTHOR})")
    for slot, label in _LABELS.items():
        add(f"--{slot.replace('_', '-')}", metavar="FILE", help=f"the {label} (default: the one in --models)")
    add(
        "--models",
        type=Path,
        metavar="FOLDER",
        help="where models lie (default: the models folder of a ComfyUI, or here)",
    )
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
    chosen = preset(_preset_name(options.preset, ask))
    if chosen is not PRESETS[_DEFAULT]:
        sys.stdout.write(f"{chosen.title}: {chosen.description}\n")
    dataset = _answer("dataset", options.dataset, None, "dataset folder", ask)
    title = check_name(_answer("title", options.title, TITLE, "name of the LoRA (title suffix)", ask), "title")
    author = _answer("author", options.author, AUTHOR, "author", ask)
    tables: dict[str, Any] = chosen.tables()
    tables |= {
        "name": title,
        "author": author,
        "dataset": {**tables["dataset"], "folder": dataset, "trigger_word": _trigger_word(options, chosen, ask)},
        "models": _models(options, chosen, ask),
        "lora": {
            **{stage: name.format(name=title) for stage, name in chosen.lora_names.items()},
            "folder": options.lora_folder,
        },
        "work": options.work,
    }
    return recipe_from_tables(tables, Path.cwd(), "the recipe", options.changes)


def _preset_name(given: str | None, ask: bool) -> str:
    """The preset that was named, or chosen from a list; of a kind, the one for the GPU."""
    name = given or (_choose() if ask else _DEFAULT)
    if name in PRESETS:
        return name
    card = of_card(name, _gpu_gb())
    return _answer("recipe", None, card, f"recipe for your GPU: {', '.join(variants(name))}", ask)


def _choose() -> str:
    """Name of a preset, or a kind of them."""
    kinds = list(_KINDS)
    for number, kind in enumerate(kinds, start=1):
        sys.stdout.write(f"  {number}  {_KINDS[kind]}\n")
    answer = input("What do you train? [1]: ").strip() or "1"
    if answer.isdecimal() and 1 <= int(answer) <= len(kinds):
        answer = kinds[int(answer) - 1]
    found = variants(answer)
    return next(iter(found)) if len(found) == 1 else answer


def _gpu_gb() -> float | None:
    """Memory of the largest GPU in GB of 2**30 bytes; None where there is none."""
    if not torch.cuda.is_available():
        return None
    sizes = [torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count())]
    return max(sizes) / 2**30


def _trigger_word(options: argparse.Namespace, chosen: Preset, ask: bool) -> str:
    """That of the flag; asked for where the recipe says that it wants one."""
    if options.trigger_word is not None or not ask or "trigger_word" not in chosen.asks:
        return options.trigger_word or ""
    return input("Trigger word: ").strip()


def _models(options: argparse.Namespace, chosen: Preset, ask: bool) -> dict[str, str]:
    folders = model_folders(options.models)
    slots = SLOTS[chosen.family]
    for slot in _LABELS:
        if slot not in slots and getattr(options, slot):
            raise ConfigError(
                f"--{slot} was given, but the recipe '{chosen.title}' trains {' and '.join(slots[:-2])}: leave it out, or "
                "choose another recipe."
            )
    files = {}
    for slot in slots:
        given = getattr(options, slot)
        found = None if given else find_model(slot, folders, chosen.family)
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
        is_model = flag.replace("-", "_") in _LABELS
        where = " It was not found in the model folders either; `wantrain download` fetches it." if is_model else ""
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
