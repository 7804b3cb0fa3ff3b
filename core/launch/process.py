"""Starting a worker and following it, from a process that must stay responsive."""

import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, BinaryIO

from ..disk import disk_error
from ..errors import RunError
from ..train.events import Event, EventReader
from ..train.requests import forget_requests
from ..train.run_folder import RunFolder
from ..train.start import check_run_folder
from .ahead import Process, start_process, take_ahead, train_command, worker_environment


def rank_command(folder: RunFolder, python: str = sys.executable) -> list[str]:
    """The command of a process that trains a run folder until its standard input closes."""
    return train_command(str(folder.path), python)


class Worker:
    """A training process on one run folder, which has others below it where the job names several devices.

    RunError if it can't be started.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        python: str = sys.executable,
        environment: dict[str, str] | None = None,
        arguments: Sequence[str] = (),
        is_guest: bool = False,
    ):
        """`arguments`: further ones of its command, for a run over several machines.

        `is_guest`: the run was started on another machine, which has the folder in order; this one has a log of its own.
        """
        self.folder = folder
        check_run_folder(folder.path)  # before the log, which would be written through a link
        self.log_path = folder.log_path
        if is_guest:
            self.log_path = folder.log_path.with_name(f"worker-{socket.gethostname()}-{os.getpid()}.log")
        else:
            try:
                folder.clear_stop()
                forget_requests(folder.path)
            except OSError as error:
                raise disk_error(error, folder.path, "nothing was started") from error
        self._reader = EventReader(folder.events_path, at_end=True)
        try:
            log = self.log_path.open("ab")
        except OSError as error:
            raise disk_error(error, self.log_path, "nothing was started") from error
        with log:
            is_usual = python == sys.executable and not environment and not arguments
            ahead = take_ahead(folder.path, self.log_path) if is_usual else None
            self.process = ahead or self._start([*rank_command(folder, python), *arguments], log, environment or {})

    def _start(self, command: Sequence[str], log: BinaryIO, environment: Mapping[str, str]) -> Process:
        try:
            return start_process(command, log, {**worker_environment(os.environ), **environment}, self.folder.path)
        except OSError as error:
            raise RunError(
                f"the training process can't be started ({error}): {command[0]} must be there, and {self.folder.path}."
            ) from error

    def poll(self) -> list[Event]:
        """Events since the last call."""
        return self._reader.read()

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self.process.poll()

    def request_stop(self) -> None:
        """Ask for a stop after the current step, with a checkpoint."""
        try:
            self.folder.request_stop()
        except OSError:  # the disk is full, or the folder gone: it stops as well when it has no parent
            self._close_stdin()

    def kill(self, patience: float = 0.0) -> None:
        """End it: after `patience` seconds by force. Returns when it is gone."""
        deadline = time.monotonic() + patience
        while self.exit_code is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if self.exit_code is None:
            below = _processes_below(self.process.pid)
            self.process.kill()
            _kill_all(below)
        self.process.wait()
        self._close_stdin()

    def _close_stdin(self) -> None:
        if self.process.stdin:
            self.process.stdin.close()

    def log_tail(self, lines: int = 12) -> str:
        """The end of what it printed."""
        try:
            text = self.log_path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])


def _processes_below(pid: int) -> list[Any]:
    """Those that a process has started, as psutil knows them; none without psutil: then they end by themselves, later."""
    try:
        import psutil
    except ImportError:
        return []
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def _kill_all(processes: Sequence[Any]) -> None:
    """What still runs of them: psutil tells a process from a later one of the same number."""
    for process in processes:
        with suppress(Exception):  # psutil.Error: it is gone, or was never ours
            process.kill()
