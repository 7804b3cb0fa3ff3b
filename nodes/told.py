"""What the training node says of its run, in one place: on the node while it goes on, at its end, and after a reload."""

import time
from collections import Counter

from ..core.data.counting import describe_lengths
from ..core.launch.follow import FollowedRun, gpus_of_step
from ..core.launch.pace import duration
from ..core.settings.job import Job
from ..core.train.events import Event
from ..core.train.find_run import began, steps_done
from ..core.train.history import LongHistory
from ..core.train.length import job_length
from ..core.train.run_folder import RunFolder
from ..core.train.scores import best_in_words, last_in_words, score_run
from ..core.words import counted
from .page_file import notes_of


def run_line(folder: RunFolder, job: Job) -> str:
    """Which run it is: its name, the day it began, and its folder."""
    start = began(folder)
    since = "" if start is None else time.strftime(", begun %Y-%m-%d %H:%M", time.localtime(start))
    return f"run {job.name}{since}, in {folder.path.name}"


def told(folder: RunFolder, job: Job, history: LongHistory, *more: str, is_over: bool = True) -> str:
    """How the run ended, which run it is, then every warning once. `more`: warnings that no file holds yet.

    `is_over`: nobody follows the run any more, which can have stopped for a pause.
    """
    warnings = dict.fromkeys([*notes_of(folder), *more, *history.warnings])
    end = _end(folder, job, history) if is_over else []
    length = [] if is_finished(folder, job, history) else [length_line(job)]
    best = _best(folder, job) if end else []
    return "\n".join([*end, *length, *best, run_line(folder, job), *(f"- {warning}" for warning in warnings)])


def length_line(job: Job) -> str:
    """What an epoch is, and how many the steps are; of an expert, that the other has steps of its own."""
    (sentence,) = describe_lengths({job.stage: job_length(job)})
    if job.turns is not None:
        return f"{sentence}, of both experts together"
    return sentence if job.stage == "single" else f"{sentence}; the other expert has its own steps, on its node"


def _best(folder: RunFolder, job: Job) -> list[str]:
    """Which of the kept checkpoints is best by its numbers; [] where nothing tells, or there is one alone."""
    scores = score_run(folder, job, read=False)
    best = best_in_words(scores)
    if not best:
        return []
    clause, is_bad = last_in_words(scores)
    advice = f"{clause}: to use the best, set weights of Merge Stages to best" if is_bad else clause
    return ["; ".join(filter(None, [f"best checkpoint: {best}", advice]))]


def is_finished(folder: RunFolder, job: Job, history: LongHistory) -> bool:
    """Whether the run is done with all its steps; one that was made longer is not, before it has gone on."""
    return history.state == "finished" and steps_done(folder) >= job.loop.steps


def _end(folder: RunFolder, job: Job, history: LongHistory) -> list[str]:
    if is_finished(folder, job, history):
        return [f"finished: {counted(job.loop.steps, 'step')}, {counted(job_length(job).epochs, 'epoch')}"]
    if history.state in ("stopped", "finished"):
        return [f"stopped at step {history.losses.last_step} of {job.loop.steps}: press Run to go on"]
    return []


def facts(run: FollowedRun) -> list[str]:
    """Numbers beside the curve, each with what it is: time left, seconds a step, learning rate, memory. [] before a step."""
    step = run.history.last_step
    if not step or not run.pace.num_steps:
        return []
    left = run.pace.left(run.steps - step["step"])
    found = [] if left is None else [f"{duration(left)} left"]
    found += [f"{run.pace.seconds:.2f} s a step"]
    found += [f"learning rate {step['lr']:.2e}"] if "lr" in step else []
    return [*found, *_memory(step)]


def progress_line(name: str, run: FollowedRun) -> str:
    """For whoever sees the host's progress alone: which training it is, how far it is, and how long it will take."""
    done = f"{name}: step {run.last_step} of {run.steps}"
    left = run.pace.left(run.steps - run.last_step) if run.last_step and run.pace.num_steps else None
    return done if left is None else f"{done}, {duration(left)} left"


def _memory(step: Event) -> list[str]:
    """The GPU's memory at its fullest; of several GPUs each one's, and which GPUs they are."""
    gpus = gpus_of_step(step)
    if len(gpus) < 2:
        return [f"{step['reserved_gib']:.1f} GiB of the GPU"] if "reserved_gib" in step else []
    names = Counter(name or "GPU" for name, _ in gpus)
    which = " and ".join(f"{count} x {name}" for name, count in names.items())
    return [f"{len(gpus)} GPUs ({which})", f"{', '.join(f'{gib:.1f}' for _, gib in gpus)} GiB of them"]
