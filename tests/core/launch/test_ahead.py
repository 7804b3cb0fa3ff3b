"""A training process that is started before its folder is known."""

import json
import os
import subprocess
import sys

import pytest
from wan_train.core.launch import ahead
from wan_train.core.launch.ahead import PACK, WAITS, dismiss, start_ahead, take_ahead, train_command
from wan_train.core.launch.process import Worker
from wan_train.core.train.run_folder import RunFolder


@pytest.fixture
def run(job, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.write_job(job)
    return folder


def test_it_trains_the_folder_that_it_is_told(run, cold):
    start_ahead()
    process = ahead._AHEAD.process
    worker = Worker(run)
    assert worker.process is process
    assert take_ahead(run.path, run.log_path) is None  # it is taken
    assert worker.process.wait(300) == 0, worker.log_tail()
    worker.kill()
    assert run.finished_lora(run.read_job().loop.steps)
    assert "The process has started" in worker.log_tail(100)


def test_it_ends_when_nobody_needs_it():
    done = subprocess.run(train_command(WAITS), stdin=subprocess.DEVNULL, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0


def test_it_is_dismissed_by_who_has_no_use_for_it():
    start_ahead()
    process = ahead._AHEAD.process
    assert process is not None
    dismiss()
    assert process.poll() is not None


def test_one_that_has_ended_is_not_handed_out(run):
    start_ahead()
    assert ahead._AHEAD.process is not None
    ahead._AHEAD.process.kill()
    ahead._AHEAD.process.wait()
    assert take_ahead(run.path, run.log_path) is None


def test_a_worker_of_its_own_kind_is_started_in_its_time(run):
    start_ahead()
    process = ahead._AHEAD.process
    worker = Worker(run, environment={"OMP_NUM_THREADS": "1"})
    try:
        assert worker.process is not process
    finally:
        worker.kill()
        dismiss()


def test_it_is_told_while_it_imports_and_what_fails_then_is_in_the_log(tmp_path):
    """The line is read on a thread, from the first moment on."""
    code = (
        f"import sys; sys.path.insert(0, {str(PACK)!r}); import wantrain; wantrain.load_pack()\n"
        "from wan_train.core.launch.ahead import await_folder\n"
        "await_folder()\n"
        "import os\n"
        f"while os.getcwd() != {str(tmp_path)!r}: pass\n"
        "raise ImportError('no such library')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, cwd=os.sep)
    assert process.stdin is not None
    log = tmp_path / "worker.log"
    process.stdin.write(json.dumps([str(tmp_path), str(log)]).encode() + b"\n")
    process.stdin.flush()
    assert process.wait(120) == 1
    process.stdin.close()
    assert "no such library" in log.read_text()


def test_only_the_standard_library_is_imported_for_it():
    code = (
        f"import sys; sys.path.insert(0, {str(PACK)!r}); import wantrain; wantrain.load_pack()\n"
        "import wan_train.core.cli.main\n"
        "print('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
