"""musubi-tuner: its dataset TOML, its command lines (also in scripts), and a TOML file of options (--config_file).

Read from its source: training/parser_common.py (options and their defaults), training/trainer_base.py (what they do),
dataset/config_utils.py and dataset/datasources.py (datasets), wan_train_network.py, networks/lora.py.
"""

import ast
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConfigError
from ..words import counted
from .answers import SetupOption
from .common import SLOWED
from .families import FAMILIES, family_of, stage_of
from .kinds import SetupKind
from .musubi_rest import REST
from .musubi_rules import RULES
from .reading import Reading, Training, with_defaults
from .shell import command_of, commands
from .texts import Parsed

__all__ = ["REST", "RULES", "read"]

_TRAIN = re.compile(r"(wan_train_network|wan_train)(\.py)?$")
_CACHE = re.compile(r"wan_cache_(latents|text_encoder_outputs)(\.py)?$")
_LISTS = ("optimizer_args", "network_args", "lr_scheduler_args")  # each holds name=value, several times
# What musubi takes where nothing is said, and this trainer does not.
_DEFAULTS = {
    "network_dim": 4,
    "network_alpha": 1,
    "learning_rate": 2e-6,
    "timestep_sampling": "sigma",
}
_DATASET_DEFAULTS = {"resolution": [960, 544], "enable_bucket": False}
_TASKS = {
    "t2v-1.3B": "t2v-1.3b", "t2v-14B": "t2v-14b", "t2i-14B": "t2v-14b", "t2v-A14B": "t2v-a14b", "i2v-A14B": "i2v-a14b",
    "flf2v-14B": "flf2v-14b",
}  # fmt: skip


def read(files: Mapping[SetupKind, list[Parsed]]) -> Reading:
    """The options of all files; ConfigError where none trains Wan."""
    shared = [given for file in files.get("musubi dataset", []) for given in _datasets(file)]
    count = 1 + max((given.dataset for given in shared if given.dataset is not None), default=-1)
    runs, cached = _commands(files.get("musubi commands", []))
    runs += [_options(file) for file in files.get("musubi options", [])]
    trainings = [_training(run) for run in runs]
    family, problem = _family(runs)
    notes = _notes(files, runs, shared)
    if problem is None and len(trainings) > 1:
        _check_stages(trainings, family)
    shared += cached
    for index in range(count):
        shared = with_defaults(shared, _DATASET_DEFAULTS, index)
        if any(g.dataset == index and g.key in ("video_directory", "video_jsonl_file") for g in shared):
            shared = with_defaults(shared, {"target_frames": [1]}, index)
    shared += [given for file in files.get("musubi list", []) for given in _list(file)]
    shared += [given for file in files.get("musubi prompts", []) for given in _prompts(file)]
    return Reading(family, trainings, shared, count, notes, problem or "")


def _prompts(file: Parsed) -> list[SetupOption]:
    """A line each, as hv_train_network.py reads them."""
    lines = [line.strip() for line in file.text.splitlines()]
    return [
        SetupOption(key="prompts_file", name=f"line {number}", value=line, file=file.name)
        for number, line in enumerate(lines, start=1)
        if line and not line.startswith("#")
    ]


def _datasets(file: Parsed) -> list[SetupOption]:
    """[general], and each of [[datasets]], to which the general ones go down."""
    found = [
        SetupOption(key=key, name=f"general.{key}", value=value, file=file.name)
        for key, value in _table(file.data.get("general")).items()
    ]
    for index, table in enumerate(file.data["datasets"]):
        found += [
            SetupOption(key=str(key), name=f"datasets[{index}].{key}", value=value, file=file.name, dataset=index)
            for key, value in _table(table).items()
        ]
    known = ("general", "datasets")
    return found + [
        SetupOption(key=str(key), name=str(key), value=value, file=file.name)
        for key, value in file.data.items()
        if key not in known
    ]


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _commands(files: Sequence[Parsed]) -> tuple[list[list[SetupOption]], list[SetupOption]]:
    """(the options of each training command, those of the commands that make caches)."""
    runs, cached = [], []
    for file in files:
        for words in commands(file.name, file.text):
            if (command := command_of(words, _TRAIN)) is not None:
                launched = [
                    SetupOption(
                        key=f"accelerate.{_bare(name)}", name=f"accelerate {name}", value=_value(values), file=file.name
                    )
                    for name, values in command.launcher
                ]
                runs.append(launched + _given(file.name, command.options))
            elif (command := command_of(words, _CACHE)) is not None:
                program = posixpath.basename(command.program.replace("\\", "/"))
                cached += [
                    SetupOption(key=f"cache.{g.key}", name=f"{program} {g.name}", value=g.value, file=file.name)
                    for g in _given(file.name, command.options)
                ]
            elif words[0].startswith("--"):  # a command's options alone
                runs.append(_given(file.name, command_of(["wan_train_network.py", *words], _TRAIN).options))  # type: ignore[union-attr]
    return runs, cached


