"""The worker process: trains the job of one run folder. Started by the node, or by hand:

python wantrain.py train RUN_FOLDER
"""

import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any

import torch

from ..adapters.setup import begin_importing_adapters
from ..errors import RunError, WanTrainError
from ..locks import FileLock
from ..memory.overhead import Others
from ..train.events import EventWriter
from ..train.prepare import resolve_device
from ..train.run import RunStoppedError, run_job
from ..train.run_folder import RunFolder

EXIT_FINISHED, EXIT_ERROR, EXIT_STOPPED = 0, 1, 3
log = logging.getLogger(__name__)


def device_lock(device: torch.device) -> FileLock:
    """The lock that a run holds on its device, so that two runs take turns instead of sharing its memory."""
    import getpass
    import tempfile

    name = str(device).replace(":", "-")
    return FileLock(Path(tempfile.gettempdir()) / f"wantrain-{getpass.getuser()}-{name}.lock")


def train(path: Path, *, follow_stdin: bool = False) -> int:
    """Train the job in the run folder `path`; the process's exit code.

    With `follow_stdin` the run stops, with a checkpoint, when standard input closes: the parent has died.
    """
    folder = RunFolder(path.resolve())
    job = folder.read_job()
    lock = folder.lock()
    if not lock.acquire():
        raise RunError(f"{folder.path} is being trained by another process: wait for it, or stop it.")
    if not follow_stdin:
        folder.clear_stop()  # started by hand: an old request is not meant for this run
    stop = threading.Event()
    _listen(stop, follow_stdin)
    events = EventWriter(folder.events_path)
    try:
        return _train_locked(folder, events, job.device, stop)
    except RunStoppedError:
        folder.clear_stop()
        events.write("stopped", message="stopped; queue again to go on")
        return EXIT_STOPPED
    except WanTrainError as error:
        events.write("error", message=str(error))
        raise
    except torch.OutOfMemoryError as error:
        message = (
            "the GPU ran out of memory: use fewer frames, a smaller size, batch_size 1, or for the base a smaller precision "
            "or streamed_blocks; the last checkpoint is kept."
        )
        events.write("error", message=message)
        raise RunError(message) from error
    except Exception as error:
        events.write("error", message=f"{type(error).__name__}: {error} (details in {folder.log_path})")
        raise
    finally:
        lock.release()


def _train_locked(folder: RunFolder, events: EventWriter, device_name: str, stop: threading.Event) -> int:
    device = resolve_device(device_name)
    others = Others() if device.type == "cuda" else None
    begin_importing_adapters()  # slow, so it is done while another run may be on the device, and the model is read
    if others is not None:
        others.wait()  # the device has none of this process's memory until here
        torch.cuda.set_device(device)  # for libraries that use the current device, such as bitsandbytes
    turn = device_lock(device)
    waiting = False
    while not turn.acquire():
        if not waiting:
            events.write("status", message=f"waiting for {device}: another run is training on it")
            waiting, others = True, None  # what is in use changes
        if stop.wait(0.2) or folder.stop_requested():
            raise RunStoppedError
    try:
        lora = run_job(folder, events, device, lambda: stop.is_set() or folder.stop_requested(), others=others)
    finally:
        turn.release()
    events.write("finished", lora=lora.name)
    return EXIT_FINISHED


def _listen(stop: threading.Event, follow_stdin: bool) -> None:
    def on_signal(_number: int, _frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt  # the second time: at once
        stop.set()

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    if follow_stdin:

        def wait_for_end() -> None:
            while os.read(0, 1024):  # not sys.stdin: its lock, held by this thread, would abort the interpreter's exit
                pass
            stop.set()

        threading.Thread(target=wait_for_end, daemon=True, name="parent").start()
