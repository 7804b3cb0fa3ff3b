"""SimpleTuner: config.json (also with dashes, as TOML, or as a command line), multidatabackend.json, a library of prompts.

Read from its source: simpletuner_sdk/server/services/field_registry (options and their defaults), helpers/models/wan/model.py,
helpers/models/common.py, helpers/training/optimizer_param.py, documentation/DATALOADER.md and OPTIONS.md.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConfigError
from ..paths import shown
from ..settings.stage import Stage
from .answers import SetupOption
from .common import SLOWED
from .families import FAMILIES, family_of
from .kinds import SetupKind
from .reading import Reading, Training, leaves, with_defaults
from .shell import command_of, commands
from .simpletuner_rest import REST
from .simpletuner_rules import RULES
from .texts import Parsed

__all__ = ["REST", "RULES", "read"]

_TRAIN = re.compile(r"(^|/)(simpletuner|train\.py|train\.sh)$")
_FLAVOURS = {
    "t2v-480p-1.3b-2.1": "t2v-1.3b",
    "t2v-480p-14b-2.1": "t2v-14b",
    "i2v-14b-2.1": "i2v-14b-480p",
    "i2v-14b-2.1-720p": "i2v-14b-720p",
    "i2v-14b-2.2-high": "i2v-a14b",
    "i2v-14b-2.2-low": "i2v-a14b",
    "flf2v-14b-2.1": "flf2v-14b",
    "ti2v-5b-2.2": "ti2v-5b",
}
_FIRST_FLAVOUR = "t2v-1.3b"  # what SimpleTuner trains where nothing is said
# What SimpleTuner takes where nothing is said, and this trainer does not.
_DEFAULTS = {
    "lora_rank": 16,
    "lora_alpha": None,
    "lora_dropout": 0.1,
    "learning_rate": 4e-7,
    "train_batch_size": 4,
    "caption_dropout_probability": 0.1,
    "max_grad_norm": 2.0,
    "grad_clip_method": "value",
    "flow_schedule_shift": 3.0,
    "flow_use_uniform_schedule": False,
    "validation_noise_scheduler": "unipc",
    "peft_lora_target_modules": ["to_q", "to_k", "to_v", "to_out.0"],
}
_LEAST_FRAMES = 125  # of a clip of a dataset that does not say how many


def read(files: Mapping[SetupKind, list[Parsed]]) -> Reading:
    """The options of all files; ConfigError where they train no Wan model."""
    backends = files.get("simpletuner datasets", [])
    if len(backends) > 1:
        raise ConfigError(f"{shown(backends[1].name)} is a second list of datasets: bring one.")
    shared, count = _datasets(backends[0]) if backends else ([], 0)
    for file in files.get("simpletuner prompts", []):
        shared += [
            SetupOption(key="prompt_library", name=str(name), value=text, file=file.name)
            for name, text in file.data.items()
        ]
    for file in files.get("simpletuner lycoris", []):
        shared += [
            SetupOption(key=f"lycoris.{path}", name=path, value=value, file=file.name)
            for path, value in leaves(file.data)
        ]
        if file.data.get("algo") == "tlora":
            shared = with_defaults(shared, {"lycoris.tlora_min_rank": 1})
    runs = [_config(file) for file in files.get("simpletuner config", [])]
    runs += [run for file in files.get("simpletuner commands", []) for run in _commands(file)]
    families = [_family(run) for run in runs] or [_FIRST_FLAVOUR]
    unknown = next((family for family in families if family not in FAMILIES), "")
    if unknown or len(set(families)) > 1:
        problem = unknown or "the configurations train different models: bring those of one model at a time."
        return Reading("", [], shared, max(1, count), [], problem)
    trainings = [_training(run, families[0]) for run in runs]
    stages = [training.stage for training in trainings]
    if len(trainings) > 1 and (None in stages or len(set(stages)) != len(stages)):
        raise ConfigError(
            f"there are {len(trainings)} configurations, and they are not one for each expert of Wan 2.2: bring one at a time."
        )
    notes = _dataset_notes(shared) if backends else []
    if not backends:
        notes.append("Your files name no dataset: bring multidatabackend.json too, it holds folder, size and frames.")
    if any(stages):
        notes.append(
            "SimpleTuner trains an expert of Wan 2.2 on all noise levels. Here it is trained on those that it gets when a"
            " video is made."
        )
    if not runs:
        notes.append("Your files hold the datasets alone. The training has its defaults: bring config.json too.")
    return Reading(families[0], trainings, shared, max(1, count), notes)


def _dataset_notes(shared: Sequence[SetupOption]) -> list[str]:
    notes = [
        "SimpleTuner rounds both sides of a size to multiples of 16, so that its area can be larger than asked for. Here it"
        " is never larger: most sizes that are not square have a side that is 16 pixels shorter."
    ]
    if any(item.key.startswith("video.") or item.value == "video" for item in shared):
        notes.append(f"SimpleTuner takes the frames of a clip as they come. {SLOWED}")
    return notes


def _datasets(file: Parsed) -> tuple[list[SetupOption], int]:
    """Every entry of the list: those with pictures or clips are datasets, the others places of caches."""
    found: list[SetupOption] = []
    count = 0
    for index, table in enumerate(file.data):
        is_data = str(table.get("dataset_type", "image")) in ("image", "video")
        own = [
            SetupOption(
                key=path if is_data else f"cache.{path}",
                name=f"[{index}].{path}",
                value=value,
                file=file.name,
                dataset=count if is_data else None,
            )
            for path, value in leaves(table)
        ]
        found += own
        if is_data:
            if not any(item.key == "repeats" for item in own):
                found.append(SetupOption(key="repeats", name="repeats", value=0, dataset=count))
            if not any(item.key == "crop" for item in own):
                found.append(SetupOption(key="crop", name="crop", value=False, dataset=count))
            if table.get("dataset_type") == "video" and not any(item.key == "video.num_frames" for item in own):
                found.append(  # without a file: SimpleTuner's own
                    SetupOption(key="video.num_frames", name="video.num_frames", value=_LEAST_FRAMES, dataset=count)
                )
        count += is_data
    return found, count


def _config(file: Parsed) -> list[SetupOption]:
    found = []
    for name, value in file.data.items():
        key = str(name).lstrip("-")
        if key in ("optimizer_config",) and isinstance(value, str):
            found += _pairs(key, str(name), value, file.name)
        else:
            found += [
                SetupOption(key=f"{key}{path}", name=f"{name}{path}", value=inner, file=file.name)
                for path, inner in ((f".{p}" if p else "", v) for p, v in leaves(value))
            ]
    return found


def _pairs(key: str, name: str, text: str, file: str) -> list[SetupOption]:
    """weight_decay=0.0,eps=1e-8"""
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    return [
        SetupOption(key=f"{key}.{inner.strip()}", name=f"{name} {inner.strip()}", value=value.strip(), file=file)
        for inner, _, value in pairs
    ]


def _commands(file: Parsed) -> list[list[SetupOption]]:
    runs = []
    for words in commands(file.name, file.text):
        command = command_of(words, _TRAIN) or (
            command_of(["train.py", *words], _TRAIN) if words[0].startswith("--") else None
        )
        if command is None or not command.options:
            continue
        found = []
        for name, values in command.options:
            value: Any = True if not values else values[0] if len(values) == 1 else list(values)
            key = name.lstrip("-")
            if key == "optimizer_config":
                found += _pairs(key, name, str(value), file.name)
            else:
                found.append(SetupOption(key=key, name=name, value=value, file=file.name))
        runs.append(found)
    return runs


def _value(run: Sequence[SetupOption], key: str) -> str:
    return next((str(given.value) for given in run if given.key == key), "")


def _family(run: Sequence[SetupOption]) -> str:
    """A key of FAMILIES; else the sentence that says why there is none."""
    model, flavour = _value(run, "model_family"), _value(run, "model_flavour")
    if model and model != "wan":
        return f"the configuration trains {shown(model)}, and Wan models alone can be trained here."
    if flavour:
        return _FLAVOURS.get(
            flavour, f"there is no model like {shown(flavour)} here: there are {', '.join(_FLAVOURS)}."
        )
    for key in ("pretrained_transformer_model_name_or_path", "pretrained_model_name_or_path"):
        if name := _value(run, key):
            if found := family_of(name):
                return found
            if key == "pretrained_model_name_or_path":
                return f"which Wan model {shown(name)} is can't be told: add model_flavour."
    return _FIRST_FLAVOUR


def _training(run: list[SetupOption], family: str) -> Training:
    flavour = _value(run, "model_flavour")
    stage: Stage | None = "high" if flavour.endswith("high") else "low" if flavour.endswith("low") else None
    defaults = dict(_DEFAULTS)
    if FAMILIES[family].has_experts or family == "ti2v-5b":  # helpers/models/wan/model.py, WAN_STAGE_OVERRIDES
        defaults["flow_schedule_shift"] = 5.0
    if _value(run, "loss_type") in ("huber", "smooth_l1"):
        defaults["huber_schedule"] = "snr"
    if _value(run, "max_train_steps") in ("", "0", "None") and not _value(run, "num_train_epochs"):
        defaults["num_train_epochs"] = 1
    return Training(with_defaults(run, defaults), stage)
