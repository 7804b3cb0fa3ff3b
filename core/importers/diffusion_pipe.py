"""diffusion-pipe: its configuration and the dataset that it names, both TOML.

Read from its source: train.py (options and their defaults), utils/dataset.py, utils/common.py, models/wan/wan.py,
docs/supported_models.md.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConfigError
from ..settings.stage import Stage
from .answers import SetupOption
from .diffusion_pipe_rest import REST
from .diffusion_pipe_rules import RULES
from .families import FAMILIES, family_of, stage_of
from .kinds import SetupKind
from .reading import Reading, Training, leaves, number_in, with_defaults
from .texts import Parsed

__all__ = ["REST", "RULES", "read"]

# What diffusion-pipe takes where nothing is said, and this trainer does not.
_DEFAULTS = {
    "adapter.alpha": None,
    "model.timestep_sample_method": "logit_normal",
}
_PATHS = ("model.transformer_path", "model.ckpt_path")


def read(files: Mapping[SetupKind, list[Parsed]]) -> Reading:
    """The options of all files; ConfigError where they train no Wan model."""
    shared: list[SetupOption] = []
    count = 0
    for file in files.get("diffusion_pipe dataset", []):
        own, number = _dataset(file, count)
        shared += own
        count += number
    for index in range(count):
        shared = with_defaults(shared, {"enable_ar_bucket": False, "frame_buckets": [1]}, index)
    runs = [_config(file) for file in files.get("diffusion_pipe config", [])]
    family, problem = _family(runs)
    notes = []
    if not count:
        notes.append("Your files name no dataset: bring the file that 'dataset' names too, it holds folder and sizes.")
    if not runs:
        notes.append("Your files hold the dataset alone. The training has its defaults: bring the configuration too.")
    if problem:
        return Reading("", [], shared, max(1, count), notes, problem)
    trainings = [
        Training(with_defaults(run, _DEFAULTS), _stage(run) if FAMILIES[family].has_experts else None) for run in runs
    ]
    stages = [training.stage for training in trainings]
    if len(trainings) > 1 and (None in stages or len(set(stages)) != len(stages)):
        raise ConfigError(
            f"there are {len(trainings)} configurations, and which expert each of them trains can't be told: bring one for each"
            " expert of Wan 2.2, with min_t and max_t under [model], or bring one at a time."
        )
    return Reading(family, trainings, shared, max(1, count), notes)


def _dataset(file: Parsed, first: int) -> tuple[list[SetupOption], int]:
    """The top of the file, which goes down to each [[directory]]."""
    found = []
    for path, value in leaves(file.data):
        index = number_in(path, "directory")
        key = path if index is None else path.replace(f"directory[{index}].", "")
        if key == "path":
            key = "directory.path"
        found.append(
            SetupOption(key=key, name=path, value=value, file=file.name, dataset=None if index is None else first + index)
        )  # fmt: skip
    return found, len(file.data["directory"])


def _config(file: Parsed) -> list[SetupOption]:
    return [SetupOption(key=path, name=path, value=value, file=file.name) for path, value in leaves(file.data)]


def _value(run: Sequence[SetupOption], key: str) -> Any:
    return next((given.value for given in run if given.key == key), None)


def _stage(run: Sequence[SetupOption]) -> Stage | None:
    """An expert by its window, else by its file's name."""
    low, high = _value(run, "model.min_t"), _value(run, "model.max_t")
    if isinstance(low, (int, float)) and low >= 0.5:
        return "high"
    if isinstance(high, (int, float)) and high <= 0.95 and not low:
        return "low"
    return next(filter(None, (stage_of(str(_value(run, key) or "")) for key in _PATHS)), None)


def _family(runs: Sequence[Sequence[SetupOption]]) -> tuple[str, str]:
    found: list[str] = []
    for run in runs:
        kind = str(_value(run, "model.type"))
        if not kind.startswith("wan"):
            return "", f"the configuration trains {kind}, and Wan models alone can be trained here."
        names = [str(_value(run, key) or "") for key in _PATHS]
        family = next(filter(None, map(family_of, names)), "")
        if not family:
            named = next(filter(None, names), "it")
            return "", f"which Wan model {named} is can't be told from its name: name the file as Comfy-Org does."
        found.append(family)
    if len(set(found)) > 1:
        return "", "the configurations train different models: bring those of one model at a time."
    return (found[0] if found else "t2v-14b"), ""
