"""The trigger word in captions and prompts."""

import re

from .errors import ConfigError, DatasetError

_PLACEHOLDER = re.compile(r"\[trigger\]", re.IGNORECASE)


def apply_trigger(caption: str, trigger_word: str, name: str) -> str:
    """Put the trigger word in place of [trigger], or in front if the caption has neither; `name` is for the error.

    DatasetError for a placeholder without a trigger word.
    """
    trigger = " ".join(trigger_word.split())
    if has_trigger(caption):
        if not trigger:
            raise DatasetError(
                f"The caption of {name} contains [trigger], but no trigger word is set: set trigger_word; or, since a "
                "regularization set has none, write a plain word there."
            )
        return " ".join(_PLACEHOLDER.sub(lambda _: trigger, caption).split())
    if not trigger or re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def has_trigger(prompt: str) -> bool:
    """Whether a trigger word has to be put in."""
    return _PLACEHOLDER.search(prompt) is not None


def fill_trigger(prompt: str, trigger_word: str, field: str = "prompt") -> str:
    """A prompt with the trigger word in place of [trigger]; without the placeholder it is left as it is.

    ConfigError, which calls the prompt `field`, for a placeholder where no trigger word is known.
    """
    trigger = " ".join(trigger_word.split())
    if not has_trigger(prompt):
        return prompt
    if not trigger:
        raise ConfigError(
            f"{field} contains [trigger], but the LoRA names no trigger word: write the word itself in its place."
        )
    return _PLACEHOLDER.sub(lambda _: trigger, prompt)