def _given(file: str, options: Sequence[tuple[str, tuple[str, ...]]]) -> list[SetupOption]:
    found = []
    for name, values in options:
        key = _bare(name)
        if key in _LISTS and values:
            for value in values:
                inner, _, text = value.partition("=")
                found.append(SetupOption(key=f"{key}.{inner}", name=f"{name} {inner}", value=_literal(text), file=file))
        else:
            found.append(SetupOption(key=key, name=name, value=_value(values), file=file))
    return found


def _bare(name: str) -> str:
    return name.lstrip("-").replace("-", "_")


def _value(values: tuple[str, ...]) -> Any:
    return True if not values else values[0] if len(values) == 1 else list(values)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)  # plain values alone; nothing is run
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text


def _options(file: Parsed) -> list[SetupOption]:
    """A file of options: sections are left out of the names, as musubi does."""
    found = []
    for key, value in file.data.items():
        for name, inner in value.items() if isinstance(value, dict) else ((key, value),):
            values = inner if isinstance(inner, list) else [inner]
            if name in _LISTS:
                found += _given(file.name, [(name, tuple(map(str, values)))])
            else:
                found.append(SetupOption(key=_bare(str(name)), name=str(name), value=inner, file=file.name))
    return found


def _training(run: list[SetupOption]) -> Training:
    values = {given.key: given.value for given in run}
    defaults = dict(_DEFAULTS)
    if "max_train_epochs" not in values and "max_train_steps" not in values:
        defaults["max_train_steps"] = 1600
    if {"min_timestep", "max_timestep"} & set(values) and "preserve_distribution_shape" not in values:
        defaults["preserve_distribution_shape"] = False
    if values.get("timestep_sampling") == "shift" and "discrete_flow_shift" not in values:
        defaults["discrete_flow_shift"] = 1.0
    given = with_defaults(run, defaults)
    has_both = "dit_high_noise" in values
    return Training(given, None if has_both else _stage(values), {"has_both": has_both})


def _stage(values: Mapping[str, Any]) -> Any:
    """An expert by its window of timesteps, else by its file's name."""
    low, high = (_number(values.get(name)) for name in ("min_timestep", "max_timestep"))
    if low is not None and low >= 500:
        return "high"
    if high is not None and high <= 950 and not low:
        return "low"
    return stage_of(str(values.get("dit", ""))) or stage_of(str(values.get("output_name", "")))


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _family(runs: Sequence[Sequence[SetupOption]]) -> tuple[str, str | None]:
    if not runs:
        return "t2v-a14b", None
    tasks = {str(given.value) for run in runs for given in run if given.key == "task"} or {"t2v-14B"}
    if len(tasks) > 1:
        return (
            "",
            f"the command lines have the tasks {' and '.join(sorted(tasks))}: bring those of one model at a time.",
        )
    (task,) = tasks
    if task in _TASKS:
        return _TASKS[task], None
    if task == "i2v-14B":
        dit = next((str(given.value) for run in runs for given in run if given.key == "dit"), "")
        found = family_of(dit)
        return (found if found.startswith("i2v-14b") else "i2v-14b-480p"), None
    return "", f"--task is {task}, and such a model can't be trained here: there are {', '.join(_TASKS)} and i2v-14B."


def _check_stages(trainings: Sequence[Training], family: str) -> None:
    stages = [training.stage for training in trainings]
    if len(trainings) > 2 or len(set(stages)) != len(stages) or None in stages:
        raise ConfigError(
            f"there are {len(trainings)} training commands, and which expert each of them trains can't be told: bring one for"
            " each expert of Wan 2.2, with --min_timestep and --max_timestep, or bring one at a time."
        )
    if not FAMILIES[family].has_experts:
        raise ConfigError(f"there are {len(trainings)} training commands for a single model: bring one at a time.")


def _notes(files: Mapping[SetupKind, list[Parsed]], runs: Sequence[Any], shared: Sequence[SetupOption]) -> list[str]:
    notes = []
    if not runs:
        notes.append(
            "Your files hold the dataset alone. The rest has its defaults, for Wan 2.2 T2V A14B: bring the command line too."
        )
    if runs and "musubi dataset" not in files:
        notes.append(
            "The command line names a dataset file (--dataset_config): bring it too, it holds folder and sizes."
        )
    kinds = [{g.key for g in shared if g.dataset == i} for i in {g.dataset for g in shared}]
    if any("image_directory" in kind for kind in kinds) and any("video_directory" in kind for kind in kinds):
        notes.append(
            "An image dataset of musubi-tuner takes the pictures of a folder alone, a video dataset the clips. Here a dataset"
            " takes all files of its folder: keep pictures and clips in folders of their own."
        )
    if any(kind & {"video_directory", "video_jsonl_file"} and "source_fps" not in kind for kind in kinds):
        notes.append(f"musubi-tuner takes the frames of a clip as they come unless source_fps is set. {SLOWED}")
    return notes


def _list(file: Parsed) -> list[SetupOption]:
    """Lines of image_path or video_path, and caption: told as one option, since they are data."""
    paths = [str(item.get("image_path") or item.get("video_path") or "") for item in file.data]
    folders = {posixpath.dirname(path.replace("\\", "/")) for path in paths if path}
    return [
        SetupOption(key="list", name=f"{counted(len(paths), 'line')}", value=sorted(folders), file=file.name, dataset=0)
    ]
