"""Further captions of tags."""

import pytest
from wan_train.core.data.tags import tag_variants
from wan_train.core.errors import ConfigError
from wan_train.core.settings.dataset import DatasetOptions

CAPTION = "ohwx, dog, grass, running, low angle"


def tags_of(caption):
    return caption.split(", ")


def test_nothing_is_made_unless_it_is_asked_for():
    assert tag_variants(CAPTION, DatasetOptions(keep_tags=1, caption_variants=4)) == ()


def test_shuffled_captions_hold_the_same_tags_and_keep_the_first():
    made = tag_variants(CAPTION, DatasetOptions(shuffle_tags=True, keep_tags=1, caption_variants=6))
    assert len(set(made)) == 6
    assert CAPTION not in made
    for caption in made:
        assert tags_of(caption)[0] == "ohwx"
        assert sorted(tags_of(caption)) == sorted(tags_of(CAPTION))
    assert len({tags_of(caption)[1] for caption in made}) > 1


def test_dropout_leaves_out_about_so_many_and_keeps_the_order():
    caption = ", ".join(f"tag {index:03}" for index in range(400))
    (made,) = tag_variants(caption, DatasetOptions(tag_dropout=0.25, keep_tags=100, caption_variants=1))
    left = tags_of(made)
    assert left == sorted(left)
    assert left[:100] == tags_of(caption)[:100]
    assert 50 < 400 - len(left) < 100  # 75 of 300 are expected, with a deviation of 7.5


def test_a_tag_remains_when_all_would_be_left_out():
    options = DatasetOptions(tag_dropout=1.0, caption_variants=50)
    made = tag_variants(CAPTION, options)
    assert set(made) == set(tags_of(CAPTION))  # each tag alone, as no two variants are equal
    assert tag_variants(CAPTION, DatasetOptions(tag_dropout=1.0, keep_tags=2)) == ("ohwx, dog",)


def test_few_orders_give_few_captions_and_one_tag_gives_none():
    assert tag_variants("a, b", DatasetOptions(shuffle_tags=True)) == ("b, a",)
    assert tag_variants("a dog on grass", DatasetOptions(shuffle_tags=True)) == ()


def test_the_same_caption_gives_the_same_ones():
    options = DatasetOptions(shuffle_tags=True, tag_dropout=0.3)
    assert tag_variants(CAPTION, options) == tag_variants(CAPTION, options)
    assert tag_variants(CAPTION, options) != tag_variants(CAPTION.replace("dog", "cat"), options)


def test_another_separator():
    assert tag_variants("a dog; runs, fast", DatasetOptions(shuffle_tags=True, tag_separator=" ; ")) == (
        "runs, fast; a dog",
    )


def test_an_empty_separator_is_refused_where_it_matters():
    DatasetOptions(tag_separator=" ")
    with pytest.raises(ConfigError, match="tag_separator is empty"):
        DatasetOptions(tag_separator=" ", shuffle_tags=True)


def test_options_without_effect_are_told():
    assert DatasetOptions(keep_tags=2).warnings() == ["keep_tags has no effect without shuffle_tags or tag_dropout."]
    assert DatasetOptions(keep_tags=2, tag_dropout=0.1).warnings() == []
