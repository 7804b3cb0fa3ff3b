"""Words that other trainers choose layers by, against the names of a model's layers themselves."""

import re

import pytest
from wan_train.core.adapters.keys import module_names
from wan_train.core.importers.layers import LEAVES, layers_with

PATHS = [f"blocks.{index}.{leaf}" for index in range(30) for leaf in LEAVES]


def by_words(words):
    return {path for path in PATHS if any(word in name for word in words for name in module_names(path))}


def by_patterns(chosen):
    return {path for path in PATHS if any(re.search(pattern, path) for pattern in chosen.patterns)}


@pytest.mark.parametrize(
    "words",
    [
        ["attn1"], ["self_attn", "ffn"], ["attn1.to_q"], ["to_k", "to_v"], ["ffn.net.0.proj"], ["blocks.7."], ["blocks.1"],
        ["blocks.12.attn1.to_q", "cross_attn"], ["blocks"], ["attn"], ["blocks.3.ffn"], ["self_attn.o"],
    ],
    ids=str,
)  # fmt: skip
def test_the_layers_are_those_whose_names_contain_a_word(words):
    chosen = layers_with(words)
    assert not chosen.unknown
    assert by_patterns(chosen) == by_words(words) != set()


def test_whole_parts_are_told_apart():
    assert layers_with(["attn1", "ffn"]).parts == ("self_attn", "ffn")
    assert layers_with(["attn1.to_q"]).parts == ()
    assert layers_with(["blocks.2.", "ffn"]).parts == ()


def test_a_word_that_is_in_no_name():
    assert layers_with(["double_blocks", "attn2"]).unknown == ("double_blocks",)
