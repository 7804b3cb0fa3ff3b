"""A curve as text comes back as the points that it was."""

from wan_train.core.settings.curve import is_zero_between, read_curve, write_curve


def test_ends_that_are_left_out_are_even():
    assert read_curve("0.5:2,0.25:1") == ((0.0, 1.0), (0.25, 1.0), (0.5, 2.0), (1.0, 2.0))


def test_what_is_written_is_read_again():
    points = ((0.0, 0.5), (0.123456, 2.0), (1.0, 0.0))
    assert read_curve(write_curve(points)) == points


def test_where_it_is_zero():
    points = read_curve("0:1, 0.5:0, 0.8:0, 1:1")
    assert is_zero_between(points, 0.5, 0.8)
    assert not is_zero_between(points, 0.5, 0.81)
    assert not is_zero_between(points, 0.49, 0.8)
