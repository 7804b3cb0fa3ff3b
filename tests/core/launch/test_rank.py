"""Ranks as torchrun starts them, on the CPU: one run, one folder, one exit code; and what happens when one is lost."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file
from wan_train.core.launch.exits import EXIT_ERROR, EXIT_FINISHED, EXIT_LESS_MEMORY, EXIT_LOST_RANK, EXIT_STOPPED
from wan_train.core.launch.rank import Seat
from wan_train.core.launch.worker import device_lock
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.settings.parallel import ParallelOptions
from wan_train.core.train.events import EventReader, read_history
from wan_train.core.train.run_folder import RunFolder
from wan_train.tests.host_packs.warm_start import start as start_command

PACK = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


@pytest.fixture
def run(tmp_path, job):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.write_job(replace(job, loop=replace(job.loop, gradient_accumulation=2)))
    return folder


def long(run, job, **changes):
    run.write_job(replace(job, loop=replace(job.loop, steps=100_000, gradient_accumulation=2, **changes)))


class Started:
    """A run under torchrun, with what its ranks say, each in a file."""

    def __init__(self, run, logs, *, size=2, **environment):
        self.logs = logs
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
        command += ["--log-dir", str(logs), "--redirects", "3", str(PACK / "wantrain.py"), "train", str(run.path)]
        logs.mkdir()
        with (logs / "torchrun.log").open("wb") as printed:
            environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
            self.process = start_command(command, env=environment, stdout=printed, stderr=subprocess.STDOUT)

    def ranks(self):
        """By rank, the processes."""
        found = {}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            name = child.name()
            if name.startswith("rank "):  # a fork
                found[int(name.removeprefix("rank "))] = child
            elif "wantrain.py" in " ".join(child.cmdline()):
                found[int(child.environ()["RANK"])] = child
        return found

    def wait(self, patience=300):
        """What torchrun said."""
        self.process.wait(patience)
        return (self.logs / "torchrun.log").read_text()

    def said(self, rank):
        return "".join(path.read_text() for path in sorted(self.logs.rglob(f"{rank}/*.log")))

    def exit_codes(self, said):
        """Of the ranks that failed, as torchrun's report has them."""
        found = {}
        for part in said.split("rank      : ")[1:]:
            rank, _, rest = part.partition(" ")
            found[int(rank)] = int(rest.split("exitcode  : ")[1].split()[0])
        return found


@pytest.fixture
def start(run, tmp_path):
    started = []

    def act(**options):
        started.append(Started(run, tmp_path / f"logs{len(started)}", **options))
        return started[-1]

    yield act
    for each in started:
        for child in psutil.Process(each.process.pid).children(recursive=True) if each.process.poll() is None else []:
            child.kill()
        each.process.kill()
        each.process.wait()


def await_step(run, step, started, timeout=300.0):
    end = time.monotonic() + timeout
    while max(read_history(run.events_path).losses, default=0) < step:
        assert time.monotonic() < end, started.said(0) + started.said(1)
        assert started.process.poll() is None, started.said(0) + started.said(1)
        time.sleep(0.05)


def kinds(run):
    return [event["event"] for event in EventReader(run.events_path).read()]


@pytest.mark.grid(3, "several devices")
def test_a_run_to_its_end_and_again(run, start, cold):
    started = start()
    started.wait()
    assert started.process.returncode == EXIT_FINISHED, started.said(0) + started.said(1)
    assert load_file(run.finished_lora(6))
    assert sorted(read_history(run.events_path).losses) == [1, 2, 3, 4, 5, 6]
    assert kinds(run).count("start") == kinds(run).count("finished") == 1


@pytest.mark.grid(3, "several devices")
def test_who_shares_a_clip_is_chosen_at_the_start_where_the_job_leaves_it_open(run, job, start):
    """Of a step of one batch, both train it: alone, one of them would have nothing to do. Swapped blocks are held together."""
    job = replace(job, loop=replace(job.loop, gradient_accumulation=1), memory=MemoryOptions(budget_gb=4.0))
    run.write_job(replace(job, parallel=ParallelOptions()))
    key = run.read_job().key
    started = start()
    started.wait()
    assert started.process.returncode == EXIT_FINISHED, started.said(0) + started.said(1)
    events = EventReader(run.events_path).read()
    assert any(e["event"] == "status" and e["message"].startswith("2 GPUs share each clip: ") for e in events)
    (plan,) = (event for event in events if event["event"] == "plan")
    assert plan["task"]["gpus"] == {"count": 2, "context": 2, "holders": 2 if sys.platform == "linux" else 1}
    assert (run.read_job().parallel.context, run.read_job().key) == (2, key)


