"""How a process of ours imports, and how it ends."""

import subprocess
import sys

from wan_train.core.launch.ahead import PACK

BEGIN = f"import sys; sys.path.insert(0, {str(PACK)!r}); import wantrain; wantrain.load_pack()\n"
BEGIN += "from wan_train.core.processes import leave\n"


def run(code):
    return subprocess.run(
        [sys.executable, "-c", BEGIN + code], capture_output=True, text=True, timeout=120, check=False
    )


COMMAND = """
import gc
from wan_train.core.cli import main
from wan_train.core.cli.commands import link
link.run = lambda options: print(options.comfyui, gc.isenabled(), gc.get_freeze_count() > 1000) or 0
"""


def test_a_command_collects_garbage_but_not_among_what_was_imported():
    done = run(f"{COMMAND}sys.argv = ['wantrain', 'link', 'here']\nsys.exit(main.main())")
    assert done.stdout == "here True True\n", done.stderr


def test_who_calls_the_command_line_keeps_his_own_collections():
    done = run(f"{COMMAND}sys.exit(main.main(['link', 'here']))")
    assert done.stdout == "here True False\n", done.stderr


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
