"""The worker as a process of its own: by hand from any folder, and followed by a parent."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from wan_train.core.errors import START_AGAIN, RunError
from wan_train.core.gpu_failure import GpuFailedError
from wan_train.core.launch.ahead import worker_environment
from wan_train.core.launch.exits import EXIT_ERROR, EXIT_FINISHED, EXIT_STOPPED
from wan_train.core.launch.process import Worker
from wan_train.core.launch.worker import train
from wan_train.core.processes import this_machine
from wan_train.core.train.events import EventWriter, read_history
from wan_train.core.train.loop import Trainer
from wan_train.core.train.run_folder import RunFolder
from wan_train.core.train.run_plan import RunPlan
from wan_train.tests import warm
from wan_train.tests.core.launch.faulty import Gate

PACK = Path(__file__).resolve().parents[3]
PATIENCE_S = 300.0


@pytest.fixture
def run(tmp_path, job):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.write_job(job)
    return folder


def long(run, job):
    run.write_job(replace(job, loop=replace(job.loop, steps=100_000)))


def await_step(run, step):
    end = time.monotonic() + PATIENCE_S
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


def test_comfyuis_allocator_is_not_that_of_a_training():
    """ComfyUI's cuda_malloc.py sets it for itself, and with that for what it starts."""
    old, growing = "PYTORCH_CUDA_ALLOC_CONF", {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}

    def allocator(value, windows):
        found = worker_environment({old: value}, windows=windows)
        return {name: text for name, text in found.items() if name.endswith("ALLOC_CONF")}

    assert allocator("backend:cudaMallocAsync", windows=False) == growing
    assert allocator("backend:cudaMallocAsync", windows=True) == {}
    kept = {old: "max_split_size_mb:64"}
    assert allocator("max_split_size_mb:64,backend:cudaMallocAsync", windows=False) == kept
    assert allocator("backend: cudaMallocAsync,max_split_size_mb:64", windows=True) == kept


def test_by_hand_from_another_folder(run, tmp_path, cold):
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
    result = warm.run("train", tmp_path)
    assert result.returncode == EXIT_ERROR
    assert "is " + str(tmp_path) + " a run folder?" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(os.name == "nt", reason="Ctrl+C is sent otherwise on Windows")
def test_ctrl_c_keeps_a_checkpoint(run, job):
    long(run, job)
    process = warm.start("train", run.path)
    await_step(run, 3)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_S) == EXIT_STOPPED
    history = read_history(run.events_path)
    assert history.state == "stopped"
    assert run.checkpoints()[-1][0] == max(history.losses)


def test_it_stops_with_a_checkpoint_when_its_parent_dies(run, job):
    """The parent's death closes the worker's standard input."""
    long(run, job)
    worker = Worker(run)
    await_step(run, 3)
    worker.process.stdin.close()
    assert worker.process.wait(PATIENCE_S) == EXIT_STOPPED
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