@pytest.mark.long
def test_a_stop_that_one_rank_hears_stops_all_at_one_step(run, job, start):
    long(run, job)
    started = start()
    await_step(run, 3, started)
    started.ranks()[1].send_signal(signal.SIGTERM)
    codes = started.exit_codes(started.wait())
    assert set(codes.values()) == {EXIT_STOPPED}
    history = read_history(run.events_path)
    assert history.state == "stopped"
    assert run.checkpoints()[-1][0] == max(history.losses)


@pytest.mark.grid(2)
@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_rank_ends_the_run_with_a_sentence(run, job, start, lost):
    long(run, job, checkpoint_every=2)
    started = start()
    await_step(run, 3, started)
    killed_at = time.monotonic()
    started.ranks()[lost].kill()
    codes = started.exit_codes(started.wait())
    assert time.monotonic() - killed_at < 60
    other = 1 - lost
    assert f"rank {lost} (cpu of " in started.said(other)
    assert "was lost: its process was killed" in started.said(other)
    assert codes[lost] == -signal.SIGKILL
    assert codes.get(other, EXIT_LOST_RANK) in (EXIT_LOST_RANK, -signal.SIGTERM)
    if lost:
        history = read_history(run.events_path)
        assert history.state == "error"
        assert "rank 1 (cpu of " in history.message
    assert run.checkpoints()


@pytest.mark.long
def test_a_rank_that_hangs_is_lost(run, job, start):
    long(run, job, checkpoint_every=2)
    started = start(WANTRAIN_SILENCE="6")
    await_step(run, 3, started)
    hung = started.ranks()[1]
    hung.suspend()
    end = time.monotonic() + 60
    while read_history(run.events_path).state != "error":
        assert time.monotonic() < end
        time.sleep(0.1)
    hung.kill()  # torchrun asks it to end, which it does not hear
    codes = started.exit_codes(started.wait())
    assert codes[0] == EXIT_LOST_RANK
    assert "rank 1 (cpu of " in read_history(run.events_path).message


@pytest.mark.long
def test_ranks_end_when_who_started_them_is_gone(run, job, start):
    long(run, job)
    started = start()
    await_step(run, 3, started)
    ranks = started.ranks()
    started.process.kill()
    started.process.wait()
    _, alive = psutil.wait_procs(list(ranks.values()), timeout=60)
    assert alive == []


@pytest.mark.grid(3, "several devices")
def test_an_error_of_one_rank_is_told_once_by_the_first(run, job, start):
    for sample in job.data.samples:
        Path(sample.latents_path).unlink()
    started = start()
    codes = started.exit_codes(started.wait())
    assert set(codes.values()) <= {EXIT_ERROR, -signal.SIGTERM}
    history = read_history(run.events_path)
    assert history.state == "error"
    assert "start again, and they are encoded anew" in history.message
    assert kinds(run).count("error") == 1


@pytest.mark.long
def test_a_folder_that_is_trained_already_is_refused_by_all(run, start):
    lock = run.lock()
    assert lock.acquire()
    try:
        started = start()
        codes = started.exit_codes(started.wait())
    finally:
        lock.release()
    assert set(codes.values()) <= {EXIT_ERROR, -signal.SIGTERM}
    assert "is being trained by another process" in started.said(0)
    assert not run.events_path.exists()


@pytest.mark.long
def test_it_waits_for_its_devices_and_says_so(run, start, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    import torch

    turn = device_lock(torch.device("cpu"))
    assert turn.acquire()
    started = start(TMPDIR=str(tmp_path))
    end = time.monotonic() + 60
    while "waiting for cpu: another run" not in read_history(run.events_path).message:
        assert time.monotonic() < end
        time.sleep(0.1)
    turn.release()
    started.wait()
    assert started.process.returncode == EXIT_FINISHED, started.said(0) + started.said(1)


@pytest.mark.long
def test_a_step_with_too_few_batches_is_refused(run, job, start):
    run.write_job(replace(job, parallel=ParallelOptions(context=1)))
    started = start()
    started.wait()
    assert "a step has 1 batch, and there are 2 GPUs" in read_history(run.events_path).message
    assert kinds(run).count("error") == 1


@pytest.mark.long
def test_a_device_that_is_not_there_is_told_by_the_first(run, start):
    started = start(WANTRAIN_DEVICES="cpu,cuda:99")
    codes = started.exit_codes(started.wait())
    assert codes[1] == EXIT_ERROR
    history = read_history(run.events_path)
    assert history.state == "error"
    assert "rank 1 (cuda:99 of " in history.message
    assert "the device 'cuda:99' is not there" in history.message


def test_seats():
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "1"}
    seat = Seat.of({**torchrun, "WANTRAIN_DEVICES": "cuda:2, cuda:5"})
    assert (seat.rank, seat.device, seat.machine) == (3, "cuda:5", "1")
    assert Seat.of(torchrun).device in ("cpu", "cuda:1")


def test_exit_codes_are_their_own():
    assert len({EXIT_FINISHED, EXIT_ERROR, EXIT_STOPPED, EXIT_LOST_RANK, EXIT_LESS_MEMORY}) == 5
