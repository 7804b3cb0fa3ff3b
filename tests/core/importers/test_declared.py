"""Names and values of other trainers against the declarations of the options."""

import pytest
from wan_train.core.importers.declared import by_declaration, choice_of, exists, number, options_by_place, side, whole


def test_the_declarations_decide():
    assert dict(by_declaration("musubi", "network_dim", "8").values) == {"adapter.rank": 8}
    assert dict(by_declaration("musubi", "bucket_no_upscale", True).values) == {"dataset.upscale": False}
    assert by_declaration("musubi", "network_dim", "many").outcome == "not supported"
    assert by_declaration("musubi", "nothing_like_it", 1).why == "there is no such option here."


def test_a_name_of_several_options_is_not_guessed():
    assert by_declaration("musubi", "resolution", 512).outcome == "not supported"


def test_every_dataset_option_has_its_place():
    assert {"dataset.width", "dataset.folder", "adapter.rank", "precision"} <= set(options_by_place())
    assert not exists("dataset.nothing")


@pytest.mark.parametrize(("word", "found"), [("AdamW8bit", "adamw8bit"), ("ADAMW", "adamw"), ("adam", None)])
def test_choices_whatever_their_case(word, found):
    assert choice_of("optimizer.name", word) == found


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (3, 3),
        ("1e-4", 1e-4),
        ("5", 5),
        (True, None),
        ("x", None),
        (None, None),
        (float("inf"), None),
        ("nan", None),
        ([1], None),
    ],
)
def test_numbers(value, found):
    assert number(value) == found


def test_whole_numbers_and_sides():
    assert [whole(value) for value in (3.0, "4", 2.5, 10**30)] == [3, 4, None, None]
    assert [side(value) for value in (300, 8, 960, 1)] == [304, 16, 960, 16]
