"""Worker processes without the seconds that importing takes: forks of a process that has imported everything.

Run as a script, it reads orders, a line of JSON each: it forks a process that carries the order out, says its process id,
and when it has ended its exit status as os.waitpid gives it.
"""

import contextlib
import gc
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACK = Path(__file__).resolve().parents[3]


class Forks:
    """Processes, one after the other."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def call(self, module: str, function: str, **arguments: Any) -> int:
        """Fork a process that calls a function, with what JSON can hold, and ends with what it returns; its id."""
        assert self._process.stdin is not None
        order = {"module": module, "function": function, "arguments": arguments}
        self._process.stdin.write(f"{json.dumps(order)}\n")
        self._process.stdin.flush()
        return int(self._answer())

    def wait(self) -> int:
        """Wait for the process's end; its exit code, negative for a signal."""
        return os.waitstatus_to_exitcode(int(self._answer()))

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


@contextlib.contextmanager
def forks(scratch: Path) -> Iterator[Forks]:
    """Processes that take no turns with other runs of this machine: the locks on devices lie in `scratch`.

    What they print lies there too, in `printed.log`.
    """
    with (
        (scratch / "printed.log").open("ab") as printed,
        subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=printed,
            text=True,
            env={**os.environ, "TMPDIR": str(scratch)},
        ) as process,
    ):
        yield Forks(process)
        assert process.stdin is not None
        process.stdin.close()


def serve() -> None:
    sys.path.insert(0, str(PACK))
    import wantrain

    wantrain.load_pack()
    from wan_train.core.adapters.peft_hooks import import_adapters

    import_adapters()
    with contextlib.suppress(ImportError):  # peft imports it with the first adapter, in seconds
        importlib.import_module("bitsandbytes")
    for line in sys.stdin:
        order = json.loads(line)
        act = getattr(importlib.import_module(order["module"]), order["function"])  # here: once for all forks
        gc.freeze()  # else each fork's collections walk through, and copy, all that was imported
        pid = os.fork()
        if pid == 0:
            _carry_out(act, order["arguments"])
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
        sys.stdout.write(f"{os.waitpid(pid, 0)[1]}\n")
        sys.stdout.flush()


def _carry_out(act: Any, arguments: dict[str, Any]) -> None:
    code = 1
    try:
        os.dup2(2, 1)  # what it prints is no answer
        arguments = {name: Path(value) if name == "path" else value for name, value in arguments.items()}
        code = act(**arguments)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
