"""Runs commands of `wantrain` in forks of a process that has imported everything: seconds of imports fewer for each.

Reads JSON lines {"arguments": [...], "folder": ..., "output": file, "seconds": n}, and answers with the exit status, or
"hang", and the seconds of a processor that it took. A fork has its own home, temporary folder and working folder, and what
it starts is killed with it.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]


def serve() -> None:
    sys.path.insert(0, str(PACK))
    import wantrain

    wantrain.load_pack()
    from wan_train.core.adapters.peft_hooks import import_adapters
    from wan_train.core.cli import main as cli

    for name in ("cache", "merge", "preview", "scan", "train"):
        cli.importlib.import_module(f"wan_train.core.cli.commands.{name}")
    import_adapters()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        order = json.loads(line)
        sys.stdout.write(json.dumps(_run(order)) + "\n")
        sys.stdout.flush()


def _run(order: dict) -> tuple[int | str, float]:
    pid = os.fork()
    if pid == 0:
        _command(order)
    end = time.monotonic() + order["seconds"]
    while time.monotonic() < end:
        done, status, used = os.wait4(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)
    _, _, used = os.wait4(pid, 0)
    return "hang", used.ru_utime + used.ru_stime


def _command(order: dict) -> None:
    """In the fork; does not return. 71: an error that has no sentence of ours."""
    code = 70
    try:
        os.setsid()
        os.chdir(order["folder"])
        output = os.open(order["output"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        from wan_train.core.cli import main as cli
        from wan_train.core.launch import follow

        follow.Worker = ForkedWorker
        try:
            code = cli.main(order["arguments"])
        except SystemExit as error:  # argparse
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
            code = 71
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


class ForkedWorker:
    """As core.launch.process.Worker, but a fork of this process instead of a new interpreter."""

    def __new__(cls, folder, **_):
        from wan_train.core.launch import ahead, process

        made = object.__new__(process.Worker)
        starter = ahead.subprocess.Popen
        ahead.subprocess.Popen = _fork
        try:
            made.__init__(folder)
        finally:
            ahead.subprocess.Popen = starter
        return made


class _fork:  # noqa: N801 - stands for subprocess.Popen
    def __init__(self, command, *, stdout, cwd, **_):
        self._code: int | None = None
        read, write = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                os.close(write)
                os.dup2(read, 0)
                os.dup2(stdout.fileno(), 1)
                os.dup2(stdout.fileno(), 2)
                os.chdir(cwd)
                from wan_train.core.cli import main as cli

                code = cli.main(command[command.index("train") :])
            except BaseException:
                import traceback

                traceback.print_exc()
                code = 71
            finally:
                os._exit(code)
        os.close(read)
        self.stdin = os.fdopen(write, "wb")

    def poll(self):
        if self._code is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if done else None
        return self._code

    def wait(self):
        while self.poll() is None:
            time.sleep(0.01)
        return self._code

    def kill(self):
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


if __name__ == "__main__":
    serve()
