"""Worker processes without the seconds that importing takes: forks of a process that has imported everything.

Run as a script, it reads run folders, a line each: it forks a worker on the folder, says its process id, and when it has
ended its exit status as os.waitpid gives it.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PACK = Path(__file__).resolve().parents[3]


class Forks:
    """Workers, one after the other."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def start(self, folder: Path) -> int:
        """Fork a worker on a run folder; its process id."""
        self._process.stdin.write(f"{folder}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def wait(self) -> int:
        """Wait for the worker's end; its exit code, negative for a signal."""
        return os.waitstatus_to_exitcode(int(self._process.stdout.readline()))


@contextlib.contextmanager
def forks(scratch: Path) -> Iterator[Forks]:
    """Workers that take no turns with other runs of this machine: the locks on devices lie in `scratch`."""
    with subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(scratch)},
    ) as process:
        yield Forks(process)
        process.stdin.close()


def serve() -> None:
    sys.path.insert(0, str(PACK))
    import wantrain

    wantrain.load_pack()
    from wan_train.core.adapters.setup import import_adapters
    from wan_train.core.launch import worker

    import_adapters()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = worker.EXIT_ERROR
            try:
                code = worker.train(Path(line.strip()))
            finally:
                os._exit(code)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
        sys.stdout.write(f"{os.waitpid(pid, 0)[1]}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
