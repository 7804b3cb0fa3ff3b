"""[trigger] in prompts."""

import pytest
from wan_train.core.errors import ConfigError
from wan_train.core.prompts import apply_trigger, fill_trigger


def test_the_word_takes_the_place_of_the_placeholder_alone():
    assert fill_trigger("[trigger] runs,\n[Trigger]!", " oh\\1 wx ") == "oh\\1 wx runs,\noh\\1 wx!"
    assert fill_trigger("a dog", "ohwx") == "a dog"
    assert fill_trigger("a dog", "") == "a dog"


def test_a_placeholder_without_a_word_is_refused():
    with pytest.raises(ConfigError, match=r"negative_prompt contains \[trigger\], but the LoRA names no trigger word"):
        fill_trigger("[trigger] runs", "", "negative_prompt")


@pytest.mark.parametrize(
    ("caption", "word"),
    [
        ("zxqperson的肖像,電影感光照", "zxqperson"),  # as a guide in Chinese writes them
        ("一張zxqperson的肖像", "zxqperson"),
        ("小明在跑步", "小明"),
        ("zxqperson의 초상", "zxqperson"),
        ("a portrait of zxqperson.", "zxqperson"),
    ],
)
def test_a_word_that_is_there_is_not_put_in_front(caption, word):
    assert apply_trigger(caption, word, "a.mp4") == caption


@pytest.mark.parametrize("caption", ["zxqpersons run", "azxqperson", "zxqperson2", "zxqpersoné", "zxqpersonж 的"])
def test_a_part_of_a_longer_word_is_not_the_word(caption):
    assert apply_trigger(caption, "zxqperson", "a.mp4") == f"zxqperson, {caption}"
