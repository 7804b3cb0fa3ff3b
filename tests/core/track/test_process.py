"""The trackers' process beside a run: it reads what comes, ends with the run, and its failures stand in the diary once."""

import time

from wan_train.core.launch.follow import FollowedRun
from wan_train.core.settings.track import TrackOptions
from wan_train.core.track.process import TrackProcess, await_last_words, beside
from wan_train.core.track.tracker import Tracker
from wan_train.core.train.history import read_long_history
from wan_train.core.train.run_folder import RunFolder


def until(done):
    while not done():
        time.sleep(0.05)


def test_none_is_started_where_none_is_wanted(diary):
    assert beside(diary.folder, TrackOptions()) is None


def test_it_tells_while_the_run_goes_on_and_ends_with_it(diary, hook):
    process = TrackProcess(diary.folder, TrackOptions(webhook=hook.url))
    until(lambda: _is_reading(diary, hook))
    diary.events.write("finished", lora="x")
    process.end()
    process._process.wait(60)
    assert process._process.returncode == 0
    assert hook.messages[-1]["state"] == "finished"


def _is_reading(diary, hook):
    """It is there when it tells of a start that came after its own."""
    diary.steps(1, 1)
    time.sleep(0.2)
    return bool(hook.messages)


def test_its_failure_is_a_warning_at_once_and_in_the_diary_at_the_end(diary):
    process = TrackProcess(diary.folder, TrackOptions(webhook="NO_SUCH_VARIABLE_HERE"))
    found = []
    until(lambda: found.extend(process.events()) or found)
    assert [event["event"] for event in found] == ["warning"]
    assert "NO_SUCH_VARIABLE_HERE, which holds no address here" in found[0]["message"]
    assert read_long_history(diary.folder.events_path).warnings == []  # the training process alone writes it meanwhile
    process.end()
    assert read_long_history(diary.folder.events_path).warnings == [found[0]["message"]]
    process.end()
    assert diary.folder.events_path.read_text(encoding="utf-8").count("NO_SUCH_VARIABLE_HERE") == 1


def test_a_process_that_is_killed_costs_the_run_nothing(diary, hook):
    process = TrackProcess(diary.folder, TrackOptions(webhook=hook.url))
    process._process.kill()
    process._process.wait()
    assert process.events() == []
    process.end()
    (warning,) = read_long_history(diary.folder.events_path).warnings
    assert "ended unexpectedly" in warning


def test_last_words_of_a_training_without_a_parent_are_awaited(diary, hook):
    diary.steps(1, 2)
    tracker = Tracker(diary.folder.path, TrackOptions(webhook=hook.url), [].append)
    asked = []

    def sleep(_seconds):
        asked.append(1)
        if len(asked) == 3:
            diary.events.write("stopped", message="stopped")

    await_last_words(tracker, 30, sleep)
    assert (len(asked), hook.messages[-1]["state"]) == (3, "stopped")
    await_last_words(tracker, 30, sleep)
    assert len(asked) == 3


def test_a_real_run_is_logged_and_trains_the_same_without(tmp_path, job, hook):
    """A worker trains the miniature; its trackers hear of the end, and the LoRA is that of a run without them."""
    weights = []
    trackers = {"with": TrackOptions(webhook=hook.url, tensorboard=str(tmp_path / "b")), "without": TrackOptions()}
    for name, options in trackers.items():
        folder = RunFolder(tmp_path / name / "runs" / "test_low")
        folder.path.mkdir(parents=True)
        folder.write_job(job)
        run = FollowedRun(folder, job.loop.steps, beside=beside(folder, options))
        until(lambda run=run: run.poll() is None or run.is_over)
        run.end()
        assert run.problem() is None
        weights.append(folder.finished_lora(job.loop.steps).read_bytes())
    assert weights[0][-1000:] == weights[1][-1000:]
    until(lambda: hook.messages and hook.messages[-1]["state"] == "finished")
    assert [m["state"] for m in hook.messages] == ["started", "finished"]  # it was over before the tracker was there
    assert list((tmp_path / "b" / "test_low").glob("events.out.tfevents.*"))
