"""The trigger word in captions and prompts."""

import functools
import re

from .errors import ConfigError, DatasetError

_PLACEHOLDER = re.compile(r"\[trigger\]", re.IGNORECASE)
# Chinese, Japanese, Korean and Thai put no space between words (the blocks of these names in Unicode's Blocks.txt).
_NO_SPACES = "\u0e00-\u0eff\u1780-\u17ff\u2e80-\u9fff\uac00-\ud7ff\uf900-\ufaff\uff66-\uff9f"
_LETTER = rf"[^\W{_NO_SPACES}]"


def apply_trigger(caption: str, trigger_word: str, name: str, *, advice: str = "set trigger_word") -> str:
    """Put the trigger word in place of [trigger], or in front if the caption has neither; `name` is for the error.

    DatasetError for a placeholder without a trigger word, with `advice`.
    """
    trigger = " ".join(trigger_word.split())
    if has_trigger(caption):
        if not trigger:
            raise DatasetError(f"The caption of {name} contains [trigger], but no trigger word is set: {advice}.")
        return " ".join(_PLACEHOLDER.sub(lambda _: trigger, caption).split())
    if not trigger or whole_word(trigger).search(caption):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


@functools.cache
def whole_word(word: str) -> re.Pattern[str]:
    """What finds a word that is no part of a longer one. Beside letters of scripts without spaces it is a word of its own."""
    return re.compile(rf"(?<!{_LETTER}){re.escape(word)}(?!{_LETTER})")


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
