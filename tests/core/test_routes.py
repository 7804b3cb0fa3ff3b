"""Routes as text: what is read, what is refused and with which sentence."""

import pytest
from wan_train.core.errors import ConfigError
from wan_train.core.routes import Route, kept_share, read_routes, routes_among, write_routes
from wan_train.core.settings.option import key_values
from wan_train.core.settings.tread import TreadOptions


def test_text_and_back():
    routes = read_routes("2 to 8: 0.1,  9 to -2: 0.25, ")
    assert routes == (Route(2, 8, 0.1), Route(9, -2, 0.25))
    assert read_routes(write_routes(routes)) == routes
    assert read_routes("") == ()
    assert key_values(TreadOptions()) == {}


def test_blocks_from_the_end_are_those_of_the_model():
    assert routes_among(read_routes("-3 to -2: 0.5, 1 to 2: 0.25"), 30) == (Route(27, 28, 0.5), Route(1, 2, 0.25))
    in_order = [(1, 1.0), (2, 0.75), (24, 1.0), (2, 0.5), (1, 1.0)]
    assert kept_share(read_routes("-3 to -2: 0.5, 1 to 2: 0.25"), 30) == in_order


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("2 to 5", "has '2 to 5', which is no route: write the first"),
        ("2-5: 0.5", "no route"),
        ("two to 5: 0.5", "no route"),
        ("2 to 5: 1", "leaves out 1 of the tokens from block 2 on: a share is above 0 and below 1"),
        ("2 to 5: nan", "leaves out nan of the tokens"),
        ("1 to 2: 0.5, " * 100, "more than 64 routes"),
    ],
)
def test_what_is_no_route_is_refused(text, sentence):
    with pytest.raises(ConfigError, match=f"tread_routes .*{sentence}"):
        TreadOptions(routes=text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("2 to 30: 0.5", "from block 2 to block 30 of a model with 30 blocks"),
        ("0 to 5: 0.5", "The first block of all, 0, sees all tokens"),
        ("8 to 5: 0.5", "a last one that is not before"),
        ("-40 to 5: 0.5", "from block -10 to block 5"),
        ("6 to 9: 0.5, 2 to 6: 0.5", "and one before it that ends at 6: give each block one route"),
    ],
)
def test_what_a_model_has_not_is_refused(text, sentence):
    with pytest.raises(ConfigError, match=sentence):
        routes_among(read_routes(text), 30)


def test_tokens_that_are_kept():
    """S - round(S r), as SimpleTuner counts; of each frame as many where frames differ; never none."""
    assert Route(1, 2, 0.25).num_kept(3, 6, by_frame=False) == 18 - 4
    assert Route(1, 2, 0.25).num_kept(3, 6, by_frame=True) == 3 * (6 - 2)
    assert Route(1, 2, 0.99).num_kept(1, 4, by_frame=False) == 1
