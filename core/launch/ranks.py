"""A run over several GPUs: one process, a rank, for each, started and watched by this one.

It stands in the place of the worker: it is stopped in the same ways (the stop file, standard input that closes, SIGTERM,
Ctrl+C), it prints into the same log, and it ends with the same exit codes. One GPU never comes here.
"""

import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..devices import device_list
from ..errors import RunError, WanTrainError
from ..parallel.world import started_by_torchrun
from ..parent import read_told
from ..processes import is_running
from ..settings.job import Job
from ..train.events import EventReader, EventWriter
from ..train.run_folder import RunFolder
from ..train.spread import check_spread
from ..train.start import check_run_folder
from .exits import EXIT_ERROR, EXIT_FINISHED, EXIT_INTERRUPTED, EXIT_LESS_MEMORY, EXIT_STOPPED
from .failures import failure, lost_machine
from .process import rank_command
from .rank_environment import AGENT, ENDS, Machines, rank_environment, silence_s
from .turns import DeviceTurn
from .worker import train

ORPHAN_PATIENCE_S = 60.0  # for a rank whose agent is gone: it has a checkpoint to write
_POLL_S = 0.2


class KilledError(RunError):
    """A rank was killed: no sentence of another rank tells more."""


def train_here(path: Path, machines: Machines | None = None, *, follow_stdin: bool = True) -> int:
    """Train the job of a run folder: in this process, as one rank of several, or over the devices that the job names.

    With `follow_stdin` the run stops when standard input closes; over several devices it always does.
    """
    if started_by_torchrun():
        return _as_rank(path, follow_stdin=follow_stdin)
    folder = RunFolder(path.resolve())
    check_run_folder(folder.path)
    device = folder.read_job().device
    if machines is None and not _is_list(device):
        return train(path, follow_stdin=True)
    return _train_over(folder, machines or Machines())


def _is_list(device: str) -> bool:
    return "," in device


def _as_rank(path: Path, *, follow_stdin: bool) -> int:
    """One rank. A run that was stopped is no failure to those that torchrun watches, so the code goes by way of a file."""
    agent, ends = os.environ.get(AGENT), os.environ.get(ENDS)
    if agent is None or ends is None:  # started by torchrun itself
        return train(path, follow_stdin=follow_stdin)
    threading.Thread(target=_leave_with, args=(int(agent),), daemon=True, name="agent").start()
    code = train(path, follow_stdin=True)
    (Path(ends) / os.environ["RANK"]).write_text(str(code), encoding="utf-8")
    return EXIT_FINISHED if code == EXIT_STOPPED else code


def _leave_with(agent: int) -> None:
    """End this process some time after its agent, which can no longer end it: it may wait for a rank that is gone."""
    while _is_child_of(agent):
        time.sleep(1.0)
    time.sleep(ORPHAN_PATIENCE_S)
    os._exit(EXIT_ERROR)


def _is_child_of(agent: int) -> bool:
    return is_running(agent) if os.name == "nt" else os.getppid() == agent


def _train_over(folder: RunFolder, machines: Machines) -> int:
    job = folder.read_job()
    devices = device_list(machines.devices or job.device)
    if machines.size == 1:
        check_spread(job, len(devices))
    stop = _Stop(folder)
    tell = _Diary(folder, is_silent=machines.number > 0)
    if not _wait_for(devices, stop, tell):
        return EXIT_STOPPED
    logs = Path(tempfile.mkdtemp(prefix="wantrain-ranks-"))
    try:
        return _Ranks(folder, job, devices, machines, stop, tell, logs).train()
    except WanTrainError as error:
        tell.error(str(error), surely=isinstance(error, KilledError))
        raise
    finally:
        shutil.rmtree(logs, ignore_errors=True)


def _wait_for(devices: Sequence[str], stop: "_Stop", tell: "_Diary") -> bool:
    """Until all devices are free; False if a stop is asked for before. The ranks take them, each its own, in order."""
    turn, is_told = DeviceTurn(devices), False
    while not turn.acquire():
        if not is_told:
            holder = turn.holder()
            tell.status(f"waiting for {', '.join(devices)}: another run is training there. {holder}".rstrip(" ."))
            is_told = True
        if stop.asked.wait(_POLL_S) or stop.by_file():
            tell.stopped()
            return False
    turn.release()
    return True


