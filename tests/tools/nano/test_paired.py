import pytest
from wan_train.tools.nano.paired import paired


def test_the_mean_and_its_standard_error_are_those_of_the_pairs():
    found = paired({1: 0.5, 2: 0.7, 3: 0.6, 4: 0.1}, {1: 0.4, 2: 0.4, 3: 0.4, 9: 0.0})
    assert found is not None
    assert (found.mean, found.count) == (pytest.approx(0.2), 3)
    assert found.error == pytest.approx(0.0577350)  # scipy.stats.sem of .1, .3, .2
    assert (str(found), found.mark) == ("+20 ± 6 ▲", "▲")


def test_what_chance_may_be_has_no_mark():
    assert str(paired({1: 0.5, 2: 0.3}, {1: 0.4, 2: 0.4})) == "+0 ± 10"
    assert str(paired({1: 0.1, 2: 0.1}, {1: 0.4, 2: 0.5})) == "-35 ± 5 ▼"
    assert str(paired({1: 0.1}, {1: 0.4})) == "-30"
    assert paired({1: 0.1}, {2: 0.4}) is None
