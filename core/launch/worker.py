"""The worker process: trains the job of one run folder. Started by the node, or by hand:

python wantrain.py train RUN_FOLDER
"""

import contextlib
import getpass
import logging
import os
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from ..adapters.peft_hooks import begin_importing_adapters
from ..devices import gpu_uuid, resolve_device
from ..errors import START_AGAIN, RunError, WanTrainError
from ..gpu_failure import telling_failures
from ..later_compiler import import_compiler_later
from ..locks import FileLock
from ..memory.deterministic import set_environment
from ..parallel.world import started_by_torchrun
from ..parent import read_told
from ..plan.overhead import OtherPrograms
from ..plan.words import label
from ..settings.job import Job
from ..sweep import sweep_temporaries
from ..train.events import EventWriter
from ..train.find_run import progress_of, steps_done
from ..train.run import RunStoppedError, run_job
from ..train.run_folder import RunFolder, deleted_message
from ..train.start import check_run_folder
from .alternating import AlternatingTurn
from .exits import EXIT_FINISHED, EXIT_STOPPED

LOCK_PATIENCE_S = 0.5
log = logging.getLogger(__name__)


def device_lock(device: torch.device) -> FileLock:
    """The lock that a run holds on its device, so that two runs take turns instead of sharing its memory.

    A GPU's is named by the GPU: its number may differ from process to process (CUDA_VISIBLE_DEVICES, SLURM).
    RunError where there is no folder for temporary files.
    """
    uuid = gpu_uuid(device) if device.type == "cuda" else ""
    name = f"cuda-{uuid}" if uuid else str(device).replace(":", "-")
    try:
        folder = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise RunError(
            f"{error.strerror or error}: make one of these folders writable, or name another by the environment variable "
            "TMPDIR (on Windows TEMP)."
        ) from error
    return FileLock(folder / f"wantrain-{_user()}-{name}.lock")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a number without a name, as in some containers
        return str(os.getuid()) if hasattr(os, "getuid") else "user"


def train(path: Path, *, follow_stdin: bool = False) -> int:
    """Train the job in the run folder `path`; the process's exit code.

    With `follow_stdin` the run stops, with a checkpoint, when standard input closes: the parent has died.
    """
    import_compiler_later()
    folder = RunFolder(path.resolve())
    check_run_folder(folder.path)
    folder.read_job()  # RunError where there is none, before anything is made there
    stop = threading.Event()

    def begin(folder: RunFolder) -> tuple[Job, _Asked, FileLock]:
        return _begin(folder, stop, keep_stop=follow_stdin)

    if started_by_torchrun():
        from .rank import train_rank

        _listen(stop, follow_stdin)
        return train_rank(folder, begin, stop.is_set)
    job, asked, lock = begin(folder)
    try:
        _listen(stop, follow_stdin)
        return _train_and_tell(folder, job, asked)
    finally:
        lock.release()


def _begin(folder: RunFolder, stop: threading.Event, *, keep_stop: bool) -> tuple[Job, "_Asked", FileLock]:
    """Take the folder: its job, whether the run shall stop, and the lock, which is to be released.

    `keep_stop`: a request for a stop is meant for this process. RunError if another process has the folder.
    """
    lock = _lock_folder(folder)
    try:
        job = folder.read_job()
        done = steps_done(folder)
        if done > job.loop.steps:
            raise RunError(
                f"{folder.path} holds a training of {done} steps, but its job.json says {job.loop.steps}: raise steps there, "
                "or train from the recipe or the graph, which give the shorter training a folder of its own."
            )
        sweep_temporaries(folder.path, recursive=True)
        if not keep_stop:
            folder.clear_stop()  # started by hand: an old request is not meant for this run
    except BaseException:
        lock.release()
        raise
    return job, _Asked(folder, job, lock, stop), lock


def _lock_folder(folder: RunFolder) -> FileLock:
    lock = folder.lock()
    end = time.monotonic() + LOCK_PATIENCE_S  # others hold it for a moment, to see whether somebody trains
    while not lock.acquire():
        if time.monotonic() >= end:
            message = f"{folder.path} is being trained by another process: wait for it, or stop it."
            raise RunError(f"{message} {lock.holder()}".rstrip())
        time.sleep(0.05)
    return lock


