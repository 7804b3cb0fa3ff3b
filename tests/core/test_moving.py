"""What another program has open: waited for, moved aside, or left whole; and said in a sentence."""

import errno
import time
from pathlib import Path

import pytest
import torch
from wan_train.core import moving
from wan_train.core.disk import disk_error, set_aside, write_atomic
from wan_train.core.errors import RunError
from wan_train.core.moving import remove, remove_folder, rename, replace
from wan_train.core.safetensors_file import write_safetensors
from wan_train.core.sweep import _NAME
from wan_train.core.train.checkpoints import ADAPTER, Checkpoints
from wan_train.tests.windows_disk import WindowsDisk, refused

TENSORS = {"lora_A": torch.ones(2, 2)}


@pytest.fixture
def disk(monkeypatch):
    monkeypatch.setattr(moving, "_FIRST_PAUSE_S", 0)
    return WindowsDisk(monkeypatch)


def let_go_after(disk, times):
    """The other program closes its files when they have stood in the way so often."""

    def count():
        if disk.asked >= times:
            disk.open.clear()
            disk.mapped.clear()
            disk.scans = False

    disk.on_refusal = count


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_is_saved_though_a_scanner_has_a_file_of_it_open(disk, tmp_path):
    disk.scans = True
    let_go_after(disk, 3)
    folder = Checkpoints(tmp_path).save(1, TENSORS, {"step": 1}, keep_last=1)
    assert disk.asked == 3
    assert Checkpoints(tmp_path).all() == [(1, folder)]
    assert names(tmp_path) == ["step-00000001"]


def test_an_old_checkpoint_that_somebody_has_open_stays_whole_until_it_can_go(disk, tmp_path, monkeypatch):
    monkeypatch.setattr(moving, "PATIENCE_S", 0)
    store = Checkpoints(tmp_path)
    first = store.save(1, TENSORS, {"step": 1}, keep_last=1)
    disk.open.add(first / ADAPTER)
    store.save(2, TENSORS, {"step": 2}, keep_last=1)
    assert [step for step, _ in store.all()] == [1, 2]
    assert not store.incomplete()
    store.load(first)
    disk.open.clear()
    store.save(3, TENSORS, {"step": 3}, keep_last=1)
    assert names(tmp_path) == ["step-00000003"]


def test_a_lora_that_comfyui_has_mapped_is_written_anew(disk, tmp_path):
    lora = tmp_path / "mine.safetensors"
    lora.write_bytes(b"old")
    disk.mapped.add(lora)
    write_safetensors(lora, TENSORS, {})
    assert lora.read_bytes() != b"old"
    aside = [path for path in tmp_path.iterdir() if path != lora]
    assert not [path for path in aside if not _NAME.fullmatch(path.name)]  # a sweep knows it


def test_what_can_not_take_its_place_leaves_the_old_file_there(disk, tmp_path, monkeypatch):
    monkeypatch.setattr(moving, "PATIENCE_S", 0)
    old, new = tmp_path / "mine.safetensors", tmp_path / "new"
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    disk.mapped.add(old)
    disk.open.add(new)
    with pytest.raises(PermissionError):
        replace(new, old)
    assert old.read_bytes() == b"old"
    assert names(tmp_path) == ["mine.safetensors", "new"]


def test_a_write_protected_file_and_a_folder_are_not_moved_aside(disk, tmp_path, monkeypatch):
    monkeypatch.setattr(moving, "PATIENCE_S", 0)
    monkeypatch.setattr(
        moving.os, "access", lambda path, _mode: Path(path).name != "mine.safetensors"
    )  # root may write all
    lora, folder, new = tmp_path / "mine.safetensors", tmp_path / "folder.safetensors", tmp_path / "new"
    lora.write_bytes(b"old")
    folder.mkdir()
    new.write_bytes(b"new")
    disk.mapped |= {lora, folder}
    for target in (lora, folder):
        with pytest.raises(PermissionError):
            replace(new, target)
    assert names(tmp_path) == ["folder.safetensors", "mine.safetensors", "new"]
    assert lora.read_bytes() == b"old"


def test_a_file_in_use_is_waited_for(disk, tmp_path):
    path = tmp_path / "job.json"
    for act in (
        lambda: write_atomic(path, lambda file: file.write(b"new")),
        lambda: rename(path, tmp_path / "other"),
        lambda: remove(path),
        lambda: set_aside(path),
    ):
        path.write_bytes(b"old")
        disk.open, disk.asked = {path}, 0
        let_go_after(disk, 3)
        act()
        assert disk.asked == 3
    assert names(tmp_path) == ["damaged-job.json", "other"]


def test_it_is_not_waited_for_ever_nor_for_what_waiting_does_not_help(disk, tmp_path, monkeypatch):
    path = tmp_path / "stop"
    path.touch()
    disk.open.add(path)
    monkeypatch.setattr(moving, "PATIENCE_S", 0)
    with pytest.raises(PermissionError):
        remove(path)
    assert disk.asked == 1
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waits"))
    with pytest.raises(FileNotFoundError):
        rename(tmp_path / "gone", tmp_path / "there")


def test_a_folder_that_is_gone_already_is_no_error(tmp_path):
    remove_folder(tmp_path / "gone")
    assert names(tmp_path) == []


@pytest.mark.parametrize(("code", "is_told"), [(5, True), (32, True), (33, True), (1224, True), (112, False)])
def test_it_is_said_that_another_program_may_have_it(code, is_told):
    error = refused(code) if code != 1224 else OSError(errno.EINVAL, "a file with a user-mapped section open")
    error = OSError(errno.ENOSPC, "full") if code == 112 else error
    error.winerror = code
    told = str(disk_error(error, Path("a.safetensors"), "nothing was changed"))
    assert ("another program has it open" in told) is is_told
    assert "nothing was changed" in told


@pytest.mark.parametrize("path", [".", "/", "D:/"])
def test_a_place_without_a_name_is_told_as_well(path):
    error = PermissionError(errno.EACCES, "Permission denied")
    assert "change its permissions" in str(disk_error(error, Path(path), "nothing was changed"))
    assert str(disk_error(FileNotFoundError(errno.ENOENT, "not there"), Path(path), "nothing was changed"))


def test_linux_says_that_permissions_are_missing():
    told = str(disk_error(PermissionError(errno.EACCES, "Permission denied"), Path("a"), "nothing was changed"))
    assert "change its permissions" in told
    assert isinstance(disk_error(OSError(errno.EIO, "bad"), Path("a"), "kept"), RunError)
