"""What a run's diary says of its pace."""

import pytest
from wan_train.core.launch.pace import KEPT, Pace


def step(seconds):
    return {"event": "step", "seconds": seconds}


def test_the_mean_is_that_of_the_last_steps():
    pace = Pace()
    assert (pace.num_steps, pace.seconds) == (0, 0.0)
    for seconds in (100.0, *[2.0] * (KEPT - 1), 4.0):
        pace.add(step(seconds))
    pace.add({"event": "preview", "seconds": 50.0})
    assert pace.num_steps == KEPT
    assert pace.seconds == pytest.approx(2.1)


def test_a_stop_has_time_for_a_step_and_a_validation():
    """Which it does not break off; before the first step it has nothing to keep."""
    pace = Pace()
    pace.add({"event": "validation", "seconds": 80.0})
    assert pace.patience == 1.0
    pace.add(step(10.0))
    pace.add(step(5.0))
    assert pace.patience == 60 + 3 * (10 + 80)