class _Asked:
    """Whether the run shall stop, asked between two steps; sees that its folder is still there.

    People delete folders. The job is written again if it alone is gone, and the lock taken again if nobody else has it.
    RunError if both are: then the folder was deleted, though parts of it may have been written since.
    """

    def __init__(self, folder: RunFolder, job: Job, lock: FileLock, stop: threading.Event):
        self._folder, self._job, self._lock, self.stop = folder, job, lock, stop

    def __call__(self) -> bool:
        self.refuse_deleted()
        if self._lock.is_lost:
            self._lock.release()
            if not self._lock.acquire():
                raise RunError(
                    f"the lock {self._lock.path} was deleted while the run was trained, and another process has taken the "
                    "folder: it goes on there."
                )
        if not self._folder.is_there:
            self._folder.write_job(self._job)
        return self.stop.is_set() or self._folder.stop_requested()

    def refuse_deleted(self) -> None:
        """RunError if the folder was deleted."""
        if not self._folder.is_there and self._lock.is_lost:
            raise RunError(deleted_message(self._folder), about=START_AGAIN)


def _train_and_tell(folder: RunFolder, job: Job, asked: _Asked) -> int:
    events = EventWriter(folder.events_path)
    try:
        return _train_locked(folder, events, job, asked)
    except RunStoppedError:
        with contextlib.suppress(OSError):  # the next start forgets it, too
            folder.clear_stop()
        events.write("stopped", message="stopped")
        return EXIT_STOPPED
    except WanTrainError as error:
        asked.refuse_deleted()
        _tell_error(events, str(error), error.about)
        raise
    except torch.OutOfMemoryError as error:
        message = (
            f"the GPU ran out of memory: use fewer frames, a smaller size, {label('batch_size')} 1, or for the base a lower "
            f"precision or {label('streamed_blocks')}; the last checkpoint is kept."
        )
        _tell_error(events, message)
        raise RunError(message) from error
    except Exception as error:
        asked.refuse_deleted()
        _tell_error(events, f"{type(error).__name__}: {error} (details in {folder.log_path})")
        raise


def _tell_error(events: EventWriter, message: str, about: str = "") -> None:
    """Write it into the diary if that is possible; it is raised in any case."""
    with contextlib.suppress(OSError, WanTrainError):
        events.write("error", message=message, **({"about": about} if about else {}))


def _train_locked(folder: RunFolder, events: EventWriter, job: Job, asked: _Asked) -> int:
    if job.memory.deterministic:
        set_environment()  # before the device is used
    device = resolve_device(job.device)
    others = OtherPrograms() if device.type == "cuda" else None
    begin_importing_adapters()  # while others answer
    if others is not None:
        others.wait()  # the device has none of this process's memory until here
        with telling_failures(device, lambda: progress_of(folder)):
            torch.cuda.set_device(device)  # for libraries that use the current device, such as bitsandbytes
    turn = AlternatingTurn(device_lock(device), alternates=job.alternate_every > 0)
    try:
        others = _wait_for_turn(turn, device, events, asked, others)
        lora = run_job(folder, events, device, asked, others=others, turns=turn)
    finally:
        turn.release()
    events.write("finished", lora=lora.name)
    return EXIT_FINISHED


def _wait_for_turn(
    turn: AlternatingTurn, device: torch.device, events: EventWriter, asked: _Asked, others: OtherPrograms | None
) -> OtherPrograms | None:
    """Until it is there. `others`, or None where there was time for them to change. RunStoppedError if the run shall stop."""
    waiting = False
    while not turn.acquire():
        if not waiting:
            message = (
                f"waiting for {device}: another run is training on it, such as the other expert's. {turn.holder()}"
            )
            events.write("status", message=message.rstrip(" ."))
            waiting, others = True, None  # what is in use changes
        asked.stop.wait(0.2)
        if asked():
            raise RunStoppedError
    return others


def _listen(stop: threading.Event, follow_stdin: bool) -> None:
    def on_signal(_number: int, _frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt  # the second time: at once
        stop.set()

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    if follow_stdin:

        def wait_for_end() -> None:
            # Not sys.stdin: its lock, held by this thread, would abort the interpreter's exit.
            while read_told(0, 1024):
                pass
            stop.set()

        threading.Thread(target=wait_for_end, daemon=True, name="parent").start()
