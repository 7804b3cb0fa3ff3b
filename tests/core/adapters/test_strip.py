"""Blocks and layers that are left out."""

import pytest
from wan_train.core.adapters.strip import block_numbers, without
from wan_train.core.errors import ConfigError

MODULES = {f"blocks.{i}.{leaf}": i for i in range(12) for leaf in ("self_attn.q", "ffn.0")} | {"img_emb.proj.1": 99}


def test_blocks_are_left_out_by_number():
    left = without(MODULES, blocks="0-9, 11")
    assert list(left) == ["blocks.10.self_attn.q", "blocks.10.ffn.0", "img_emb.proj.1"]


def test_layers_are_left_out_by_pattern():
    left = without(MODULES, layers="ffn\nblocks\\.1\\.")
    assert "blocks.1.self_attn.q" not in left
    assert "blocks.11.self_attn.q" in left
    assert not any("ffn" in path for path in left)


@pytest.mark.parametrize(("text", "numbers"), [("", set()), ("3", {3}), ("0-2,7", {0, 1, 2, 7}), (" 1 - 1 ", {1})])
def test_numbers(text, numbers):
    assert block_numbers(text) == numbers


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"blocks": "a"}, "numbers and ranges"),
        ({"blocks": "9-2"}, "numbers and ranges"),
        ({"blocks": "-1"}, "numbers and ranges"),
        ({"blocks": "10-40"}, "names 12, 13, 14, ..., 40, which the LoRA does not change"),
        ({"layers": "norm"}, "found in no layer"),
        ({"layers": "("}, "no regular expression"),
        ({"layers": "."}, "leave nothing"),
    ],
)
def test_what_cannot_be_is_one_sentence(chosen, message):
    with pytest.raises(ConfigError, match=message):
        without(MODULES, **chosen)
