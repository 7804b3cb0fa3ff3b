import subprocess
import sys

from wan_train.core.locks import FileLock

HOLDER = """
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("locks", sys.argv[1])
locks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(locks)
from pathlib import Path
lock = locks.FileLock(Path(sys.argv[2]))
print(lock.acquire(), flush=True)
time.sleep(60)
"""


def test_one_holder_at_a_time(tmp_path):
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert first.acquire()
    assert not second.acquire()
    assert (first.held, second.held) == (True, False)
    first.release()
    assert second.acquire()
    second.release()


def test_a_killed_holder_frees_it(tmp_path):
    import wan_train.core.locks as locks

    command = [sys.executable, "-c", HOLDER, locks.__file__, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == "True"
        assert not FileLock(tmp_path / "lock").acquire()
        holder.kill()
    lock = FileLock(tmp_path / "lock")
    assert lock.acquire()
    lock.release()
