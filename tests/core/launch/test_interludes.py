"""What is left of a run beside its steps: by its job and plan, corrected by what came, and only what is still to come."""

from dataclasses import replace

import pytest
from wan_train.core.launch.follow import FollowedRun
from wan_train.core.launch.pace import Pace
from wan_train.core.plan.rhythm import rhythms_of
from wan_train.core.settings.previews import PreviewOptions
from wan_train.core.train.run_folder import RunFolder

PLAN = {
    "event": "plan",
    "sizes": {"8": {"share": 1.0, "seconds": 1.0, "first_seconds": 0.0}},
    "beside": {
        "validations": {"count": 4, "seconds": 2.0},
        "previews": {"count": 2, "seconds": 30.0},
        "checkpoints": {"count": 5, "seconds": 0.5},
    },
}


@pytest.fixture
def long(job):
    """300 steps; validations at 0, 100, 200 and 300, previews at 250 and 300, checkpoints every 50."""
    held = replace(job.data.samples[0], name="held", held_out=True)
    loop = replace(job.loop, steps=300, validate_every=100, checkpoint_every=50)
    data = replace(job.data, samples=(*job.data.samples, held))
    return replace(job, data=data, loop=loop, previews=PreviewOptions(every=250))


def pace_of(job, *events):
    pace = Pace(job and rhythms_of(job))
    for event in events:
        pace.add(event)
    return pace


def start(step=0):
    return {"event": "start", "step": step}


def steps(first, last):
    return [{"event": "step", "step": n, "seconds": 1.0, "tokens": 8} for n in range(first, last + 1)]


def event(kind, step, seconds=None):
    return {"event": kind, "step": step, **({} if seconds is None else {"seconds": seconds})}


def test_before_the_first_step_all_of_it_is_to_come(long):
    assert pace_of(long, PLAN, start()).left(300) == pytest.approx(300 + 4 * 2 + 2 * 30 + 5 * 0.5)
    assert pace_of(long, PLAN, start(), event("validation", 0, 2.0)).left(300) == pytest.approx(300 + 3 * 2 + 60 + 2.5)


def test_what_came_takes_the_place_of_what_was_expected(long):
    """Of some, the first has more to do; a preview lasts until it has been shown."""
    pace = pace_of(long, PLAN, start(), event("validation", 0, 5.0), *steps(1, 100))
    assert pace.left(200) == pytest.approx(200 + 3 * 5 + 2 * 30 + 4 * 0.5)
    pace.add(event("validation", 100, 3.0))
    assert pace.left(200) == pytest.approx(200 + 2 * 3 + 2 * 30 + 4 * 0.5)
    pace.add(event("checkpoint", 100, 4.0))
    assert pace.left(200) == pytest.approx(200 + 2 * 3 + 2 * 30 + 3 * 4)
    for more in (*steps(101, 250), event("checkpoint", 250, 4.0), event("preview", 250, 18.0)):
        pace.add(more)
    assert pace.left(50) == pytest.approx(50 + 3 + 18)
    pace.add(event("shown", 250, 20.0))
    assert pace.left(50) == pytest.approx(50 + 3 + 20)


def test_after_the_last_step_what_is_done_then_is_still_to_come(long):
    pace = pace_of(long, PLAN, start(), *steps(1, 300))
    assert pace.left(0) == 2 + 30
    pace.add(event("validation", 300, 2.5))
    assert pace.left(0) == 30
    pace.add({"event": "status", "message": "step 300: sampling a preview"})
    assert pace.left(0) == 30
    pace.add(event("preview", 300, 25.0))
    pace.add(event("checkpoint", 300, 26.0))  # beside the preview
    assert pace.left(0) == 0


def test_a_run_that_goes_on_has_only_what_is_still_to_come(long):
    pace = pace_of(long, PLAN, start(200), *steps(201, 201))
    assert pace.left(99) == pytest.approx(99 + 2 + 2 * 30 + 0.5)
    assert pace_of(long, PLAN, start(250)).left(50) == pytest.approx(50 + 2 + 30)  # that of step 250 was made


def test_a_step_that_went_on_without_leaves_nothing_behind(long):
    """A validation whose sample is gone does not come."""
    pace = pace_of(long, PLAN, start(), event("validation", 0, 2.0), *steps(1, 101))
    assert pace.left(199) == pytest.approx(199 + 2 * 2 + 60 + 3 * 0.5)


def test_without_a_plan_only_what_has_come_is_known(long):
    pace = pace_of(long, start(), *steps(1, 100))
    assert pace.left(200) == 200
    pace.add(event("validation", 100, 3.0))
    assert pace.left(200) == 200 + 2 * 3


def test_without_the_job_and_in_older_diaries_nothing_is_said_of_it(long):
    assert pace_of(None, PLAN, start(), *steps(1, 100)).left(200) == 200
    older = {name: value for name, value in PLAN.items() if name != "beside"}
    assert pace_of(long, older, start(), *steps(1, 100), event("checkpoint", 100)).left(200) == 200
    damaged = pace_of(long, {**PLAN, "beside": {"previews": 7}}, start(), *steps(1, 100))
    assert damaged.left(200) == 200


def test_another_plan_is_believed_again(long):
    pace = pace_of(long, PLAN, start(), event("validation", 0, 9.0), *steps(1, 99))
    slower = {**PLAN["beside"], "validations": {"count": 4, "seconds": 4.0}}
    pace.add({**PLAN, "step": 99, "beside": slower})
    for more in steps(100, 102):
        pace.add(more)
    assert pace.left(198) == pytest.approx(198 + 2 * 4 + 60 + 3 * 0.5)


def test_a_followed_run_knows_it_from_its_job_and_says_it(comfy, long, tmp_path):
    """Also while the preview at the end is sampled."""
    from wan_train.nodes.told import facts, progress_line

    job = replace(long, loop=replace(long.loop, steps=6, validate_every=3, checkpoint_every=4))
    job = replace(job, previews=PreviewOptions(every=6, steps=3, shift=1.0))
    folder = RunFolder(tmp_path / "runs" / "run")
    folder.path.mkdir(parents=True)
    folder.write_job(job)
    run = FollowedRun(folder, 6, job=job)
    run.pace.add(PLAN)
    run.worker.process.wait()
    said = []
    for one in run.worker.poll():
        run.history.add(one)
        run.pace.add(one)
        if "sampling a preview" in one.get("message", ""):
            said += [facts(run)[0], progress_line("cat", run), run.words()]
    run.end()
    assert said[:2] == ["30 s left", "cat: step 6 of 6, 30 s left"]
    assert "  30 s left  " in said[2]
    assert "  0 s left  " in run.words()
