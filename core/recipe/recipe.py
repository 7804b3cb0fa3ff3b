"""The job file for people: a dataset, model files and settings, in TOML or JSON. Docs and an example: docs/job.toml."""

import dataclasses
import importlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ..errors import ConfigError
from ..limits import check_texts
from ..names import check_name
from ..paths import MAX_PATH, path_problem, shown
from ..safe_json import as_table
from ..serial import check_depth, from_dict, to_dict, unique_names, word_of
from ..settings.captioning import CaptioningOptions
from ..settings.dataset import Conditioning
from ..settings.files import DatasetSource, LoraFiles, ModelFiles
from ..settings.option import LATENTS, Option, Widget, all_options, option, options_of
from ..settings.previews import SamplePromptOptions
from ..settings.stage import Stage, StageSettings
from .tables import toml_lines, without_defaults

WORK_FOLDER = "wan_train"
_OF_ONE = re.compile(r"^(?:high\.|low\.|(dataset\.)\d+\.)")  # a setting of one expert, or of one dataset
_BACKSLASH = re.compile(
    r'"[^"\n\\]*\\[^"\\\n][^"\n]*"?'
)  # a backslash in double quotes, but not before a quote or another
MAX_BYTES = 256_000_000  # of a recipe or a job: one with 100000 samples has 80 MB


