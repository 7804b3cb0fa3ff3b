"""Locks of every kind: one holder at a time, freed by its death; and disks that know none of them."""

import contextlib
import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from wan_train.core.errors import RunError
from wan_train.core.lock_file import LockFile, _own_words
from wan_train.core.locks import FileLock

PACK = Path(__file__).resolve().parents[2]
HOLDER = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import wantrain
wantrain.load_pack()
from wan_train.core.locks import FileLock
def fail(*_):
    raise OSError(int(sys.argv[4]), "no locks here")
for name in sys.argv[3].split():
    import fcntl
    setattr(fcntl, name, fail)
lock = FileLock(Path(sys.argv[2]))
print(lock.acquire(), flush=True)
time.sleep(60)
"""
posix = pytest.mark.skipif(os.name == "nt", reason="flock and lockf are POSIX")
KINDS = pytest.mark.parametrize(
    "absent", ["", pytest.param("flock", marks=posix), pytest.param("flock lockf", marks=posix)]
)
NO_LOCKS = sorted({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EIO})


def without(monkeypatch, absent, code=errno.ENOLCK):
    """Let this process's disks say that they have no locks of these kinds."""

    def fail(*_):
        raise OSError(code, os.strerror(code))

    for name in absent.split():
        import fcntl

        monkeypatch.setattr(fcntl, name, fail)


@contextlib.contextmanager
def holder(path, absent=""):
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLDER, str(PACK), str(path), absent, str(errno.ENOLCK)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "True"
        yield process
        process.kill()


@KINDS
def test_one_holder_at_a_time(tmp_path, monkeypatch, absent):
    without(monkeypatch, absent)
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert first.acquire()
    assert not second.acquire()
    assert not second.acquire()  # trying and failing frees nothing
    assert (first.held, second.held) == (True, False)
    first.release()
    assert second.acquire()
    second.release()
    assert first.acquire()
    first.release()


@KINDS
def test_a_killed_holder_frees_it(tmp_path, monkeypatch, absent):
    without(monkeypatch, absent)
    lock = FileLock(tmp_path / "lock")
    with holder(tmp_path / "lock", absent) as process:
        assert not lock.acquire()
        assert not FileLock(tmp_path / "lock").acquire()
        assert ("if nothing trains there any more, delete that file" in lock.holder()) == (absent == "flock lockf")
        process.kill()
        process.wait()
    assert lock.acquire()
    lock.release()
    assert lock.holder() == ""


@posix
@pytest.mark.parametrize("code", NO_LOCKS)
def test_a_disk_without_locks_is_not_taken_for_a_lock_that_is_held(tmp_path, monkeypatch, code):
    without(monkeypatch, "flock lockf", code)
    lock = FileLock(tmp_path / "lock")
    assert lock.acquire()
    assert not FileLock(tmp_path / "lock").acquire()
    lock.release()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


@posix
@pytest.mark.parametrize("code", [errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES])
def test_what_means_held(tmp_path, monkeypatch, code):
    without(monkeypatch, "flock", code)
    assert not FileLock(tmp_path / "lock").acquire()


@posix
def test_another_fault_of_the_disk_is_a_sentence(tmp_path, monkeypatch):
    without(monkeypatch, "flock", errno.EMFILE)
    with pytest.raises(RunError, match=r"lock can't be locked \(Too many open files\): check the disk"):
        FileLock(tmp_path / "lock").acquire()


@posix
def test_a_record_lock_survives_what_opens_and_closes_the_file(tmp_path, monkeypatch):
    """POSIX frees it when the process closes any descriptor of the file."""
    without(monkeypatch, "flock")
    first = FileLock(tmp_path / "lock")
    assert first.acquire()
    for _ in range(3):
        assert not FileLock(tmp_path / "lock").acquire()
    command = [sys.executable, "-c", HOLDER.replace("time.sleep(60)", ""), str(PACK), str(first.path), "flock", "37"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "False"
    first.release()


@pytest.mark.skipif(os.name == "nt", reason="folders can be opened as files nowhere, but Windows says it otherwise")
def test_a_folder_or_file_that_cannot_be_opened_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match=r"lock .*file/lock can't be opened .* TMPDIR"):
        FileLock(tmp_path / "file" / "lock").acquire()
    (tmp_path / "lock").mkdir()
    with pytest.raises(RunError, match="may belong to another user"):
        FileLock(tmp_path / "lock").acquire()


READ_ONLY = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import wantrain
wantrain.load_pack()
from wan_train.core.locks import FileLock
os.setuid(65534)
print(FileLock(Path(sys.argv[2])).acquire())
"""


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="needs root, to become another user")
def test_another_users_file_is_locked_all_the_same(tmp_path):
    """As in /tmp, where somebody's lock file can be read by all."""
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(0o755)
    lock = FileLock(tmp_path / "lock")
    command = [sys.executable, "-c", READ_ONLY, str(PACK), str(lock.path)]
    assert lock.acquire()
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "False"
    lock.release()
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "True"


def test_a_lock_whose_file_was_deleted_is_lost(tmp_path):
    lock = FileLock(tmp_path / "lock")
    assert not lock.is_lost
    assert lock.acquire()
    assert not lock.is_lost
    if os.name == "nt":
        return  # an open file stays
    lock.path.unlink()
    assert lock.is_lost
    assert FileLock(lock.path).acquire()
    assert lock.is_lost
    lock.release()


def words(**changes):
    """What this process writes into a lock file, changed."""
    return json.dumps({**json.loads(_own_words()), **changes})


def dead_pid():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("changes", "taken"),
    [
        ({}, False),
        ({"pid": "dead"}, True),
        ({"birth": "of an earlier process with the same number"}, True),
        ({"pid": "dead", "machine": "abcdef", "host": "elsewhere"}, False),
        ({"pid": "12"}, False),
        ({"pid": 10**40}, True),
    ],
)
def test_a_lock_file_is_taken_over_from_the_dead_alone(tmp_path, changes, taken):
    changes = {**changes, **({"pid": dead_pid()} if changes.get("pid") == "dead" else {})}
    lock = LockFile(tmp_path / "lock")
    lock.path.write_text(words(**changes))
    assert lock.acquire() == taken
    assert len(list(tmp_path.iterdir())) == 1
    if not taken:
        assert f"on {changes.get('host', '')}" in lock.holder()
        assert f"{lock.path} says that process {changes.get('pid', os.getpid())}" in lock.holder()


@pytest.mark.parametrize("content", [b"", b"{", b"5", b"\xff"])
def test_a_lock_file_without_a_holder_is_taken_over_when_it_is_old(tmp_path, content):
    lock = LockFile(tmp_path / "lock")
    lock.path.write_bytes(content)
    assert not lock.acquire()
    old = time.time() - 100
    os.utime(lock.path, (old, old))
    assert lock.acquire()
    lock.release()
    assert not list(tmp_path.iterdir())
