"""Which folder is a training's own: by content, name and length."""

import json
from dataclasses import replace

import pytest
from wan_train.core.settings.schedule import ScheduleOptions
from wan_train.core.train.claim import claim_run
from wan_train.core.train.events import EventWriter
from wan_train.core.train.find_run import began, belongs_to, find_origins, find_run, steps_done
from wan_train.core.train.run_folder import RunFolder


def make(runs, job, *, name=None, steps=(), checkpoints=(), result=None):
    """A run folder with a diary of `steps`, and checkpoints that hold nothing of use."""
    folder = RunFolder(runs / (name or f"{job.name}_{job.stage}_{job.key}"))
    folder.path.mkdir(parents=True)
    folder.write_job(job)
    events = EventWriter(folder.events_path)
    events.write("start", step=0)
    for step in steps:
        events.write("step", step=step, loss=float(step), lr=1.0, grad_norm=1.0, sigma=0.5, seconds=0.1)
    for step in checkpoints:
        path = folder.checkpoints_path / f"step-{step:08d}"
        path.mkdir(parents=True)
        for file in ("adapter.safetensors", "state.pt"):
            (path / file).write_bytes(b"x")
    if result:
        lora = folder.path / f"{job.name}.safetensors"
        lora.write_bytes(b"x")
        folder.write_result(step=result, lora=lora)
    return folder


def long(job, steps, name="test"):
    return replace(job, name=name, loop=replace(job.loop, steps=steps))


def test_a_new_training_has_a_new_folder_which_is_found_again(tmp_path, job):
    path = tmp_path / f"test_low_{job.key}"
    assert find_run(tmp_path, job).path == path
    assert not path.exists()
    assert find_run(tmp_path / "absent", job).path.name == path.name
    folder = make(tmp_path, job)
    assert find_run(tmp_path, job) == folder


def test_a_folder_under_an_older_name_is_found_by_the_name_in_its_job(tmp_path, job):
    old = make(tmp_path, job, name=f"before_low_{job.key}", steps=(1, 2), checkpoints=(2,))
    assert find_run(tmp_path, job) == old
    assert find_run(tmp_path, replace(job, name="before")).path.name == f"before_low_2_{job.key}"


def test_another_name_has_its_own(tmp_path, job):
    make(tmp_path, job, result=6)
    assert find_run(tmp_path, replace(job, name="other")).path.name == f"other_low_{job.key}"


@pytest.mark.parametrize("done", [{"checkpoints": (260,)}, {"result": 260}, {"steps": range(1, 261)}])
def test_a_shorter_training_has_its_own_and_a_longer_one_goes_on(tmp_path, job, done):
    folder = make(tmp_path, long(job, 260), **done)
    assert steps_done(folder) == 260
    assert find_run(tmp_path, long(job, 260)) == folder
    assert find_run(tmp_path, long(job, 300)) == folder
    assert find_run(tmp_path, long(job, 259)).path.name == f"test_low_259steps_{job.key}"


def test_a_shorter_one_that_nothing_was_done_beyond_stays(tmp_path, job):
    folder = make(tmp_path, long(job, 2000), steps=range(1, 31), checkpoints=(30,))
    assert find_run(tmp_path, long(job, 30)) == folder
    assert find_run(tmp_path, long(job, 29)) != folder


def test_a_folder_of_a_named_length_is_for_that_length_alone(tmp_path, job):
    make(tmp_path, long(job, 260), checkpoints=(260,))
    short = make(tmp_path, long(job, 40), name=f"test_low_40steps_{job.key}", checkpoints=(40,))
    assert find_run(tmp_path, long(job, 40)) == short
    assert find_run(tmp_path, long(job, 100)).path.name == f"test_low_100steps_{job.key}"
    assert find_run(tmp_path, long(job, 300)).path.name == f"test_low_{job.key}"


