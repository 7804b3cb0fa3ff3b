"""Errors whose message is meant for the person at the screen: what, which value, which file, what to do."""

from collections.abc import Mapping

# What has to be done, where a page and a command line have words of their own for it: the `about` of an error.
START_AGAIN = "start again"
CONDITION_ON = "condition on"  # which frames the model is given
CLIP_VISION = "clip vision"
TOKENIZER = "tokenizer"  # of the text encoder
SAME_DATASET = "same dataset"  # for latents and for captions
ANOTHER_LORA = "another lora"
TWO_LORAS = "two loras"  # in one file


class WanTrainError(Exception):
    """Base of every error that a user can cause and mend. The message is one complete sentence.

    It says in the core's words what to do. `about` names that, so that whoever shows the error can add which input to
    connect or which option to give: see `advised`.
    """

    def __init__(self, *arguments: object, about: str = "") -> None:
        super().__init__(*arguments)
        self.about = about

    def __init_subclass__(cls) -> None:
        cls.__module__ = "WanTrain"  # shown before the name; the host's name of this module is a path on the disk


class ConfigError(WanTrainError, ValueError):
    """A setting, or a combination of settings, that cannot work."""


class DatasetError(WanTrainError):
    """A folder, file or caption that cannot be trained on."""


class ModelFileError(WanTrainError):
    """A weight file that is missing, damaged, or not what was asked for."""


class HostOnlyError(ModelFileError):
    """A LoRA that only the host's own loaders read: nothing need be wrong with it."""


class RunError(WanTrainError):
    """A run folder that cannot be used: locked by another run, unreadable, unwritable, from a newer version."""


def advised(error: WanTrainError, advice: Mapping[str, str]) -> str:
    """The error's message, and what `advice` adds to it by what the error is about."""
    added = advice.get(error.about, "")
    return f"{error} {added}" if added else str(error)