@dataclass(frozen=True, kw_only=True)
class Recipe(StageSettings):
    """What a person writes down about a training. All paths are absolute once it has been read from a file."""

    name: str = option(
        help="Name of the training, and start of the files' names.",
        in_key=False,
        musubi="output_name",
        aitoolkit="config.name",
    )
    author: str = option("", help="Written into the LoRAs.", in_key=False, musubi="metadata_author")
    dataset: tuple[DatasetSource, ...]  # [dataset], or several [[dataset]]
    conditioning: Conditioning = option(
        "none",
        help="For image-to-video models: which frames of each clip the model is given.",
        more="none: text-to-video. first frame: I2V models, and TI2V 5B. first and last frame: FLF2V, also Wan 2.2 I2V A14B.",
        in_key=False,  # what comes of it is: the latents of the given frames
        widget=Widget(LATENTS, "condition_on", 1),
        aitoolkit="datasets.do_i2v",
    )
    models: ModelFiles
    lora: LoraFiles = field(default_factory=LoraFiles)
    samples: SamplePromptOptions = field(default_factory=SamplePromptOptions)
    work: str = option(
        WORK_FOLDER,
        help="Folder for caches and runs; ComfyUI/output/wan_train shares them with the graph.",
        in_key=False,
    )
    high: dict[str, Any] = field(
        default_factory=dict[str, Any]
    )  # settings that differ for one expert, in the same groups
    low: dict[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name(self.name)
        check_texts("the recipe", words=(self.author, self.device))
        if not self.datasets:
            raise ConfigError("the recipe has no dataset that is enabled: give one, or set its enabled to true.")
        for stage, override in (("high", self.high), ("low", self.low)):
            if override and stage not in self.models.stages:
                raise ConfigError(f"[{stage}] has settings, but models.{stage} is not given, so they have no effect.")
        if self.shared_lora and not self.models.single:
            self._check_shared()
        for stage in self.runs:
            self.settings(stage)

    def _check_shared(self) -> None:
        if not (self.models.high and self.models.low):
            raise ConfigError(
                "shared_lora trains one LoRA through both experts, but models names one alone: give models.high and models.low."
            )
        for stage, override in (("high", self.high), ("low", self.low)):
            if override:
                raise ConfigError(
                    f"[{stage}] has settings, but with shared_lora there is one LoRA, with the same settings for both experts:"
                    " move them to the recipe's own groups, or turn shared_lora off."
                )

    @property
    def runs(self) -> dict[Stage, str]:
        """The runs that are made of it, each with its model; of both experts with one LoRA the high noise one."""
        shared = self.shared_lora and self.models.high and self.models.low
        return {"both": self.models.high} if shared else self.models.stages

    def settings(self, stage: Stage) -> StageSettings:
        """The settings of one stage: those of the recipe, with the stage's own on top."""
        whole = to_dict(self)
        shared = {f.name: whole[f.name] for f in dataclasses.fields(StageSettings)}
        override = {"high": self.high, "low": self.low}.get(stage, {})
        _check_length(override, f"[{stage}]")
        if "steps" in _table(override, "loop"):
            shared["epochs"] = 0
        return from_dict(StageSettings, _merge(shared, override, f"[{stage}]"), f"[{stage}]")

    @property
    def datasets(self) -> tuple[DatasetSource, ...]:
        """Those that are used."""
        return tuple(source for source in self.dataset if source.enabled)

    @property
    def cache_path(self) -> Path:
        """Latents and text embeddings, as the graph keeps them."""
        return Path(self.work) / "cache"

    @property
    def runs_path(self) -> Path:
        """Run folders, as the graph keeps them."""
        return Path(self.work) / "runs"

    @property
    def lora_folder(self) -> Path:
        """Where the LoRAs go."""
        return Path(self.lora.folder) if self.lora.folder else Path(self.work) / "loras"


def read_recipe(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """The recipe in a .toml or .json file, with `changes` (like "loop.seed=7") made to it.

    Relative paths are relative to the file. ConfigError, by name, for whatever is unknown, missing or of a wrong type.
    """
    return recipe_from_tables(read_tables(path), path.absolute().parent, path.name, changes)


def read_tables(path: Path) -> dict[str, Any]:
    """The content of a .toml or .json file as it stands."""
    text = read_text(path)
    try:
        is_json = path.suffix.lower() == ".json"
        tables: Any = json.loads(text, object_pairs_hook=unique_names) if is_json else _toml(path).loads(text)
    except (ValueError, RecursionError) as error:  # of both parsers
        advice = "" if path.suffix.lower() == ".json" else backslash_advice(text)
        raise ConfigError(f"{path} is not valid {path.suffix[1:].upper() or 'TOML'}: {error}.{advice}") from error
    if not isinstance(tables, dict):
        raise ConfigError(f"{path} must hold a table of settings, and not {word_of(tables)}.")
    check_depth(tables, str(path))
    return cast(dict[str, Any], tables)


def backslash_advice(text: str) -> str:
    """What to do about TOML in which a backslash stands in double quotes, where \\U and \\n mean something else; "" if none."""
    found = _BACKSLASH.search(text)
    if not found:
        return ""
    line, at = text[: found.start()].count("\n") + 1, shown(found.group(), 60)
    return f" In line {line}, {at}: a path with backslashes needs single quotes, 'C:\\data', or write C:/data."


def read_text(path: Path) -> str:
    """The text of a recipe or a job; ConfigError for what is no text file of a reasonable size."""
    problem = path_problem(path)
    try:
        if not problem and path.stat().st_size > MAX_BYTES:
            problem = f"has {path.stat().st_size / 1e6:.0f} MB, more than any recipe or job"
        if not problem:
            return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        problem = f"can't be read ({error})"
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{shown(path)} is no text in UTF-8: if it is a recipe, save it in that encoding; else name a recipe, a job.json "
            "or a run folder."
        ) from error
    raise ConfigError(f"{shown(path)} {problem}: name a recipe (.toml or .json), a job.json or a run folder.")


def recipe_from_tables(
    tables: Mapping[str, Any], folder: Path, where: str = "recipe", changes: Sequence[str] = ()
) -> Recipe:
    """A recipe from nested tables; relative paths in it are relative to `folder`."""
    data = apply_changes(tables, changes)
    check_depth(data, where)
    _check_length(data, where)
    if "dataset" in data:
        data["dataset"] = _sources(data["dataset"], where)
    for table in (data, *(_table(data, stage) for stage in ("high", "low"))):
        if _table(table, "adapter"):
            table["adapter"] = _absolute_in(table["adapter"], ("start_from", "merge_into_base"), folder)
        if _table(table, "previews"):
            table["previews"] = _absolute_in(table["previews"], ("lora", "other_lora"), folder)
        if _table(table, "crepa"):
            table["crepa"] = _absolute_in(table["crepa"], ("encoder", "vae"), folder)
        place = _table(table, "track").get("tensorboard")
        if isinstance(place, str):
            table["track"]["tensorboard"] = _absolute(place, folder)
    recipe = from_dict(Recipe, data, where)
    models = {name: _absolute(path, folder) for name, path in to_dict(recipe.models).items()}
    return dataclasses.replace(
        recipe,
        dataset=tuple(dataclasses.replace(s, folder=_absolute(s.folder, folder)) for s in recipe.dataset),
        models=ModelFiles(**models),
        lora=dataclasses.replace(recipe.lora, folder=_absolute(recipe.lora.folder, folder)),
        work=_absolute(recipe.work, folder),
    )


def _sources(data: Any, where: str) -> tuple[DatasetSource, ...]:
    """The datasets of a recipe, which has one table, or a list of them; errors count them from 1."""
    if not isinstance(data, list):
        return (_source(data, f"{where}.dataset"),)
    found: list[DatasetSource] = []
    for number, table in enumerate(cast(list[Any], data), start=1):
        try:
            found.append(_source(table, f"{where}.dataset.{number}"))
        except ConfigError as error:
            told = str(error)
            raise ConfigError(told if where in told else f"{where}.dataset.{number}: {told}") from error
    return tuple(found)


def _source(table: Any, where: str) -> DatasetSource:
    source = from_dict(DatasetSource, table, where)
    if not source.folder.strip():
        raise ConfigError(f"{where}.folder is empty: name the folder that holds the images and clips.")
    return source


def apply_changes(tables: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Tables with changes like "optimizer.learning_rate=1e-4", or "learning_rate=1e-4".

    A value is JSON, or else a text. For a setting that is a text it is that even where it looks like a number, and for one
    that is a list words with commas between.
    """
    try:
        data = json.loads(json.dumps(to_dict(dict(tables))))
    except (TypeError, ValueError) as error:  # TOML has dates, and numbers of any length
        raise ConfigError(f"the recipe holds a value that no setting has ({error}).") from error
    for change in changes:
        name, equals, text = change.partition("=")
        if not (equals and name.strip()):
            raise ConfigError(f"'{change}' is no change: write NAME=VALUE, such as optimizer.learning_rate=1e-4.")
        place = _place(name.strip())
        *groups, key = place.split(".")
        _group_at(data, groups, change)[key] = _value(text, place)
        if (groups, key) == (["loop"], "steps"):
            data.pop("epochs", None)
    return data


def _group_at(data: dict[str, Any], groups: list[str], change: str) -> dict[str, Any]:
    """The table that `groups` lead to: optimizer, high.optimizer; dataset.2 where there are several."""
    if groups[:1] == ["dataset"]:
        return _dataset_at(data, groups[1:], change)
    table = data
    for group in groups:
        inner = table.setdefault(group, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"'{change}' can't be made: {group} is a value, not a group of settings.")
        table = cast(dict[str, Any], inner)
    return table


def _dataset_at(data: dict[str, Any], numbers: list[str], change: str) -> dict[str, Any]:
    """The dataset that a change is for: the only one, or that of a number from 1 on."""
    found = data.setdefault("dataset", {})
    sources = cast(list[Any], found) if isinstance(found, list) else [found]
    if not numbers and len(sources) > 1:
        raise ConfigError(
            f"'{change}' can't be made: there are {len(sources)} datasets; say which, such as dataset.2.repeats=3."
        )
    number = ".".join(numbers) or "1"
    if number not in map(str, range(1, len(sources) + 1)):
        are = f"are {len(sources)} datasets, 1 to {len(sources)}" if len(sources) > 1 else "is one dataset"
        raise ConfigError(f"'{change}' can't be made: there {are}, and '{shown(number)}' is none of them.")
    table = sources[int(number) - 1]
    if not isinstance(table, dict):
        raise ConfigError(f"'{change}' can't be made: dataset is a value, not a group of settings.")
    return cast(dict[str, Any], table)


def _place(name: str) -> str:
    """The whole name of a setting that may be called as on its node: learning_rate, high.learning_rate."""
    stage, dot, rest = name.partition(".") if name.startswith(("high.", "low.")) else ("", "", name)
    places = {item.label: item.place for item in all_options(Recipe)}
    return f"{stage}{dot}{places.get(rest, rest)}"


def widgets_of(node: str, recipe: type[Recipe] = Recipe) -> list[tuple[Option, Widget]]:
    """The options that a node shows, in the order of their places."""
    declared = [*all_options(recipe), *options_of(CaptioningOptions)]  # captions are made before there is a recipe
    found = [(item, item.widget) for item in declared if item.widget and item.widget.node == node]
    return sorted(found, key=lambda pair: pair[1].place)


def recipe_tables(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain tables, without what has its default."""
    tables = without_defaults(recipe)
    settings = {f.name for f in dataclasses.fields(StageSettings)}
    return {name: tables[name] for name in sorted(tables, key=lambda name: name in settings)}


def recipe_to_toml(recipe: Recipe) -> str:
    """The text of a TOML file that gives the same recipe."""
    return "\n".join(toml_lines(recipe_tables(recipe), "")).strip() + "\n"


def _check_length(tables: Mapping[str, Any], where: str) -> None:
    if tables.get("epochs") and "steps" in _table(tables, "loop"):
        raise ConfigError(f"{where} has epochs and loop.steps: give one of the two.")


def _table(tables: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A group of settings; {} for anything else, which is refused by name later."""
    return as_table(tables.get(name))


def _merge(base: dict[str, Any], override: dict[str, Any], where: str) -> dict[str, Any]:
    merged = dict(base)
    for name, value in override.items():
        if isinstance(base.get(name), dict):
            if not isinstance(value, dict):
                raise ConfigError(f"{where}.{name} is {value!r}; it must be a group of settings.")
            merged[name] = {**base[name], **value}
        else:
            merged[name] = value
    return merged


def _absolute(path: str, folder: Path) -> str:
    if not path:
        return ""
    if len(path) > MAX_PATH or "\0" in path:
        raise ConfigError(f"the recipe names the path '{shown(path)}', which is none: correct it.")
    if any(ord(char) < 32 for char in path):  # "C:\new" in TOML: the \n is a line break
        raise ConfigError(
            f"the recipe names the path '{shown(path)}', which holds a line break or a tab: in double quotes a backslash"
            " and a letter mean such a sign, so write the path in single quotes, 'C:\\new', or with /."
        )
    try:
        made = folder / Path(path).expanduser()
        os.fsencode(made)
    except (RuntimeError, ValueError) as error:  # the home folder of nobody; half of a surrogate pair
        raise ConfigError(f"the recipe names the path '{shown(path)}', which can't be found ({error}).") from error
    return str(made)


def _absolute_in(table: dict[str, Any], names: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """The table with these paths made absolute; what is no text is refused by name later."""
    paths = {name: table.get(name) for name in names}
    return {**table, **{name: _absolute(path, folder) for name, path in paths.items() if isinstance(path, str)}}


def _value(text: str, place: str) -> Any:
    """What is meant by it for the setting at `place`: high.adapter.targets, dataset.2.trigger_word."""
    declared = {item.place: item for item in all_options(Recipe)}
    item = declared.get(_OF_ONE.sub(r"\1", place))
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = text.strip()
    if item is None or (isinstance(found, str) and not item.is_list):
        return found
    if item.is_list:
        return [word.strip() for word in found.split(",")] if isinstance(found, str) else found
    return text.strip() if item.kinds == (str,) and found is not None else found


def _toml(path: Path) -> Any:
    try:
        return importlib.import_module("tomllib")
    except ImportError as error:
        raise ConfigError(
            f"{path} is TOML, which Python reads from 3.11 on: write the recipe as JSON, or use Python 3.11."
        ) from error
