"""[trigger] in prompts."""

import pytest
from wan_train.core.errors import ConfigError
from wan_train.core.prompts import fill_trigger


def test_the_word_takes_the_place_of_the_placeholder_alone():
    assert fill_trigger("[trigger] runs,\n[Trigger]!", " oh\\1 wx ") == "oh\\1 wx runs,\noh\\1 wx!"
    assert fill_trigger("a dog", "ohwx") == "a dog"
    assert fill_trigger("a dog", "") == "a dog"


def test_a_placeholder_without_a_word_is_refused():
    with pytest.raises(ConfigError, match=r"negative_prompt contains \[trigger\], but the LoRA names no trigger word"):
        fill_trigger("[trigger] runs", "", "negative_prompt")
