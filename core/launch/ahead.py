"""A training process that is started before it is known what it will train, so that its imports go on beside other work.

`wantrain train` reads the job, looks at the GPUs and takes a folder, which takes seconds, most of them imports. The training
process needs the same ones: it makes them meanwhile, and is told its folder by a line on its standard input. Where that
closes before, the process ends. Only the standard library is imported here, so that the start comes first of all.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from ..offline import OFFLINE
from ..parent import read_told

Process: TypeAlias = subprocess.Popen[Any]
POPEN = subprocess.Popen[Any]  # what starts a process of `wantrain`; tests put in its place what forks one
WAITS = "-"  # in the place of the run folder's path
PACK = Path(__file__).resolve().parents[2]
# Threads that wait asleep: two experts that train on the CPU side by side would otherwise spin against each other.
_ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
# Large tensors in main memory in pages of 2 MB, where Linux has them: with those of 4 KB, filling takes three times as long.
_ENVIRONMENT["THP_MEM_ALLOC_ENABLE"] = "1"
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # today's name, and the one of before


def worker_environment(given: Mapping[str, str], *, windows: bool = os.name == "nt") -> dict[str, str]:
    """The environment of a training process: `given`, and what suits training.

    Segments that grow leave less of a GPU's memory reserved but unused, by which a plan could miss its limit. PyTorch has
    them on Linux alone; where its allocator is set already, it stays so.

    But for the other allocator, cudaMallocAsync, which ComfyUI chooses for its own process and tells all that it starts: with
    it memory of CUDA graphs that are recorded anew is gone while it is used (PyTorch 2.11), and what plans and promises of
    memory rest on was measured without it.
    """
    environment = {**given, **_ENVIRONMENT, **OFFLINE}
    for name in _ALLOCATOR:
        if kept := _without_async(environment.pop(name, "")):
            environment[name] = kept
    if not windows and not any(name in environment for name in _ALLOCATOR):
        environment[_ALLOCATOR[0]] = "expandable_segments:True"
    return environment


def _without_async(settings: str) -> str:
    """The allocator's settings but for the one that it be CUDA's own."""
    words = (word for word in settings.split(",") if word.replace(" ", "") != "backend:cudaMallocAsync")
    return ",".join(words)


def train_command(path: str, python: str = sys.executable) -> list[str]:
    """The command of a process that trains the run folder `path` until its standard input closes."""
    return [python, *_same_flags(), str(PACK / "wantrain.py"), "train", path, "--follow-stdin"]


def start_process(
    command: Sequence[str], output: Any, environment: Mapping[str, str], folder: Path | None = None
) -> Process:
    """A training process, which prints to `output`, as subprocess takes it. OSError if it can't be started."""
    return POPEN(
        command,
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env=environment,
        **_own_group(),
    )


def run_beside(command: Sequence[str]) -> int:
    """Run a process of `wantrain` to its end, which prints where this one does; its exit code."""
    with POPEN(command) as process:
        try:
            return process.wait()
        except BaseException:  # Ctrl+C
            process.kill()
            raise


def _own_group() -> dict[str, Any]:
    """Keep Ctrl+C in the host's terminal from reaching the worker directly: the host decides how it ends."""
    if os.name == "nt":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}  # type: ignore[attr-defined]
    return {"start_new_session": True}


class _Ahead:
    """The process that was started ahead, if there is one."""

    def __init__(self) -> None:
        self.process: Process | None = None

    def take(self) -> Process | None:
        process, self.process = self.process, None
        return process


_AHEAD = _Ahead()


def start_ahead() -> None:
    """Start a training process that waits to be told its folder. Where that fails, one is started in its time."""
    if _AHEAD.process is not None:
        return
    with suppress(OSError):
        _AHEAD.process = start_process(train_command(WAITS), subprocess.DEVNULL, worker_environment(os.environ))


def dismiss() -> None:
    """End the process that was started ahead, if nobody has taken it."""
    process = _AHEAD.take()
    if process is not None:
        process.kill()
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def take_ahead(folder: Path, log: Path) -> Process | None:
    """The process that was started ahead, which trains `folder` from now on and prints into `log`; None: there is none."""
    process = _AHEAD.take()
    if process is None or process.stdin is None:
        return None
    try:
        process.stdin.write(json.dumps([str(folder), str(log)]).encode() + b"\n")
        process.stdin.flush()
    except OSError:  # it has ended
        process.kill()
        process.wait()
        return None
    return process


class _Assignment:
    """In a process that was started ahead: what it is told, awaited on a thread, beside the imports."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._told_at = 0.0
        self._thread = threading.Thread(target=self._wait, daemon=True, name="assignment")
        self._thread.start()

    def wait(self) -> tuple[Path, float]:
        start = time.monotonic()
        self._thread.join()
        assert self._folder is not None, "a process that is told nothing has ended"
        return self._folder, max(self._told_at - start, 0.0)

    def _wait(self) -> None:
        line = bytearray()
        while not line.endswith(b"\n"):
            byte = read_told(0, 1)  # no more than the line: who follows standard input reads on
            if not byte:
                os._exit(0)  # nobody needs this process
            line += byte
        self._told_at = time.monotonic()
        folder, log = json.loads(line)
        with suppress(OSError):  # as it could be written a moment ago
            file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            os.dup2(file, 1)
            os.dup2(file, 2)
            os.close(file)
        with suppress(OSError):
            os.chdir(folder)
        self._folder = Path(folder)


_ASSIGNMENTS: list[_Assignment] = []


def await_folder() -> None:
    """In a process that was started ahead: begin to listen for its folder."""
    _ASSIGNMENTS.append(_Assignment())


def assigned() -> tuple[Path, float]:
    """After `await_folder`: the run folder, and how many seconds were waited for it here, with nothing else to do."""
    return _ASSIGNMENTS[-1].wait()


def _same_flags() -> list[str]:
    """Find packages where the host finds them: without the user's site folder if it goes without."""
    return ["-s"] if sys.flags.no_user_site else []
