"""A folder for each training, and what it is given of another's: the same to the bit as a run from the start."""

import os
import shutil
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed as dist
from wan_train.core.errors import RunError
from wan_train.core.train import claim as claiming
from wan_train.core.train.claim import InUseError, claim_folder, claim_run
from wan_train.core.train.events import EventReader, EventWriter, read_history
from wan_train.core.train.find_run import claim_lock
from wan_train.core.train.run import run_job
from wan_train.core.train.run_folder import RunFolder

CPU = torch.device("cpu")


def long(job, steps, name="test"):
    return replace(job, name=name, loop=replace(job.loop, steps=steps))


def train(runs, job):
    """As node and command line do it: (folder, LoRA, the step it started from in another run)."""
    claim = claim_run(runs, job)
    try:
        lora = run_job(claim.folder, EventWriter(claim.folder.events_path), CPU, lambda: False)
    finally:
        claim.release()
    return claim.folder, lora, claim.origin and claim.origin.step


def content(folder):
    return {path.relative_to(folder.path): path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


def same_weights(a, b):
    a, b = load_file(a), load_file(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def starts(folder):
    return [event["step"] for event in EventReader(folder.events_path).read() if event["event"] == "start"]


def test_a_shorter_training_under_another_name_leaves_the_finished_one_as_it_is(tmp_path, job):
    first, lora, _ = train(tmp_path / "runs", long(job, 16, "first"))
    before = content(first)
    second, shorter, origin = train(tmp_path / "runs", long(job, 4, "second"))
    assert content(first) == before
    assert second.path.name == f"second_low_{job.key}"
    assert origin is None  # the first keeps only its last two checkpoints, both beyond
    _, fresh, _ = train(tmp_path / "elsewhere", long(job, 4, "second"))
    assert same_weights(shorter, fresh)
    assert not same_weights(shorter, lora)
    assert sorted(read_history(second.events_path).losses) == list(range(1, 5))


def test_a_shorter_training_of_the_same_name_takes_a_kept_checkpoint(tmp_path, job):
    job = replace(job, loop=replace(job.loop, checkpoint_every=4))
    first, _, _ = train(tmp_path / "runs", long(job, 12))
    before = content(first)
    second, lora, origin = train(tmp_path / "runs", long(job, 10))
    assert content(first) == before
    assert second.path.name == f"test_low_10steps_{job.key}"
    assert (origin, starts(second)) == (8, [8])
    fresh_folder, fresh, _ = train(tmp_path / "elsewhere", long(job, 10))
    assert same_weights(lora, fresh)
    assert read_history(second.events_path).losses == read_history(fresh_folder.events_path).losses
    told = EventReader(second.events_path).read()[0]
    assert told["message"] == f"starts from step 8 of the run {first.path.name}"


def test_a_renamed_finished_training_is_not_trained_again(tmp_path, job):
    held = replace(job.data.samples[0], held_out=True)
    job = replace(job, data=replace(job.data, samples=(*job.data.samples[1:], held)))
    first, lora, _ = train(tmp_path, long(job, 6))
    before = content(first)
    second, renamed, origin = train(tmp_path, long(job, 6, "new name"))
    assert content(first) == before
    assert renamed.name == "new name_low_noise.safetensors"
    assert same_weights(lora, renamed)
    assert (origin, starts(second)) == (6, [6])
    ours, theirs = read_history(second.events_path), read_history(first.events_path)
    assert (ours.losses, ours.validation) == (theirs.losses, theirs.validation)
    first_step = [e["time"] for e in EventReader(second.events_path).read() if e["event"] == "step"]
    assert first_step == [e["time"] for e in EventReader(first.events_path).read() if e["event"] == "step"]


def test_a_longer_training_of_another_name_goes_on_in_its_own_folder(tmp_path, job):
    first, _, _ = train(tmp_path / "runs", long(job, 6))
    before = content(first)
    second, lora, origin = train(tmp_path / "runs", long(job, 9, "other"))
    assert (content(first), origin) == (before, 6)
    _, fresh, _ = train(tmp_path / "elsewhere", long(job, 9))
    assert same_weights(lora, fresh)
    assert sorted(read_history(second.events_path).losses) == list(range(1, 10))
    again, _, origin = train(
        tmp_path / "runs", long(job, 9)
    )  # and what is furthest elsewhere is taken into an older run
    assert (again, origin, starts(again)) == (first, 9, [0, 9])
    assert read_history(again.events_path).losses == read_history(second.events_path).losses


def test_a_checkpoint_that_goes_away_meanwhile_is_passed_over(tmp_path, job):
    first, _, _ = train(tmp_path, long(job, 6))
    (first.checkpoints_path / "step-00000006" / "link").symlink_to("nowhere")  # a file that is gone when it is opened
    claim = claim_run(tmp_path, long(job, 6, "other"))
    claim.release()
    assert claim.origin.step == 4
    assert [step for step, _ in claim.folder.checkpoints()] == [4]
    assert [path.name for path in claim.folder.checkpoints_path.iterdir()] == ["step-00000004"]


def test_an_incomplete_checkpoint_does_not_keep_another_runs_out(tmp_path, job):
    job = replace(job, loop=replace(job.loop, checkpoint_every=4))
    train(tmp_path, long(job, 12))
    incomplete = tmp_path / f"test_low_10steps_{job.key}" / "checkpoints" / "step-00000008"
    incomplete.mkdir(parents=True)
    (incomplete / "state.pt").write_bytes(b"half")
    claim = claim_run(tmp_path, long(job, 10))
    claim.release()
    assert [path for _, path in claim.folder.checkpoints()] == [incomplete]
    assert (incomplete.parent / "damaged-step-00000008" / "state.pt").read_bytes() == b"half"


def test_a_claimed_folder_is_refused_to_others(tmp_path, job):
    claim = claim_run(tmp_path, job)
    with pytest.raises(InUseError, match="is being trained by another process: wait for it") as caught:
        claim_run(tmp_path, job)
    assert caught.value.folder == claim.folder
    other = claim_run(tmp_path, replace(job, name="other"))
    shorter = claim_run(tmp_path, long(job, 3))
    assert len({c.folder.path for c in (claim, other, shorter)}) == 3
    for held in (claim, other, shorter):
        held.release()
    claim_run(tmp_path, job).release()


def test_a_worker_that_was_left_behind_keeps_its_folder(tmp_path, job):
    claim = claim_run(tmp_path, job)
    claim.release()
    worker = claim.folder.lock()
    assert worker.acquire()
    with pytest.raises(InUseError):
        claim_run(tmp_path, job)
    assert claim_run(tmp_path, long(job, 3)).folder != claim.folder
    worker.release()


@pytest.mark.parametrize("kind", [claim_lock, RunFolder.lock])
def test_who_only_looks_whether_somebody_trains_keeps_nobody_out(tmp_path, job, monkeypatch, kind):
    """The page does, with each of its looks at the runs: it takes the locks and gives them back."""
    claim_run(tmp_path, job).release()
    (folder,) = (RunFolder(path) for path in tmp_path.glob("*_*"))
    looking = kind(folder)
    assert looking.acquire()
    slept = []
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: slept.append(looking.release()))
    monkeypatch.setattr(claiming, "time", clock)
    claim = claim_run(tmp_path, job)
    assert claim.folder == folder
    assert len(slept) == 1
    claim.release()


def test_a_given_folder_takes_no_other_training(tmp_path, job):
    folder = RunFolder(tmp_path / "anywhere")
    folder.path.mkdir()
    folder.write_job(long(job, 6))
    claim_folder(folder, long(job, 9)).release()
    run_job(folder, EventWriter(folder.events_path), CPU, lambda: False)
    before = folder.job_path.read_bytes()
    with pytest.raises(RunError, match="belongs to another training: test, of which 9 steps are done"):
        claim_folder(folder, long(job, 8))
    with pytest.raises(RunError, match="needs a folder of its own"):
        claim_folder(folder, long(job, 9, "other"))
    assert folder.job_path.read_bytes() == before


def claim_at_once(world, runs, jobs):
    """In a process of several: what it gets when all ask at the same moment, and keep it until all have asked."""
    job = jobs[world.rank]
    dist.barrier(group=world.host_group)
    try:
        claim = claim_run(runs, job)
    except InUseError:
        claim = None
    found = claim and (claim.folder.path.name, claim.folder.read_job() == job)
    dist.barrier(group=world.host_group)
    if claim is not None:
        claim.release()
    return found


def test_processes_at_the_same_moment_never_share_a_folder(tmp_path, job, ranks):
    """Of those that ask for the same training one gets it; another length, and another name, get folders of their own."""
    jobs = [long(job, 20), long(job, 20), long(job, 10), long(job, 20, "other")]
    found = ranks(4)(claim_at_once, tmp_path / "runs", jobs)
    claimed = [one for one in found if one is not None]
    assert all(is_its_own for _, is_its_own in claimed)
    assert len({name for name, _ in claimed}) == len(claimed)
    assert None in found[:3]
    assert found[3][0].startswith("other_low_")


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_a_folder_of_a_newer_version_is_refused_and_freed(tmp_path, job):
    claim = claim_run(tmp_path, job)
    claim.release()
    text = claim.folder.job_path.read_text()
    claim.folder.job_path.write_text(text.replace('"schema": 2', '"schema": 99'))
    with pytest.raises(RunError, match="schema 99"):
        claim_run(tmp_path, job)
    claim.folder.job_path.write_text(text)
    claim_run(tmp_path, job).release()


def test_two_nodes_of_one_process_do_not_share_a_folder(tmp_path, job):
    found = []

    def claim(steps):
        try:
            found.append(claim_run(tmp_path, long(job, steps)))
        except InUseError:
            found.append(None)

    threads = [threading.Thread(target=claim, args=(steps,)) for steps in (20, 20, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    claims = [c for c in found if c]
    assert len(claims) == 1
    claims[0].release()
    shutil.rmtree(claims[0].folder.path)
