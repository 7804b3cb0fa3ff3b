"""Test only: processes of `wantrain` that are forks of one which has imported everything, instead of Pythons of their own.

That one is `tests/warm.py`; it listens at the address in the environment variable WANTRAIN_WARM. As a pack in a host this lets
the host's training processes be such forks, too. Standard library only.
"""

import gc
import itertools
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

ADDRESS = "WANTRAIN_WARM"
NODE_CLASS_MAPPINGS = {}


class WarmProcess:
    """What subprocess.Popen is for another process."""

    def __init__(self, arguments, *, stdin=None, stdout=None, stderr=None, cwd=None, env):
        """`arguments`: after `python`. A stream is DEVNULL, a file or None: as here; `stdin` PIPE, too, and `stderr` STDOUT."""
        self.returncode, self.stdin = None, None
        if stdin == subprocess.PIPE:
            their_in, own = os.pipe()
            self.stdin = os.fdopen(own, "wb")  # whoever has this closes it
        else:
            their_in = _copy(stdin, 0)
        out = _copy(stdout, 1)
        files = [their_in, out, os.dup(out) if stderr == subprocess.STDOUT else _copy(stderr, 2)]
        order = json.dumps({"arguments": arguments, "cwd": str(cwd or Path.cwd()), "env": dict(env)}).encode()
        self._answers = socket.socket(socket.AF_UNIX)
        try:
            self._answers.connect(env[ADDRESS])
            socket.send_fds(self._answers, [struct.pack("!I", len(order))], files)
            self._answers.sendall(order)
        finally:
            for file in files:
                os.close(file)
        self.pid = self._answer()

    def poll(self):
        """The exit code, or None while it runs."""
        if self.returncode is None and select.select([self._answers], [], [], 0)[0]:
            self.returncode = self._answer()
            self._answers.close()
        return self.returncode

    def wait(self, timeout=None):
        """The exit code. TimeoutExpired after so many seconds."""
        if self.returncode is None and not select.select([self._answers], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("wantrain", timeout or 0)
        return self.poll()

    def send_signal(self, number):
        """Unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self):
        """With SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self):
        """At once."""
        self.send_signal(signal.SIGKILL)

    def _answer(self):
        answer = self._answers.recv(4, socket.MSG_WAITALL)
        if len(answer) < 4:
            raise OSError("the process that forks has ended")
        return struct.unpack("!i", answer)[0]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.stdin is not None:
            self.stdin.close()
        self.wait()


def _copy(given, own):
    if given == subprocess.DEVNULL:
        return os.open(os.devnull, os.O_RDWR)
    return os.dup(own if given is None else given.fileno())


def start(command, *, env=None, cwd=None, **options):
    """In the place of subprocess.Popen for `wantrain.py` or a module; it starts them itself where nobody forks them."""
    environment = os.environ if env is None else env
    if command[0] != sys.executable or ADDRESS not in environment or not Path(cwd or ".").is_dir():
        return subprocess.Popen(command, env=env, cwd=cwd, **options)
    options.pop("start_new_session", None)  # it has one
    arguments = [*itertools.dropwhile(lambda part: part == "-s", command[1:])]
    try:
        return WarmProcess(arguments, cwd=cwd, env=environment, **options)
    except (FileNotFoundError, ConnectionRefusedError):  # whoever forks is gone: a process of a killed test run
        return subprocess.Popen(command, env=env, cwd=cwd, start_new_session=True, **options)


def use():
    """Let the pack of this process, under whatever name a host has loaded it, start its training processes so."""
    for name in [name for name in sys.modules if name.endswith(".core.launch.ahead")]:
        sys.modules[name].POPEN = start


def _use_in_host():
    from server import PromptServer

    def on_prompt(data):  # by now all packs are loaded
        use()
        if not gc.get_freeze_count():
            gc.freeze()  # else the collection before each training walks through all that was imported
        return data

    PromptServer.instance.add_on_prompt_handler(on_prompt)


if ADDRESS in os.environ and "nodes" in sys.modules and hasattr(sys.modules["nodes"], "load_custom_node"):
    _use_in_host()
