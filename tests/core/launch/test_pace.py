"""What a run's diary says of its pace."""

import pytest
from wan_train.core.launch.pace import KEPT, Pace

# Two sizes of pictures and one of clips, as a run's plan promises them, and the steps as they came: the first of each
# size is compiled, which takes as long as twenty others.
PROMISED = {
    "event": "plan",
    "sizes": {
        "3600": {"share": 0.5, "seconds": 0.4, "first_seconds": 10.0},
        "3572": {"share": 0.25, "seconds": 0.4, "first_seconds": 10.0},
        "14040": {"share": 0.25, "seconds": 2.0, "first_seconds": 12.0},
    },
}


def step(seconds, tokens=None):
    return {"event": "step", "seconds": seconds, **({} if tokens is None else {"tokens": tokens})}


def pace_of(*events):
    pace = Pace()
    for event in events:
        pace.add(event)
    return pace


def test_the_middle_of_the_last_steps():
    pace = Pace()
    assert (pace.num_steps, pace.seconds, pace.left(10)) == (0, 0.0, None)
    for seconds in (100.0, *[2.0] * (KEPT - 1), 4.0):
        pace.add(step(seconds))
    pace.add({"event": "preview", "seconds": 50.0})
    assert pace.num_steps == KEPT
    assert pace.seconds == 2.0


def test_a_stop_has_time_for_a_step_and_a_validation():
    """Which it does not break off; before the first step it has nothing to keep."""
    pace = Pace()
    pace.add({"event": "validation", "seconds": 80.0})
    assert pace.patience == 1.0
    pace.add(step(10.0))
    pace.add(step(5.0))
    assert pace.patience == 60 + 3 * (10 + 80)


def test_a_run_of_one_size():
    pace = pace_of(step(20.0, 3600))
    assert pace.left(9) == 9 * 20.0  # nothing else is known yet
    pace.add(step(0.5, 3600))
    assert pace.left(8) == 8 * 0.5
    pace.add(step(0.7, 3600))
    pace.add(step(0.5, 3600))
    assert pace.left(6) == 6 * 0.5


def test_steps_that_compile_are_not_what_the_others_take():
    """A minute of work is left, and not the quarter of an hour that the mean of the first steps would say."""
    events = [
        step(19.6, 3600),
        step(17.6, 3572),
        step(0.43, 3600),
        step(15.2, 3588),
        step(0.45, 3572),
        step(0.43, 3600),
    ]
    pace = pace_of(*events, step(0.44, 3588), step(0.43, 3600))
    assert pace.left(92) == pytest.approx(92 * (4 * 0.43 + 2 * 0.45 + 2 * 0.44) / 8)


def test_the_plan_knows_the_sizes_to_come():
    pace = pace_of(PROMISED, step(25.0, 3600), step(0.5, 3600))
    # The others are off as this one is (0.5 for 0.4), and each has its first step before it, as the plan says.
    mean = 0.5 * 0.5 + 0.25 * 0.5 + 0.25 * 2.5
    chance = 1 - 0.75**98
    assert pace.left(98) == pytest.approx(98 * mean + chance * (10 + 12))
    pace.add(step(6.5, 3572))
    pace.add(step(0.5, 3572))
    # By now one is known that was not the run's very first: 6 s more than a steady step.
    assert pace.left(96) == pytest.approx(96 * mean + (1 - 0.75**96) * 6.0)
    pace.add(step(9.0, 14040))
    pace.add(step(3.0, 14040))
    assert pace.left(94) == pytest.approx(94 * (0.5 * 0.5 + 0.25 * 0.5 + 0.25 * 3.0))


def test_before_the_first_step_the_plan_is_all_there_is():
    mean = 0.5 * 0.4 + 0.25 * 0.4 + 0.25 * 2.0
    chances = 1 - 0.5**100, 1 - 0.75**100
    assert pace_of(PROMISED).left(100) == pytest.approx(100 * mean + 10 * chances[0] + 22 * chances[1])


def test_a_leaner_plan_begins_anew():
    pace = pace_of(PROMISED, step(25.0, 3600), step(0.5, 3600), step(6.5, 3572), step(0.5, 3572))
    slower = {tokens: {**size, "seconds": 2 * size["seconds"]} for tokens, size in PROMISED["sizes"].items()}
    pace.add({**PROMISED, "step": 4, "sizes": slower})
    mean = 0.5 * 0.8 + 0.25 * 0.8 + 0.25 * 4.0
    assert pace.left(10) == pytest.approx(10 * mean + (1 - 0.5**10) * 10 + (1 - 0.75**10) * 22)


def test_sizes_that_the_plan_does_not_know_count_as_they_came():
    pace = pace_of(PROMISED, step(5.0, 3600), step(0.5, 3600), step(9.0, 1800), step(0.3, 1800))
    assert pace.left(10) == pytest.approx(10 * (0.5 + 0.3) / 2)


def test_the_turns_of_another_run_on_the_device_are_part_of_what_is_left():
    pace = pace_of(step(1.0, 3600), step(1.0, 3600))
    assert pace.left(20) == 20.0
    for seconds in (40.0, 12.0, 11.0):  # in the first of them, the other run began
        pace.add(
            {"event": "turn", "time": 0.0, "step": 10, "message": "", "every": 10, "away_s": seconds, "switch_s": 1.0}
        )
    pace.add({"event": "turn", "time": 0.0, "step": 20, "message": "the other expert is being trained"})
    assert pace.left(20) == 20.0 + 13.0
    assert pace.left(21) == 21.0 + 2 * 13.0
