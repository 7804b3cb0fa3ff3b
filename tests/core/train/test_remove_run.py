"""Deleting a run: all of it or nothing, never while it is trained in, and never anything else."""

import os
from dataclasses import replace

import pytest
from wan_train.core.errors import RunError
from wan_train.core.train.find_run import claim_lock, find_run
from wan_train.core.train.remove_run import contents, remove_run
from wan_train.tests.core.train.test_find_run import make


def test_a_deleted_run_is_gone_and_its_training_begins_anew(tmp_path, job):
    runs = tmp_path / "runs"
    folder = make(runs, job, steps=(1, 2), checkpoints=(2,), result=2)
    other = make(runs, replace(job, name="other"))
    held = contents(folder)
    assert (held.checkpoints, held.previews, held.loras) == (1, 0, ("test.safetensors",))
    assert str(held) == "1 checkpoint, the LoRA test.safetensors, its settings, curve and log"
    assert held.size > 0
    remove_run(runs, folder.path.name)
    assert {path.name for path in runs.iterdir()} == {other.path.name, ".placing.lock"}
    assert not find_run(runs, job).path.exists()


def test_a_run_named_in_any_script_is_deleted(tmp_path, job):
    folder = make(tmp_path, replace(job, name="हिन्दी"), steps=(1,))
    remove_run(tmp_path, folder.path.name)
    assert not folder.path.exists()


@pytest.mark.parametrize("whose", ["claim", "worker"])
def test_a_run_that_is_trained_in_stays(tmp_path, job, whose):
    folder = make(tmp_path, job, steps=(1,))
    lock = claim_lock(folder) if whose == "claim" else folder.lock()
    assert lock.acquire()
    try:
        with pytest.raises(RunError, match="is being trained at the moment: stop it first"):
            remove_run(tmp_path, folder.path.name)
    finally:
        lock.release()
    assert folder.is_there
    remove_run(tmp_path, folder.path.name)
    assert not folder.path.exists()


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../runs", "a/b", "a\\b", "/etc", "C:\\x", "\0", ".deleted-1", "a\n", "x" * 300, "caf\udce9"],
)
def test_no_other_place_is_deleted(tmp_path, job, name):
    runs = tmp_path / "runs"
    outside = make(tmp_path, job, name="outside")
    make(runs, job, name="kept")
    (runs / ".deleted-1").mkdir()
    with pytest.raises(RunError, match="is not the name of a run folder"):
        remove_run(runs, name)
    assert outside.is_there
    assert sorted(path.name for path in runs.iterdir()) == [".deleted-1", "kept"]


def test_a_folder_that_is_no_run_stays(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(RunError, match="there is no run photos"):
        remove_run(tmp_path, "photos")
    assert (tmp_path / "photos").is_dir()


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_links_are_not_followed(tmp_path, job):
    runs, elsewhere = tmp_path / "runs", make(tmp_path / "elsewhere", job, name="far")
    folder = make(runs, job)
    (runs / "linked").symlink_to(elsewhere.path)
    with pytest.raises(RunError, match="is a link to another place"):
        remove_run(runs, "linked")
    (folder.path / "out").symlink_to(elsewhere.path)
    remove_run(runs, folder.path.name)
    assert not folder.path.exists()
    assert elsewhere.is_there


@pytest.mark.skipif(os.name == "nt" or os.getuid() == 0, reason="needs a user whom a folder can refuse")
def test_what_cannot_be_deleted_is_no_run_any_more(tmp_path, job):
    folder = make(tmp_path, job, checkpoints=(2,))
    (folder.checkpoints_path / "step-00000002").chmod(0o500)
    try:
        with pytest.raises(RunError, match=r"remove .* by hand"):
            remove_run(tmp_path, folder.path.name)
        assert not list(tmp_path.glob("*/job.json"))
    finally:
        for path in tmp_path.rglob("step-00000002"):
            path.chmod(0o700)
