"""Rules and words that several trainers share."""

import re
from typing import Any

from ..errors import ConfigError
from ..settings.loop import LoopOptions
from ..words import counted
from .answers import Answer, Context, Rule, SetupOption, changed, either, mapped, not_needed, not_supported
from .declared import PEERS, choice_of, declared, exists, number, truth, whole

PLAN = "left to the plan, which chooses what makes the steps fast and fits into your GPU."
ONE_PROCESS = (
    "which GPUs train is said by 'device': all of them with 'all'; two GPUs train both experts at the same time."
)
LOADING = "latents and captions are read ahead from the cache."
CACHES = "the caches lie in the folder 'work', and are found by the content of your files."
NO_UPLOAD = "a training uploads nothing; a command of its own pushes the finished LoRA afterwards."
OWN_LOG = "every run keeps its own log, which the node draws as a curve."
TRACKERS = (
    "every run keeps its own log. An import turns no tracker on: set TensorBoard, Weights & Biases or a webhook in [track] or"
    " on the training node."
)
SLOWED = (
    "A clip of another rate than the model's is learnt too fast or too slow there; here it keeps its speed, as it is brought to"
    " the rate of the dataset (fps). For its frames as they come, set fps to the clip's own rate."
)
RESUMES = "a run that is started again goes on from its newest checkpoint by itself."
NOT_DELETED = "your files are never deleted."


def needless(why: str, *keys: str) -> dict[str, Rule]:
    """Rules for options that nothing has to be said for."""
    return dict.fromkeys(keys, lambda _context, _given: not_needed(why))


def absent(why: str, *keys: str) -> dict[str, Rule]:
    """Rules for options that can't be done, whatever they say. A key "name.*" is for all that lies in a table."""
    return dict.fromkeys(keys, lambda _context, _given: not_supported(why))


def unsupported(why: str, *keys: str) -> dict[str, Rule]:
    """Rules for options that can't be done, unless they are off."""

    def rule(_context: Context, given: SetupOption) -> Answer:
        return not_needed("it is off.") if is_off(given.value) else not_supported(why)

    return dict.fromkeys(keys, rule)


def part_of(parent: str, *keys: str, on: str = "") -> dict[str, Rule]:
    """Rules for options of something that is not here: of no effect where that is off, and told where it is on."""

    def rule(context: Context, given: SetupOption) -> Answer:
        if is_off(context.get(parent, dataset=given.dataset)):
            return not_needed(f"it belongs to {on or parent}, which is off.")
        is_here = any(declared(peer, parent) for peer in PEERS)
        return not_supported(f"{on or parent} has no such option here." if is_here else f"{on or parent} is not here.")

    return dict.fromkeys(keys, rule)


def is_off(value: Any) -> bool:
    """Whether a value says that something is not used: false, none, 0 or empty."""
    return (
        value is None
        or value == []
        or value == {}
        or str(value).lower() in ("false", "none", "null", "0", "0.0", "", "no")
    )


def to_number(place: str, *, is_whole: bool = False) -> Rule:
    """A rule for a number that means the same here."""

    def rule(_context: Context, given: SetupOption) -> Answer:
        found = need_number(given.value, is_whole=is_whole)
        return Answer("mapped", {place: found})

    return rule


def need_number(value: Any, *, is_whole: bool = False) -> Any:
    """The number; ConfigError where it is none."""
    found = whole(value) if is_whole else number(value)
    if found is None:
        raise ConfigError(f"'{value}' is no {'whole ' if is_whole else ''}number.")
    return found


# Names of schedules in diffusers and transformers, and ours.
_SCHEDULES = {
    "constant_with_warmup": ("constant",),
    "cosine_with_min_lr": ("cosine",),
    "cosine_with_restarts": ("cosine_restarts", "cosine_with_restarts", "restarts"),
    "warmup_stable_decay": ("warmup_stable_decay", "stable_decay", "wsd"),
}


def schedule(value: Any) -> Answer:
    """A learning-rate schedule by its name in diffusers or transformers."""
    word = str(value)
    found = choice_of("schedule.kind", word, *_SCHEDULES.get(word.lower(), ()))
    if found is None:
        return not_supported(f"there is no schedule {word} here: the learning rate stays constant.")
    return mapped(schedule__kind=found)


def repeats(value: Any, *, add: int = 0) -> Answer:
    """How often a sample is used; `add` where a trainer counts the repeats after the first time."""
    found = need_number(value, is_whole=True)
    times = max(1, found + add)
    why = "repeats after the first time are counted there, all times here." if add else ""
    return either(why if times != found else "", dataset__repeats=times)


def betas(value: Any) -> Answer:
    """The two decays of Adam, in one list."""
    found = [number(one) for one in value] if isinstance(value, (list, tuple)) else []
    if len(found) < 2 or found[0] is None or found[1] is None:
        raise ConfigError(f"'{value}' is no pair of numbers.")
    if len(found) > 2:
        return changed("the first two are taken.", optimizer__beta1=found[0], optimizer__beta2=found[1])
    return mapped(optimizer__beta1=found[0], optimizer__beta2=found[1])


def checkpoints_by_time(_context: Context, given: SetupOption) -> Answer:
    """A rhythm of saving in minutes."""
    every = LoopOptions().checkpoint_every
    return changed(
        f"checkpoints are counted in steps or epochs here, and what {given.shown} comes to depends on your machine: there is"
        f" one every {counted(every, 'step')} (loop.checkpoint_every)."
    )


def window(context: Context, given: SetupOption, low: Any, high: Any, *, of_thousand: bool) -> Answer:
    """A window of timesteps: an expert's, which is made by the stage and the boundary here.

    `low` and `high`: as the trainer has them, None for the end of the scale. `given`: whichever of them it is.
    """
    scale = 1000 if of_thousand else 1
    ends = [None if end is None else need_number(end) / scale for end in (low, high)]
    start, end = (0.0 if ends[0] is None else ends[0]), (1.0 if ends[1] is None else ends[1])
    stage = context.facts.get("stage")
    if context.facts.get("has_experts") and stage in ("high", "low"):
        at = start if stage == "high" else end
        if (stage == "high" and end == 1.0 and 0 < start < 1) or (stage == "low" and start == 0.0 and 0 < end < 1):
            is_boundary = need_number(given.value) / scale == at
            return (
                mapped(boundary=at)
                if is_boundary
                else not_needed(f"it is an end of the {stage} noise expert's window.")
            )
        return changed(f"the {stage} noise expert is trained on its own window, from one end to the boundary.")
    if (start, end) == (0.0, 1.0):
        return not_needed("it is the whole scale.")
    return not_supported("a single model is trained on all noise levels here.")


def precision_8_or_4_bit(words: str) -> str:
    """The nearest precision to a quantization by its name elsewhere; "" for none."""
    name = words.lower()
    if "fp8" in name or "float8" in name:
        return "fp8"
    if "int8" in name or "convrot8" in name:
        return "int8"
    if "nf4" in name:
        return "nf4"
    if re.search(r"u?int4|fp4|convrot4|4bit", name):
        return "nf4"
    return ""


def gradient_checkpointing(_context: Context, given: SetupOption) -> Answer:
    """On or off without a change of the result: the plan knows better what fits."""
    return changed(f"{'on' if truth(given.value) or given.value == 'unsloth' else 'off'} there; here {PLAN}")


def loss_weight(value: Any, what: str) -> Answer:
    """What a dataset's loss counts."""
    found = need_number(value)
    if exists("dataset.loss_weight"):
        return mapped(dataset__loss_weight=float(found))
    return not_needed("it is 1.") if found == 1 else not_supported(f"a dataset has no {what} here.")