def test_the_one_that_got_furthest_is_preferred_and_a_finished_one_before_it(tmp_path, job):
    make(tmp_path, long(job, 50), name=f"a_low_{job.key}", checkpoints=(20,))
    further = make(tmp_path, long(job, 50), name=f"b_low_{job.key}", checkpoints=(30,))
    assert find_run(tmp_path, long(job, 50)) == further
    finished = make(tmp_path, long(job, 10), name=f"c_low_{job.key}", checkpoints=(10,), result=10)
    assert find_run(tmp_path, long(job, 10)) == finished


def test_the_length_is_content_where_the_schedule_falls(tmp_path, job):
    job = replace(job, schedule=ScheduleOptions(kind="cosine"))
    make(tmp_path, long(job, 260), checkpoints=(260,))
    short = long(job, 40)
    assert find_run(tmp_path, short).path.name == f"test_low_{short.key}"
    assert find_origins(tmp_path, short, find_run(tmp_path, short)) == []


@pytest.mark.parametrize("damage", [None, b"", b"{", b"5", b"null", b"\xff\xfe{}", b"[" * 100_000, b'{"name": 5}'])
def test_a_job_that_is_gone_or_damaged_leaves_the_folders_name(tmp_path, job, damage):
    folder = make(tmp_path, job, checkpoints=(2,))
    folder.job_path.unlink()
    if damage is not None:
        folder.job_path.write_bytes(damage)
    assert find_run(tmp_path, job) == folder
    assert find_run(tmp_path, replace(job, name="tes")).path.name == f"tes_low_{job.key}"
    claim = claim_run(tmp_path, job)
    claim.release()
    assert claim.folder.read_job() == job


def test_a_folder_in_which_a_longer_training_is_under_way_is_not_for_a_shorter_one(tmp_path, job):
    claim = claim_run(tmp_path, long(job, 260))
    try:
        assert not belongs_to(claim.folder, long(job, 40))
        assert find_run(tmp_path, long(job, 40)).path.name == f"test_low_40steps_{job.key}"
        assert find_run(tmp_path, long(job, 300)) == claim.folder
    finally:
        claim.release()
    assert find_run(tmp_path, long(job, 40)) == claim.folder  # nothing was done in it


def test_odd_letters_of_a_name_are_no_pattern(tmp_path, job):
    odd = replace(job, name="a+(b)")
    folder = make(tmp_path, odd)
    folder.job_path.unlink()
    assert find_run(tmp_path, odd) == folder


def test_origins_are_the_furthest_that_are_not_beyond(tmp_path, job):
    make(tmp_path, long(job, 90, "x"), checkpoints=(30, 60, 90))
    make(tmp_path, long(job, 50, "y"), checkpoints=(40, 50))
    own = find_run(tmp_path, long(job, 60))
    assert [(o.step, o.run.path.name[0]) for o in find_origins(tmp_path, long(job, 60), own)] == [
        (60, "x"), (50, "y"), (40, "y"), (30, "x"),
    ]  # fmt: skip
    own = make(tmp_path, long(job, 60), checkpoints=(50,))
    assert [o.step for o in find_origins(tmp_path, long(job, 60), own)] == [60]
    assert str(find_origins(tmp_path, long(job, 60), own)[0]) == f"starts from step 60 of the run x_low_{job.key}"


def test_the_last_step_is_found_far_from_the_diarys_end(tmp_path, job):
    folder = make(tmp_path, job, steps=(1, 2, 3))
    events = EventWriter(folder.events_path)
    for _ in range(3):
        events.write("warning", message="w" * 200_000)
    assert steps_done(folder) == 3
    events.write("start", step=2)
    assert steps_done(folder) == 2


@pytest.mark.parametrize(
    "line", [b"", b"{}\n", b"5\n", b'{"time": "x"}\n', b'{"time": 1e99}\n', b"\xff\n", b"[" * 9999]
)
def test_a_run_whose_beginning_is_not_known(tmp_path, line):
    folder = RunFolder(tmp_path)
    assert began(folder) is None
    folder.events_path.write_bytes(line)
    assert began(folder) is None
    folder.events_path.write_text(json.dumps({"event": "start", "time": 12.5}) + "\n")
    assert began(folder) == 12.5
