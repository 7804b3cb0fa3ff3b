"""Captions are counted as both text encoders count them, and the cut is where they cut."""

from pathlib import Path

import pytest
from wan_train.core.encoders.text import load_text_encoder, read_tokenizer
from wan_train.core.look.tokens import count_tokens

NANO = Path(__file__).resolve().parents[3] / "nano" / "text_encoders" / "wan_nano_umt5.safetensors"
LONG = "a red circle rises (slowly) " * 200


@pytest.fixture(scope="module")
def tokenizer():
    return read_tokenizer(NANO)


@pytest.fixture(scope="module")
def encoder():
    return load_text_encoder(NANO, "cpu")


@pytest.mark.parametrize("caption", ["", "a red circle", "embedding:x \\(a\\)", "  two  spaces", "an é and 日本"])
def test_short_captions_are_counted_as_they_are_encoded(tokenizer, encoder, caption):
    counted = count_tokens(caption, tokenizer)
    assert counted.num_tokens == len(encoder.tokenize(caption)[0])
    assert (counted.cut_at, counted.is_too_long, counted.is_estimate) == (None, False, False)


@pytest.mark.parametrize("start", ["", "embedding:x \\(a\\) "])
def test_a_long_caption_is_cut_where_the_encoder_cuts_it(tokenizer, encoder, start):
    caption = (start + LONG).strip()
    counted = count_tokens(caption, tokenizer)
    ids, was_cut = encoder.tokenize(caption)
    assert was_cut
    assert counted.is_too_long
    assert encoder.tokenize(caption[: counted.cut_at])[0] == ids  # what is left says the same to the model
    assert len(encoder.tokenize(caption[: counted.cut_at - 1])[0]) <= len(ids)
    assert encoder.tokenize(caption[: counted.cut_at + 12])[1]


def test_letters_that_the_tokenizer_changes_do_not_move_the_cut_far(tokenizer, encoder):
    caption = "ﬁne Ⅳ " + LONG.strip()  # NFKC writes fi and IV
    counted = count_tokens(caption, tokenizer)
    assert (
        len(tokenizer.encode(caption[: counted.cut_at])) <= 511 < len(tokenizer.encode(caption[: counted.cut_at + 12]))
    )


def test_without_a_tokenizer_it_is_an_estimate_and_says_so():
    assert count_tokens("a" * 400, None).num_tokens == 101
    assert count_tokens("日" * 150, None).num_tokens == 101
    counted = count_tokens("a" * 4000, None)
    assert (counted.is_estimate, counted.num_tokens, counted.cut_at) == (True, 1001, 2044)
    assert count_tokens("", None).num_tokens == 1
