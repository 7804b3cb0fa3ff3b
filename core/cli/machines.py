"""Training over several machines from the command line: machine 0 leads, the others join its runs."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath

from ..devices import ALL, device_list
from ..errors import ConfigError, RunError, advised
from ..launch.exits import EXIT_STOPPED
from ..launch.follow import POLL_SECONDS, FollowedRun
from ..launch.meeting import Called, Meeting
from ..train.run import RunStoppedError
from ..train.run_folder import RunFolder
from .advice import ADVICE
from .arguments import worker_arguments
from .display import Display
from .stage_queue import show_events, terminate_like_ctrl_c


def own_devices(devices: Sequence[str]) -> list[str]:
    """Those of this machine, which train together; ConfigError for several groups of them."""
    if len(devices) > 1:
        raise ConfigError(
            f"--devices {','.join(devices)} means one run on each, but over several machines all GPUs train one run: use "
            f"all, or {'+'.join(devices)}."
        )
    return device_list(devices[0] if devices else ALL)


@contextmanager
def leading(call: Called, devices: Sequence[str], display: Display) -> Iterator[tuple[Meeting, int]]:
    """As machine 0: the meeting, and how many devices all machines have together."""
    meeting = Meeting(call, own_devices(devices))
    try:
        yield meeting, meeting.gpus(display.say)
    except BaseException:
        meeting.close(patience=1.0)
        raise
    meeting.close(patience=10.0)


def join(call: Called, devices: Sequence[str], runs: Path, display: Display) -> None:
    """As another machine: train in each run that machine 0 calls to, until there is none. RunError if one failed.

    `runs`: where the run folders lie as this machine sees them.
    """
    meeting = Meeting(call, own_devices(devices))
    display.say(f"machine {call.number} of {call.size}: waiting until machine 0 has made the caches")
    try:
        with terminate_like_ctrl_c():
            while (told := meeting.next_run(lambda path: runs / _name(path))) is not None:
                _train(RunFolder(told[0]), worker_arguments(meeting, told[1]), display)
    except KeyboardInterrupt:
        raise RunStoppedError from None


def _name(path: str) -> str:
    return PureWindowsPath(path).name  # which reads both kinds of slashes


def _train(folder: RunFolder, arguments: Sequence[str], display: Display) -> None:
    job = folder.read_job()
    run = FollowedRun(folder, job.loop.steps, arguments=arguments, is_guest=True, job=job)
    display.say(f"{job.stage}: training in {folder.path}")
    try:
        _until_over(run, job.stage, display)
    except KeyboardInterrupt:
        display.say("stopping all machines: a checkpoint is being written")
        run.request_stop()
        _until_over(run, job.stage, display)
        raise
    finally:
        run.end()
        display.end(job.stage)
    if run.worker.exit_code == EXIT_STOPPED:
        display.say(f"{job.stage}: stopped at step {run.last_step}; start all machines again to go on")
        raise RunStoppedError
    if (problem := run.problem()) is not None:
        raise RunError(f"{job.stage}: {advised(problem, ADVICE)}")


def _until_over(run: FollowedRun, name: str, display: Display) -> None:
    while not run.is_over:
        events = run.poll()
        show_events(display, name, events)
        if any(event["event"] == "step" for event in events):
            display.update(name, run.last_step, run.steps, run.words())
        time.sleep(POLL_SECONDS)
