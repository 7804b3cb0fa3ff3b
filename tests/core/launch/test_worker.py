"""The worker as a process of its own: by hand from any folder, and followed by a parent."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from wan_train.core.launch.process import Worker, worker_environment
from wan_train.core.launch.worker import EXIT_ERROR, EXIT_FINISHED, EXIT_STOPPED, train
from wan_train.core.train.events import read_history
from wan_train.core.train.run_folder import RunFolder

PACK = Path(__file__).resolve().parents[3]


@pytest.fixture
def run(tmp_path, job):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.write_job(job)
    return folder


def long(run, job):
    run.write_job(replace(job, loop=replace(job.loop, steps=100_000)))


def await_step(run, step, timeout=90.0):
    end = time.monotonic() + timeout
    while max(read_history(run.events_path).losses, default=0) < step:
        assert time.monotonic() < end, run.log_path.read_text() if run.log_path.exists() else "no log"
        time.sleep(0.05)


def test_segments_of_gpu_memory_grow_where_the_user_has_not_said_otherwise():
    def changes(given, **options):
        return dict(worker_environment(given, **options).items() - worker_environment({}, windows=True).items())

    assert changes({"A": "1"}, windows=False) == {"A": "1", "PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    assert changes({"A": "1"}, windows=True) == {"A": "1"}
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        assert changes({name: "max_split_size_mb:64"}, windows=False) == {name: "max_split_size_mb:64"}


def test_by_hand_from_another_folder(run, tmp_path):
    """As the README says it, with the working directory elsewhere and a stop request left over from before."""
    run.request_stop()
    command = [sys.executable, str(PACK / "wantrain.py"), "train", str(run.path)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == EXIT_FINISHED, result.stderr
    assert run.finished_lora(6)
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == EXIT_FINISHED
    assert sorted(read_history(run.events_path).losses) == [1, 2, 3, 4, 5, 6]


def test_a_folder_without_a_job_is_one_sentence(tmp_path):
    command = [sys.executable, str(PACK / "wantrain.py"), "train", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == EXIT_ERROR
    assert "is " + str(tmp_path) + " a run folder?" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(os.name == "nt", reason="Ctrl+C is sent otherwise on Windows")
def test_ctrl_c_keeps_a_checkpoint(run, job):
    long(run, job)
    process = subprocess.Popen([sys.executable, str(PACK / "wantrain.py"), "train", str(run.path)])
    await_step(run, 3)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == EXIT_STOPPED
    history = read_history(run.events_path)
    assert history.state == "stopped"
    assert run.checkpoints()[-1][0] == max(history.losses)


def test_it_stops_with_a_checkpoint_when_its_parent_dies(run, job):
    """The parent's death closes the worker's standard input."""
    long(run, job)
    worker = Worker(run)
    await_step(run, 3)
    worker.process.stdin.close()
    assert worker.process.wait(30) == EXIT_STOPPED
    assert run.checkpoints()[-1][0] == max(read_history(run.events_path).losses)


def test_a_second_worker_on_the_folder_is_refused(run):
    lock = run.lock()
    assert lock.acquire()
    try:
        with pytest.raises(Exception, match="is being trained by another process"):
            train(run.path)
    finally:
        lock.release()


def test_errors_reach_the_diary(run, job):
    run.write_job(replace(job, model=replace(job.model, identity="0" * 32)))
    with pytest.raises(Exception, match="its content changed"):
        train(run.path)
    history = read_history(run.events_path)
    assert history.state == "error"
    assert "its content changed" in history.message
