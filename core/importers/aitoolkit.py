"""AI-Toolkit: its job, as YAML or as the JSON that its page shows.

Read from its source: toolkit/config_modules.py (options and their defaults), jobs/process/BaseSDTrainProcess.py,
extensions_built_in/diffusion_models/wan22, toolkit/buckets.py, toolkit/dataloader_mixins.py, toolkit/lora_special.py.
"""

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from ..paths import shown
from .aitoolkit_rest import REST
from .aitoolkit_rules import RULES
from .answers import SetupOption
from .declared import number, truth
from .families import family_of
from .kinds import SetupKind
from .reading import Reading, Training, leaves, number_in, with_defaults
from .texts import Parsed

__all__ = ["REST", "RULES", "read"]

_ARCHES = {
    "wan22_14b": "t2v-a14b",
    "wan22_14b_i2v": "i2v-a14b",
    "wan22_5b": "ti2v-5b",
}
# What AI-Toolkit takes where nothing is said, and this trainer does not (toolkit/config_modules.py).
_DEFAULTS = {
    "network.linear": 4,
    "network.linear_alpha": None,
    "train.steps": 1000,
    "train.lr": 1e-6,
    "train.timestep_type": "sigmoid",
    "save.dtype": "float16",
}
_DATASET_DEFAULTS = {
    "datasets.resolution": 512,
    "datasets.num_frames": 1,
    "datasets.shrink_video_to_frames": True,
    "datasets.buckets": True,
}


def read(files: Mapping[SetupKind, list[Parsed]]) -> Reading:
    """The options of the job; ConfigError for several jobs, or several processes in one."""
    jobs = files["aitoolkit job"]
    if len(jobs) > 1:
        raise ConfigError(f"{shown(jobs[1].name)} is a second job: bring one at a time.")
    (job,) = jobs
    processes = job.data["config"]["process"]
    if len(processes) != 1 or not isinstance(processes[0], dict):
        raise ConfigError(
            f"{shown(job.name)} has {len(processes)} processes, and one is trained: bring a job with one."
        )
    given = [_given(job.name, path, value) for path, value in leaves(job.data)]
    datasets = 1 + max((item.dataset for item in given if item.dataset is not None), default=-1)
    given = with_defaults(given, _DEFAULTS)
    for index in range(datasets):
        given = with_defaults(given, _DATASET_DEFAULTS, index)
    model = processes[0].get("model")
    model = model if isinstance(model, dict) else {}
    family, problem = _family(model)
    notes = _notes(given)
    if family == "i2v-a14b":  # its class for I2V has the boundary of T2V (wan22_14b_i2v_model.py)
        notes.append(
            "AI-Toolkit divides the noise levels of image-to-video between the experts at 875 of 1000, and Wan 2.2 does at 900."
            " Here it is 900. To divide them as AI-Toolkit does, set boundary to 0.875."
        )
    return Reading(family, [_training(given, model)], [], max(1, datasets), notes, problem)


def _given(file: str, path: str, value: Any) -> SetupOption:
    """config.process[0].train.lr is train.lr; of a dataset, datasets.num_frames; of the rest config.name, meta.version."""
    index = number_in(path, "datasets")
    key = path.removeprefix("config.process[0].")
    if index is not None:
        key = key.replace(f"datasets[{index}]", "datasets")
    if key == "network.rank":  # config_modules.py: an older name, which goes first
        key = "network.linear"
    return SetupOption(key=key, name=path, value=value, file=file, dataset=index)


def _training(given: list[SetupOption], model: dict[str, Any]) -> Training:
    """Both experts in one training, unless one of them is switched off."""
    kwargs = model.get("model_kwargs")
    kwargs = kwargs if isinstance(kwargs, dict) else {}
    high, low = kwargs.get("train_high_noise", True), kwargs.get("train_low_noise", True)
    stage = None if bool(high) == bool(low) else "high" if high else "low"
    return Training(given, stage if str(model.get("arch", "")).startswith("wan22_14b") else None)


def _family(model: dict[str, Any]) -> tuple[str, str]:
    arch, name = str(model.get("arch", "")).split(":")[0], str(model.get("name_or_path", ""))
    if arch in _ARCHES:
        return _ARCHES[arch], ""
    found = family_of(name)
    if arch.startswith("wan21"):
        kind = "i2v" if "i2v" in arch else "t2v"
        if not found.startswith(kind):
            found = "i2v-14b-480p" if kind == "i2v" else "t2v-1.3b" if "1" in arch.removeprefix("wan21") else "t2v-14b"
        return found, ""
    if found and (arch == "" or arch.startswith("wan")):
        return found, ""
    return "", f"the job trains {shown(arch or name or 'no model')}, and Wan models alone can be trained here."


def _notes(given: list[SetupOption]) -> list[str]:
    if not any(item.dataset is not None for item in given):
        return ["Neither folder nor size is in the job: it has no datasets."]
    notes = [
        "AI-Toolkit takes for each file the multiples of 16 around its own shape. Here it goes to the nearest of a list of"
        " shapes with that area, so that a side can differ by 16 pixels."
    ]
    if any(item.key == "datasets.num_frames" and (number(item.value) or 0) > 1 for item in given):
        notes.append(
            "AI-Toolkit repeats frames of a clip that has fewer than num_frames. Here it is shortened (short_clips)."
        )
    if any(item.key == "datasets.shrink_video_to_frames" and not truth(item.value) for item in given):
        notes.append(
            "AI-Toolkit takes every n-th frame of a clip: it makes 15 a second of 30 where 16 are asked for. Here clips are"
            " brought to the exact rate (fps)."
        )
    return notes
