import pytest
from wan_train.core.errors import ConfigError
from wan_train.tools.nano.methods import BASELINE, COMMON, METHODS, Method
from wan_train.tools.nano.settings import flat


def test_each_method_is_known_by_its_name_and_differs_from_what_it_is_compared_with():
    for name, method in METHODS.items():
        assert name == method.name
        if name == BASELINE:
            continue
        other = METHODS[method.against]
        assert any(method.settings(stage) != other.settings(stage) for stage in ("high", "low")), name


def test_what_is_set_for_one_expert_is_not_set_for_the_other():
    method = Method("x", "y", {"high:optimizer.learning_rate": "0.5", "adapter.rank": "3"})
    high, low = (flat(method.settings(stage)) for stage in ("high", "low"))
    assert (high["optimizer.learning_rate"], high["adapter.rank"]) == ("0.5", "3")
    assert (float(low["optimizer.learning_rate"]), low["adapter.rank"]) == (
        float(COMMON["optimizer.learning_rate"]),
        "3",
    )
    with pytest.raises(ConfigError, match="x sets mid:loop"):
        Method("x", "y", {"mid:loop.steps": "3"}).settings("high")


def test_no_two_methods_are_one():
    found = [str([method.settings(stage) for stage in ("high", "low")]) for method in METHODS.values()]
    assert len(set(found)) == len(found)
