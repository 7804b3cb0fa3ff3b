"""The trigger word of a LoRA, for prompts that hold [trigger]."""

from collections.abc import Iterable
from pathlib import Path

from ..errors import WanTrainError
from ..prompts import fill_trigger, has_trigger
from ..settings.job import job_from_json
from ..wan.header import read_header

_PHRASE = "modelspec.trigger_phrase"


def trigger_word_of(lora: Path) -> str:
    """The trigger word that a LoRA's metadata names, or, for a checkpoint in a run's folder, its job; "" if none does.

    ModelFileError if the LoRA can't be read.
    """
    word = read_header(lora).metadata.get(_PHRASE, "").strip()
    job = lora.absolute().parent.parent.parent / "job.json"  # run/checkpoints/step/adapter.safetensors
    if word or not job.is_file():
        return word
    try:
        return job_from_json(job.read_bytes(), job).trigger_word
    except (WanTrainError, OSError):
        return ""


def fill_prompts(loras: Iterable[Path], **prompts: str) -> dict[str, str]:
    """The prompts with the trigger word of the LoRAs, the first that names one, in place of [trigger].

    ConfigError, which names the prompt, where none names one.
    """
    if not any(map(has_trigger, prompts.values())):
        return prompts
    word = next(filter(None, map(trigger_word_of, loras)), "")
    return {name: fill_trigger(prompt, word, name) for name, prompt in prompts.items()}