class _Stop:
    """Asks the ranks to stop, whoever asks this process: all of them read from a pipe that closes then."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self.asked = threading.Event()
        self.is_impatient = False  # asked twice
        self.kill: Callable[[], None] = lambda: None  # ends the ranks at once: for the second time
        mine = os.dup(0)
        read_end, self._for_ranks = os.pipe()
        os.dup2(read_end, 0)  # what the ranks inherit; it ends with this process, too
        os.close(read_end)
        self.listen()
        threading.Thread(target=self._read, args=(mine,), daemon=True, name="parent").start()

    def listen(self) -> None:
        """Take the signals that ask for a stop; torchrun's agent takes them when it starts its ranks."""
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._on_signal)

    def by_file(self) -> bool:
        """Whether somebody wrote the file that asks for a stop."""
        return self._folder.stop_requested()

    def ask(self) -> None:
        """Stop after the step, with a checkpoint."""
        if self.asked.is_set():
            return
        self.asked.set()
        with suppress(OSError):  # the disk is full, or the folder gone
            self._folder.request_stop()  # where rank 0 is on another machine
        with suppress(OSError):  # a signal may come while the thread does it
            os.close(self._for_ranks)

    def _on_signal(self, _number: int, _frame: Any) -> None:
        if self.asked.is_set():
            self.is_impatient = True
            self.kill()
        self.ask()

    def _read(self, mine: int) -> None:
        while read_told(mine, 1024):
            pass
        self.ask()


class _Ranks:
    """The ranks of one start of a run on this machine."""

    def __init__(
        self,
        folder: RunFolder,
        job: Job,
        devices: Sequence[str],
        machines: Machines,
        stop: _Stop,
        tell: "_Diary",
        logs: Path,
    ) -> None:
        self._folder, self._job, self._devices, self._machines = folder, job, list(devices), machines
        self._stop, self._tell, self._logs = stop, tell, logs

    def train(self) -> int:
        """To their end; the exit code of rank 0, or of this machine's first. RunError if one has failed."""
        from .agent import Agent, Connection, MachineGroup, Rendezvous, RunMachine, open_store

        machines = self._machines
        ends = self._logs / "ends"
        ends.mkdir()
        os.environ.update(rank_environment(os.environ, self._devices, ends, machines))
        store = open_store(machines.host, machines.port, is_server=machines.size == 1)
        group = MachineGroup(machines.number, machines.size, machines.host, machines.name)
        rendezvous = Rendezvous(store, group, RunMachine(socket.gethostname(), tuple(self._devices)))
        agent = Agent(
            rank_command(self._folder),
            rendezvous,
            ranks=len(self._devices),
            logs=self._logs / "out",
            on_start=self._stop.listen,
            on_restart=lambda: self._tell.status("starting all GPUs again from the last checkpoint, with less memory"),
            should_restart=lambda: not self._stop.asked.is_set(),
            connection=Connection((machines.host, machines.port), silence_s()) if machines.number else None,
        )
        self._stop.kill = agent.kill_ranks
        outcome = agent.train()
        if outcome.is_finished:
            return self._code(ends)
        if self._stop.is_impatient:
            return EXIT_INTERRUPTED
        if outcome.is_cut_off:
            raise KilledError(lost_machine(machines.address))
        if self._stop.asked.is_set() and all(end.code == EXIT_LESS_MEMORY for end in outcome.ended):
            self._tell.stopped()
            return EXIT_STOPPED
        kind = KilledError if any(end.code < 0 for end in outcome.ended) else RunError
        raise kind(failure(outcome.ended, outcome.places, machines.number, self._printed))

    def _code(self, ends: Path) -> int:
        codes = {int(path.name): int(path.read_text(encoding="utf-8")) for path in ends.iterdir()}
        return codes[min(codes)]

    def _printed(self, local_rank: int) -> str:
        """What a rank of this machine printed; "" for nothing."""
        files = sorted(self._logs.glob(f"out/*/*/{local_rank}/std*.log"), key=lambda path: path.stat().st_mtime)
        return "\n".join(path.read_text("utf-8", errors="replace") for path in files)


class _Diary:
    """What this process has to tell of the run, before its ranks write the diary and after them. Machine 0 alone writes."""

    def __init__(self, folder: RunFolder, *, is_silent: bool) -> None:
        self._path, self._is_silent = folder.events_path, is_silent
        self._reader = EventReader(folder.events_path, at_end=True)

    def status(self, message: str) -> None:
        """What the run is busy with."""
        self._write("status", message=message)

    def stopped(self) -> None:
        """As the worker tells it."""
        self._write("stopped", message="stopped")

    def error(self, message: str, *, surely: bool) -> None:
        """Why the run has failed, unless a rank has told it. Of a rank that was killed the others know too little."""
        if surely or not any(event["event"] == "error" for event in self._reader.read()):
            self._write("error", message=message)

    def _write(self, event: str, **fields: Any) -> None:
        if not self._is_silent:
            with suppress(OSError, WanTrainError):
                EventWriter(self._path).write(event, **fields)
