"""From what became of each option to the tables of a recipe."""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from ..names import clean_name
from ..settings.stage import Stage
from .answers import PREVIEW, Answer, SetupOption
from .declared import exists, options_by_place
from .families import TEXT_ENCODER, Family
from .shell import VARIABLE

VARIANTS = "dataset.variants"  # a list of values: the dataset once for each of them
MODELS = "models"  # the folder that model files are looked for in, where a setup names none


class MappedValues:
    """Values as they come in, by training and by dataset."""

    def __init__(self, *, family: Family, num_datasets: int, stages: Sequence[Stage | None]) -> None:
        self.family = family
        self.stages = list(stages) or [None]
        self.settings: list[dict[str, Any]] = [{} for _ in self.stages]
        self.datasets: list[dict[str, Any]] = [{} for _ in range(max(1, num_datasets))]
        self.all_datasets: dict[str, Any] = {}
        self.preview: dict[str, Any] = {}

    def take(self, training: int | None, given: SetupOption, answer: Answer) -> None:
        """The values of one answer; `training` is None where it is for all of them."""
        for place, value in answer.values.items():
            if place.startswith(PREVIEW):  # of FURTHER too
                self.preview.setdefault(place, value)
            elif place.startswith("dataset."):
                table = self.all_datasets if given.dataset is None else self.datasets[given.dataset]
                table[place.removeprefix("dataset.")] = value
            else:
                for settings in self.settings if training is None else [self.settings[training]]:
                    settings[place] = value


def can_have_several() -> bool:
    """Whether a recipe takes several datasets."""
    return exists("dataset.enabled")


def make_tables(draft: MappedValues) -> tuple[dict[str, Any], list[str], list[str]]:
    """(the recipe's tables, what the user has to fill in, notes)."""
    to_fill: list[str] = []
    notes: list[str] = []
    places, per_stage = _by_stage(draft)
    _add_models(draft, places, to_fill)
    _add_name(places, notes)
    tables = nested(places)
    datasets = _datasets(draft, to_fill, notes)
    tables["dataset"] = datasets[0] if len(datasets) == 1 else datasets
    for stage, own in per_stage.items():
        if own:
            tables[stage] = nested(own)
    if "conditioning" not in places and draft.family.conditioning != "none":
        tables["conditioning"] = draft.family.conditioning
    return tables, to_fill, notes


def nested(places: Mapping[str, Any]) -> dict[str, Any]:
    """{"adapter.rank": 4} as {"adapter": {"rank": 4}}."""
    tables: dict[str, Any] = {}
    for place, value in places.items():
        *groups, name = place.split(".")
        table = tables
        for group in groups:
            table = table.setdefault(group, {})
        table[name] = value
    return tables


def _by_stage(draft: MappedValues) -> tuple[dict[str, Any], dict[Stage, dict[str, Any]]]:
    """What all trainings say, and what only one expert's does."""
    if len(draft.settings) == 1:
        return dict(draft.settings[0]), {}
    first, *others = draft.settings
    shared = {place: value for place, value in first.items() if all(place in o and o[place] == value for o in others)}
    own: dict[Stage, dict[str, Any]] = {}
    for stage, settings in zip(draft.stages, draft.settings, strict=True):
        rest = {place: value for place, value in settings.items() if place not in shared}
        for place in [
            p
            for p in rest
            if p.split(".")[0] in ("models", "lora", "samples", "name", "author", "conditioning", "work")
        ]:
            value = rest.pop(place)
            if place == "name" and stage in ("high", "low"):
                shared[f"lora.{stage}"] = value
            else:
                shared.setdefault(place, value)
        if stage in ("high", "low"):
            own[stage] = rest
    return shared, own


def _add_models(draft: MappedValues, places: dict[str, Any], to_fill: list[str]) -> None:
    family = draft.family
    wanted: list[Stage] = [stage for stage in family.files if stage in draft.stages] or list(family.files)
    names = {
        **{f"models.{stage}": f"diffusion_models/{family.files[stage]}" for stage in wanted},
        "models.vae": f"vae/{family.vae}",
        "models.text_encoder": f"text_encoders/{TEXT_ENCODER}",
    }
    if family.clip_vision:
        names["models.clip_vision"] = f"clip_vision/{family.clip_vision}"
    if family.files.keys() >= {"high"}:
        places.pop("models.single", None)
    for place, name in names.items():
        if not places.get(place):
            places[place] = f"{MODELS}/{name}"
            to_fill.append(
                f"{place}: your files name no such file, so it says {places[place]}. Write where you have it."
            )
        elif VARIABLE.search(str(places[place])):
            to_fill.append(f"{place}: it holds a variable of your script, {places[place]}. Write the path.")
    if places.get("precision") == "ara" and not places.get("models.recovery_adapter"):
        places["models.recovery_adapter"] = f"{MODELS}/loras/recovery_adapter.safetensors"
        to_fill.append(
            "models.recovery_adapter: the accuracy recovery adapter that you downloaded. Write where it lies."
        )


def _add_name(places: dict[str, Any], notes: list[str]) -> None:
    names = [places.get(f"lora.{stage}", "") for stage in ("high", "low")]
    if any(names) and "name" not in places:
        places["name"] = _without_stage(next(filter(None, names)))
    for place in ("name", "lora.high", "lora.low", "lora.single"):
        if place in places:
            clean = _file_name(str(places[place]))
            if clean != places[place]:
                notes.append(f"{place} is '{clean}', since '{places[place]}' can't be a file's name on every system.")
            places[place] = clean
    places.setdefault("name", "my_lora")


def _file_name(text: str) -> str:
    """A name that files can have everywhere, as near as possible to the end of a path."""
    return clean_name(PurePosixPath(text.replace("\\", "/")).name) or "my_lora"


def _without_stage(name: str) -> str:
    """WAN2.2-HighNoise_mine as WAN2.2_mine."""
    rest = re.sub(r"(high|low)[ _-]?(noise)?", "", name, flags=re.IGNORECASE)
    return re.sub(r"[ _-]{2,}", "_", rest).strip(" _-.") or name


def _datasets(draft: MappedValues, to_fill: list[str], notes: list[str]) -> list[dict[str, Any]]:
    made = []
    for index, own in enumerate(draft.datasets):
        table = {"fps": draft.family.fps, **draft.all_datasets, **own}
        if table.get("fps") == options_by_place()["dataset.fps"].default:
            del table["fps"]
        folder = str(table.get("folder", ""))
        label = "dataset.folder" if len(draft.datasets) == 1 else f"dataset {index + 1}: folder"
        if not folder:
            table["folder"] = "dataset"
            to_fill.append(f"{label}: your files name no folder with pictures or clips. Write it.")
        elif VARIABLE.search(folder):
            to_fill.append(f"{label}: it holds a variable of your script, {folder}. Write the path.")
        variants = table.pop("variants", [{}])
        made += [{**table, **variant} for variant in variants]
    for table in made:
        _fill_size(table)
    if len(made) > 1 and not can_have_several():
        notes.append(
            f"Your setup has {len(made)} datasets, and one is supported: the first is taken. Train the others by recipes of"
            " their own, or put all files into one folder."
        )
        made = made[:1]
    return [_in_order(table) for table in made]


def _fill_size(table: dict[str, Any]) -> None:
    if "width" in table:
        table.setdefault("height", table["width"])


def _in_order(table: dict[str, Any]) -> dict[str, Any]:
    order = ["dataset.folder", *options_by_place()]
    return dict(sorted(table.items(), key=lambda item: order.index(f"dataset.{item[0]}")))
