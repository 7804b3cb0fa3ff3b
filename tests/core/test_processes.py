"""How a process of ours ends."""

import subprocess
import sys

from wan_train.core.launch.ahead import PACK

BEGIN = f"import sys; sys.path.insert(0, {str(PACK)!r}); import wantrain; wantrain.load_pack()\n"
BEGIN += "from wan_train.core.processes import leave\n"


def run(code):
    return subprocess.run(
        [sys.executable, "-c", BEGIN + code], capture_output=True, text=True, timeout=120, check=False
    )


def test_what_python_does_at_an_end_is_done():
    done = run(
        "import atexit, threading\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "atexit.register(print, 'exit function')\n"
        "threading.Thread(target=lambda: (threading.main_thread().join(), print('thread'))).start()\n"
        "ThreadPoolExecutor(1).submit(print, 'executor')\n"
        "sys.stdout.write('no line')\n"
        "leave(3)"
    )
    assert done.returncode == 3
    assert all(word in done.stdout for word in ("exit function", "thread", "executor", "no line"))


def test_modules_are_not_taken_apart():
    done = run("class Slow:\n    def __del__(self): print('taken apart')\nslow = Slow()\nleave(0)")
    assert (done.returncode, done.stdout) == (0, "")


def test_an_end_without_readers_is_no_failure():
    done = run("import os; sys.stdout.write('lost'); os.close(1); leave(5)")
    assert done.returncode == 5
