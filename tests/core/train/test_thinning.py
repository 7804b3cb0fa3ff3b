"""What a chart shows of a curve: the part asked for, and averages that know what came before it."""

import math

from wan_train.core.train.thinning import averages, drawn


def test_a_part_has_the_averages_of_the_whole():
    steps, values = list(range(1, 101)), [math.sin(i) + 2 for i in range(100)]
    whole, part = drawn(steps, values, 10), drawn(steps, values, 10, first=40, last=60)
    assert [step for step, _ in part.points] == list(range(40, 61))
    assert part.averages == [point for point in whole.averages if 40 <= point[0] <= 60]


def test_without_a_window_the_averages_are_the_values():
    found = drawn([1, 5], [0.5, 0.25], 1)
    assert found.averages == found.points == [(1, 0.5), (5, 0.25)]


def test_what_is_not_finite_is_passed_over():
    found = drawn([1, 2, 3], [1.0, math.nan, 3.0], 2)
    assert [step for step, _ in found.points] == [1, 3]
    assert all(math.isfinite(value) for _, value in found.averages)


def test_averages_are_corrected_for_their_start():
    assert all(math.isclose(value, 3.0) for value in averages([3.0, 3.0, 3.0], 10))


def test_a_part_with_no_step_is_empty():
    assert drawn([1, 2, 3], [1.0, 1.0, 1.0], 5, first=10, last=20).points == []
