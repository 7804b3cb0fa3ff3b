"""One run, followed from its start to its end, by whatever has the loop."""

import pytest
from wan_train.core.errors import START_AGAIN
from wan_train.core.launch.follow import FollowedRun, memory_words
from wan_train.core.train.run_folder import RunFolder


@pytest.fixture
def folder(job, tmp_path):
    made = RunFolder(tmp_path / "runs" / "run")
    made.path.mkdir(parents=True)
    made.write_job(job)
    return made


def test_a_run_to_its_end(folder, job):
    run = FollowedRun(folder, job.loop.steps)
    assert run.words() == ""
    run.worker.process.wait()
    assert run.is_over
    assert [event["step"] for event in run.poll() if event["event"] == "step"] == [1, 2, 3, 4, 5, 6]
    assert run.end() == []
    assert run.problem() is None
    assert (run.last_step, run.history.state) == (6, "finished")
    assert run.words().startswith(f"loss {run.history.losses[6]:.4f}  lr 1.00e-02  ")
    assert run.words().endswith("0 s left")


def test_a_run_that_is_stopped_says_how_to_go_on(folder, job):
    run = FollowedRun(folder, job.loop.steps)
    assert not run.is_stopping
    run.request_stop()
    assert run.is_stopping
    run.worker.process.wait()
    run.end()
    assert not folder.stop_requested()
    problem = run.problem()
    assert str(problem) == "the run was stopped at step 0 of 6: start it again to go on."
    assert problem.about == START_AGAIN


def test_a_worker_that_dies_is_told_with_the_end_of_its_log(folder, job):
    run = FollowedRun(folder, job.loop.steps)
    run.worker.process.kill()
    run.worker.process.wait()
    run.end()
    problem = str(run.problem())
    assert "ended unexpectedly" in problem
    assert "start it again to go on from the last checkpoint" in problem
    assert str(folder.log_path) in problem


def test_an_error_of_the_worker_is_the_runs(folder, job):
    """With what it is about, so that a page can say it in its own words."""
    folder.write_job(job)
    for sample in job.data.samples:
        (folder.path.parent.parent / f"{sample.name}.latents.safetensors").unlink()
    run = FollowedRun(folder, job.loop.steps)
    run.worker.process.wait()
    run.end()
    problem = run.problem()
    assert "are gone from" in str(problem)
    assert problem.about == START_AGAIN


def test_the_memory_of_each_gpu():
    two = [{"name": "NVIDIA H200", "reserved_gib": 71.25}, {"name": "NVIDIA H200", "reserved_gib": 70.0}]
    assert memory_words({"reserved_gib": 71.25, "gpus": two}) == ["2 GPUs: 71.2, 70.0 GiB"]
    assert memory_words({"reserved_gib": 71.25}) == ["71.2 GiB"]
    assert memory_words({}) == []
    for damaged in ([1], [{"name": "x"}], [{"name": "x", "reserved_gib": "much"}], 7, "words"):
        assert memory_words({"reserved_gib": 1.0, "gpus": damaged}) == ["1.0 GiB"]