def test_a_gpu_that_fails_ends_the_process_and_the_next_goes_on(run, job, monkeypatch):
    """As with a driver that was reset: from then on each call to the GPU gives the same error, also those that clean up."""
    whole = RunFolder(run.path.with_name("whole"))
    whole.path.mkdir()
    whole.write_job(job)
    assert train(whole.path) == EXIT_FINISHED

    failed, step, take_off = [], Trainer.train_step, RunPlan._take_off

    def fail():
        raise getattr(torch, "AcceleratorError", RuntimeError)("CUDA error: unspecified launch failure\nSearch for it.")

    def train_step(self):
        if self.step == 3:
            failed.append("step")
            fail()
        return step(self)

    def clean(self):
        if failed:
            failed.append("cleaning")
            fail()
        take_off(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", train_step)
        patch.setattr(RunPlan, "_take_off", clean)
        with pytest.raises(GpuFailedError):
            train(run.path)
    assert failed == ["step", "cleaning"]
    history = read_history(run.events_path)
    assert history.state == "error"
    assert history.message.startswith(
        "the device cpu failed after step 3 (CUDA error: unspecified launch failure). Possible causes: the driver was reset"
    )
    assert "The checkpoint of step 2 is kept" in history.message
    assert history.about == START_AGAIN
    assert [step for step, _ in run.checkpoints()] == [2]
    worker = Worker(run)  # another process: nothing of the failure is left
    assert worker.process.wait(PATIENCE_S) == EXIT_FINISHED, worker.log_tail(30)
    same, other = (load_file(each.finished_lora(6)) for each in (run, whole))
    assert all(torch.equal(same[name], other[name]) for name in other)


def first_checkpoint(run):
    end = time.monotonic() + PATIENCE_S
    while not run.checkpoints():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.skipif(os.name == "nt", reason="a folder with open files can't be deleted on Windows")
def test_a_folder_deleted_while_it_is_trained_in_is_one_sentence(run, job):
    """Told by the worker to who follows it, and by the command to who started that."""
    long(run, job)
    printed = run.path.with_name("printed.log")
    with printed.open("wb") as log:
        process = warm.start("train", run.path, stdout=log, stderr=subprocess.STDOUT)
    await_step(run, 3)
    shutil.rmtree(run.path, ignore_errors=True)
    while run.path.exists():  # what was written meanwhile
        shutil.rmtree(run.path, ignore_errors=True)
    assert process.wait(PATIENCE_S) == EXIT_ERROR
    said = printed.read_text()
    assert f"the run folder {run.path} was deleted while it was trained in: start again to begin anew." in said
    assert "Traceback" not in said


@pytest.mark.skipif(os.name == "nt", reason="open files can't be deleted on Windows")
def test_what_is_deleted_of_a_folder_is_made_anew(job, tmp_path):
    job = replace(job, loop=replace(job.loop, steps=12, checkpoint_every=5))
    loras = {}
    for name in ("", "checkpoints", "events.jsonl", "job.json", ".lock"):
        run = RunFolder(tmp_path / f"without {name}")
        run.path.mkdir()
        gate = Gate(run.path.parent / f"gate {name}", update=7)
        run.write_job(gate.on_the_way_of(job))
        worker = Worker(run, environment=gate.environment)
        gate.await_run()
        assert [step for step, _ in run.checkpoints()] == [5]
        if name:
            path = run.path / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        gate.open()
        assert worker.process.wait() == EXIT_FINISHED, name
        worker.kill()
        assert (run.path / name).exists()
        loras[name] = load_file(run.finished_lora(12))
    whole = loras[""]
    for name, lora in loras.items():
        assert all(torch.equal(lora[key], whole[key]) for key in whole), name


@pytest.mark.skipif(os.name == "nt", reason="a folder with open files can't be renamed on Windows")
def test_a_deleted_folder_ends_the_worker_with_its_own_error(run, job, tmp_path):
    long(run, job)
    worker = Worker(run)
    first_checkpoint(run)
    run.path.rename(tmp_path / "elsewhere")
    assert worker.process.wait() == EXIT_ERROR
    worker.kill()
    said = (tmp_path / "elsewhere" / run.log_path.name).read_text()
    assert f"the run folder {run.path} was deleted" in said


def test_a_folder_that_holds_more_steps_than_its_job_says_is_refused(run, job):
    for step in (1, 9):
        EventWriter(run.events_path).write("step", step=step, loss=0.5)
    with pytest.raises(RunError, match=r"holds a training of 9 steps, but its job.json says 6: raise steps there"):
        train(run.path)


def test_temporaries_of_dead_processes_are_swept_at_the_start(run, job):
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    left = []
    for folder in (run.path, run.path / "previews", run.checkpoints_path):
        folder.mkdir(exist_ok=True)
        left.append(folder / f".x.safetensors.{dead.pid}.{this_machine()}0123abcd.tmp")
        left[-1].write_bytes(b"half")
    alive = run.path / f".x.safetensors.{os.getpid()}.{this_machine()}0123abcd.tmp"
    alive.write_bytes(b"half")
    run.write_job(replace(job, model=replace(job.model, identity="0" * 32)))
    with pytest.raises(Exception, match="its content changed"):
        train(run.path)
    assert [path for path in (*left, alive) if path.exists()] == [alive]


def test_a_worker_that_cannot_be_started_is_one_sentence(run, tmp_path):
    with pytest.raises(RunError, match=r"can't be started .* must be there"):
        Worker(run, python=str(tmp_path / "no python"))
    with pytest.raises(RunError, match=r"worker.log cannot be written"):
        Worker(RunFolder(tmp_path / "absent"))


@pytest.mark.skipif(os.name == "nt", reason="users by number are POSIX")
def test_locks_of_devices_where_there_is_no_user_and_no_temporary_folder(monkeypatch, tmp_path):
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    command = [sys.executable, "-c", LOCK_OF_NOBODY, str(PACK)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert result.stdout.split() == ["wantrain-54321-cpu.lock", "No", "usable", "temporary"]


LOCK_OF_NOBODY = """
import os, sys, tempfile
sys.path.insert(0, sys.argv[1])
import wantrain
wantrain.load_pack()
import torch
from wan_train.core.launch.worker import device_lock
from wan_train.core.errors import RunError
if os.getuid() == 0:
    os.setuid(54321)
else:
    os.getuid = lambda: 54321
tempfile.tempdir = sys.argv[1]
print(device_lock(torch.device("cpu")).path.name)
tempfile.tempdir = None
tempfile._candidate_tempdir_list = lambda: ["/proc"]
try:
    device_lock(torch.device("cpu"))
except RunError as error:
    print(" ".join(str(error).split()[:3]))
"""
