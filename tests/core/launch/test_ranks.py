"""A run over several processes: `wantrain train` from a recipe to a LoRA, stopped, gone on with, and with a rank or a
parent that is killed. Ranks on the CPU talk through gloo."""

import os
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import replace

import psutil
import pytest
from wan_train.core.launch.exits import EXIT_ERROR, EXIT_STOPPED
from wan_train.core.launch.follow import FollowedRun
from wan_train.core.launch.process import Worker
from wan_train.core.launch.turns import DeviceTurn
from wan_train.core.recipe.recipe import recipe_from_tables, recipe_to_toml
from wan_train.core.train.events import EventReader, read_history
from wan_train.core.train.run_folder import RunFolder
from wan_train.tests import warm
from wan_train.tests.core.launch.faulty import write_faulty
from wan_train.tests.core.launch.material import recipe_over

TWO = "cpu:0,cpu:1"
PATIENCE_S = 300.0


@pytest.fixture(scope="module")
def whole(models, pictures, tmp_path_factory):
    """A recipe for the high noise expert over two processes, trained: its file, its work folder, and what was said."""
    base = tmp_path_factory.mktemp("whole")
    tables = recipe_over(models, pictures)
    given = {name: file for name, file in tables["models"].items() if name != "low"}
    changes = {"models": given, "loop": {"steps": 6, "checkpoint_every": 2}, "device": "cpu,cpu", "precision": "fp32"}
    recipe = recipe_from_tables({**tables, **changes, "work": str(base / "work")}, base)
    (base / "spread.toml").write_text(recipe_to_toml(recipe), encoding="utf-8")
    result = warm.run("train", base / "spread.toml", cwd=base)
    assert result.returncode == 0, result.stderr
    return base / "spread.toml", base / "work", result.stderr


def folder_of(work):
    return RunFolder(next((work / "runs").glob("shapes_*")))


@pytest.fixture
def endless(whole, tmp_path):
    """A copy of that run after its six steps, with more to do than a test waits for."""
    shutil.copytree(whole[1] / "runs", tmp_path / "runs")
    folder = RunFolder(next((tmp_path / "runs").glob("shapes_*")))
    job = folder.read_job()
    folder.write_job(replace(job, loop=replace(job.loop, steps=100_000)))
    return folder


def ranks_below(pid):
    """Processes of the ranks that a worker has started, by rank."""
    found = {}
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.Error):
            name = process.name()  # "rank 0", of forks
            rank = name.removeprefix("rank ") if name.startswith("rank ") else process.environ().get("RANK")
            if rank is not None:
                found[int(rank)] = process
    return found


def await_steps(run: FollowedRun, step):
    end = time.monotonic() + PATIENCE_S
    while run.last_step < step:
        run.poll()
        assert run.worker.exit_code is None, run.worker.log_tail(30)
        assert time.monotonic() < end, run.worker.log_tail(30)
        time.sleep(0.02)


def await_end(run: FollowedRun):
    run.worker.process.wait(PATIENCE_S)
    run.poll()
    return run.worker.exit_code


def await_gone(processes):
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE_S)
    assert not alive


def test_from_a_recipe_to_a_lora(whole):
    folder, said = folder_of(whole[1]), whole[2]
    assert "2 GPUs: each step trains 2 batches, one a GPU; the same as gradient_accumulation 2 on one GPU" in said
    assert "training on cpu:0, cpu:1 in" in said
    job = folder.read_job()
    assert (job.loop.gradient_accumulation, job.device) == (2, TWO)
    assert sorted(read_history(folder.events_path).losses) == [1, 2, 3, 4, 5, 6]
    assert folder.finished_lora(6)
    log = folder.log_path.read_text(encoding="utf-8")
    assert "[rank 0] " in log
    assert "[rank 1] " in log


def test_it_is_the_run_of_one_device_that_accumulates(whole, wantrain, tmp_path):
    """The same key, and the same losses within rounding."""
    spread, folder, work = whole[0], folder_of(whole[1]), tmp_path / "alone"
    shutil.copytree(whole[1] / "cache", work / "cache")
    alone = ("--set", "device=cpu", "--set", "loop.gradient_accumulation=2")
    code, said = wantrain("train", spread, "--work", work, *alone)
    assert code == 0, said
    assert folder_of(work).read_job().key == folder.read_job().key
    losses = [list(read_history(run.events_path).losses.values()) for run in (folder, folder_of(work))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.grid(3, "several devices")
def test_a_stop_keeps_a_checkpoint_and_the_run_goes_on(endless):
    run = FollowedRun(endless, 100_000)
    await_steps(run, 8)
    ranks = ranks_below(run.worker.process.pid)
    assert sorted(ranks) == [0, 1]
    run.request_stop()
    assert await_end(run) == EXIT_STOPPED, run.worker.log_tail(30)
    assert run.history.state == "stopped"
    assert endless.checkpoints()[-1][0] == run.last_step
    await_gone(list(ranks.values()))
    turn = DeviceTurn(TWO.split(","))
    assert turn.acquire()
    turn.release()

    job = endless.read_job()
    endless.write_job(replace(job, loop=replace(job.loop, steps=run.last_step + 2)))
    again = FollowedRun(endless, run.last_step + 2)
    assert await_end(again) == 0, again.worker.log_tail(30)
    starts = [event["step"] for event in EventReader(endless.events_path).read() if event["event"] == "start"]
    assert starts[-1] == run.last_step


@pytest.mark.long
def test_it_goes_on_with_one_process(endless, wantrain):
    """Fewer than it began with: the batches of a step stay the same."""
    run = FollowedRun(endless, 100_000)
    await_steps(run, 8)
    run.request_stop()
    assert await_end(run) == EXIT_STOPPED
    job = endless.read_job()
    endless.write_job(replace(job, loop=replace(job.loop, steps=run.last_step + 1)))
    code, said = wantrain("train", endless.path, "--devices", "cpu")
    assert code == 0, said
    assert f"going on from step {run.last_step}" in said
    assert endless.read_job().loop.gradient_accumulation == 2


@pytest.mark.long
def test_more_processes_than_a_step_has_batches_are_refused(endless, wantrain):
    code, said = wantrain("train", endless.path, "--devices", "cpu+cpu+cpu")
    assert code == EXIT_ERROR
    assert "a step of this run has 2 batches, too few for 3 GPUs: train it on 2 of them" in said
    assert "Traceback" not in said


@pytest.mark.grid(3, "several devices")
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_rank_ends_the_run_with_a_sentence(endless):
    run = FollowedRun(endless, 100_000)
    await_steps(run, 8)
    ranks = ranks_below(run.worker.process.pid)
    ranks[1].kill()
    began = time.monotonic()
    assert await_end(run) == EXIT_ERROR
    assert time.monotonic() - began < 60  # what the page promises
    await_gone(list(ranks.values()))
    problem = str(run.problem())
    assert "rank 1 (cpu:1 of " in problem, run.worker.log_tail(30)
    assert "start again to go on" in problem
    assert endless.checkpoints()


@pytest.mark.long
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("gently", [True, False])
def test_ranks_go_with_their_parent(endless, gently):
    """Its standard input closes, as when its parent dies; or it is killed itself: a checkpoint is kept either way."""
    run = FollowedRun(endless, 100_000)
    await_steps(run, 8)
    ranks = ranks_below(run.worker.process.pid)
    assert len(ranks) == 2
    if gently:
        run.worker.process.stdin.close()
    else:
        run.worker.process.kill()
    await_end(run)
    await_gone(list(ranks.values()))
    run.poll()
    assert endless.checkpoints()[-1][0] >= 8


@pytest.mark.long
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to catch")
def test_sigterm_stops_with_a_checkpoint(endless):
    run = FollowedRun(endless, 100_000)
    await_steps(run, 8)
    run.worker.process.send_signal(signal.SIGTERM)
    assert await_end(run) == EXIT_STOPPED, run.worker.log_tail(30)
    assert endless.checkpoints()[-1][0] == run.last_step


@pytest.mark.long
def test_a_kill_leaves_no_process(endless):
    run = FollowedRun(endless, 100_000)
    await_steps(run, 7)
    ranks = ranks_below(run.worker.process.pid)
    run.worker.kill()
    await_gone(list(ranks.values()))


@pytest.mark.long
def test_it_waits_for_all_its_devices(endless):
    """Another run has the second one: the first is not kept from others meanwhile, and a stop ends the waiting."""
    other = DeviceTurn(["cpu:1"])
    assert other.acquire()
    worker = Worker(endless)
    events = []
    end = time.monotonic() + PATIENCE_S
    while not any("waiting for cpu:0, cpu:1" in event.get("message", "") for event in events):
        events += worker.poll()
        assert worker.exit_code is None, worker.log_tail(30)
        assert time.monotonic() < end
        time.sleep(0.02)
    first = DeviceTurn(["cpu:0"])
    while not first.acquire():  # it is tried now and then
        assert time.monotonic() < end
    first.release()
    worker.request_stop()
    assert worker.process.wait(PATIENCE_S) == EXIT_STOPPED
    other.release()


def test_memory_that_runs_out_in_one_update_starts_all_again_with_less(whole, wantrain, tmp_path):
    """From the last checkpoint, without anybody's help, and to the end: some ranks alone have updated their weights."""
    act = 'raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")'
    environment = write_faulty(tmp_path, "scarce", update=2, act=act)
    spread, work = whole[0], tmp_path / "scarce"
    shutil.copytree(whole[1] / "cache", work / "cache")
    settings = (
        "optimizer.name=custom",
        "optimizer.path=scarce.AdamW",
        "loop.steps=4",
        "loop.checkpoint_every=1",
        "memory.budget_gb=3.0",
    )
    changes = [part for setting in settings for part in ("--set", setting)]
    code, said = wantrain("train", spread, "--work", work, *changes, **environment)
    assert code == 0, said
    assert "starting all GPUs again from the last checkpoint, with less memory" in said
    folder = folder_of(work)
    assert sorted(read_history(folder.events_path).losses) == [1, 2, 3, 4]
    plans = [event for event in EventReader(folder.events_path).read() if event["event"] == "plan"]
    assert plans[0]["vram"] > plans[-1]["vram"]


def test_a_gpu_that_fails_on_one_rank_ends_the_run_with_its_sentence(whole, wantrain, tmp_path):
    act = 'raise getattr(torch, "AcceleratorError", RuntimeError)("CUDA error: unspecified launch failure")'
    environment = write_faulty(tmp_path, "failing", update=3, act=act)
    spread, work = whole[0], tmp_path / "failing"
    shutil.copytree(whole[1] / "cache", work / "cache")
    settings = ("optimizer.name=custom", "optimizer.path=failing.AdamW", "loop.steps=4", "loop.checkpoint_every=1")
    changes = [part for setting in settings for part in ("--set", setting)]
    code, said = wantrain("train", spread, "--work", work, *changes, **environment)
    assert code == EXIT_ERROR, said
    folder = folder_of(work)
    message = read_history(folder.events_path).message
    assert message.startswith("rank 1 (cpu:1 of "), message
    assert "the device cpu:1 of rank 1 failed after step " in message
    assert "(CUDA error: unspecified launch failure)" in message
    assert folder.checkpoints()
    code, said = wantrain("train", spread, "--work", work, *changes, **environment)
    assert code == 0, said
    assert sorted(read_history(folder.events_path).losses) == [1, 2, 3, 4]


def test_a_rank_that_hangs_in_its_step_ends_the_run_which_goes_on_with_the_same_loss(whole, wantrain, tmp_path):
    environment = write_faulty(tmp_path, "hanging", update=4, act="threading.Event().wait()")
    spread, work = whole[0], tmp_path / "hanging"
    shutil.copytree(whole[1] / "cache", work / "cache")
    settings = ("optimizer.name=custom", "optimizer.path=hanging.AdamW")
    changes = [part for setting in settings for part in ("--set", setting)]
    code, said = wantrain("train", spread, "--work", work, *changes, WANTRAIN_STANDSTILL="10", **environment)
    assert code == EXIT_ERROR, said
    folder = folder_of(work)
    message = read_history(folder.events_path).message
    assert message.startswith("rank 1 (cpu:1 of "), message
    assert " hangs: its process has not got on within a step for " in message
    assert message in said
    assert [step for step, _ in folder.checkpoints()] == [2]
    code, said = wantrain("train", spread, "--work", work, *changes, **environment)
    assert code == 0, said
    assert "going on from step 2" in said
    steps = [event for event in EventReader(folder.events_path).read() if event["event"] == "step"]
    assert [event["step"] for event in steps] == [1, 2, 3, 3, 4, 5, 6]
    assert steps[2]["loss"] == steps[3]["loss"]
