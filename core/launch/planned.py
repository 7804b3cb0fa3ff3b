"""Which job is trained where, before its worker is started."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..devices import AUTO, auto_devices, device_list, device_name
from ..errors import ConfigError
from ..plan.spread import GAIN
from ..plan.words import label
from ..settings.job import Job, Stage
from ..settings.track import TrackOptions
from ..train.claim import Claim, claim_folder, claim_run
from ..train.find_run import find_run
from ..train.run_folder import RunFolder
from ..train.spread import check_spread, describe_spread
from .pace import duration

# Seconds that a job takes on so many GPUs with as many batches a step, and how many GPUs share each clip; None: not known.
Expected = Callable[[Job, int], tuple[float, int] | None]


@dataclass(frozen=True)
class Planned:
    """A job and the folder that it is trained in."""

    name: str  # in messages: high, low, or single
    folder: RunFolder
    job: Job
    runs: Path | None = None  # where the folder is chosen among others; None: it is given
    track: TrackOptions = field(default_factory=TrackOptions)  # where else its diary is shown

    def where(self) -> RunFolder:
        """The folder, as things are now: others may have trained meanwhile."""
        return find_run(self.runs, self.job) if self.runs else self.folder

    def claim(self, device: str) -> Claim:
        """Take the folder, and write the job there for a device, or several. InUseError if somebody trains in it.

        ConfigError if so many can't train the job.
        """
        check_spread(self.job, len(device.split(",")))
        job = replace(self.job, device=device)
        return claim_run(self.runs, job) if self.runs else claim_folder(self.folder, job)


def places_of(device: str, pool: Sequence[str]) -> list[str]:
    """Where a job with this device may be trained: any of the pool for `auto`, else what it names.

    Each is one device, or several that train the run together: "cuda:0,cuda:1".
    """
    return list(pool) if device == AUTO else [device_name(device_list(device))]


def pool_of(devices: Sequence[str]) -> list[str]:
    """The places that `auto` chooses from, as the command line names them; every GPU for none.

    `all` is one place of all GPUs, and "cuda:0+cuda:1" one of two. ConfigError for a device that is not there or is in two
    places, and for places of several sizes: how many GPUs a run has decides how many batches a step has.
    """
    pool = [device_name(device_list(name)) for name in devices] or auto_devices()
    sizes = {len(place.split(",")) for place in pool}
    if len(sizes) > 1:
        raise ConfigError(
            f"the devices {' and '.join(pool)} are groups of different sizes, but how many GPUs a run has must be known: "
            "make them equal."
        )
    if sizes != {1}:
        check_apart(pool)
    return pool


def check_apart(places: Sequence[str]) -> None:
    """ConfigError for a device that is in two places."""
    names = [name for place in places for name in place.split(",")]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ConfigError(
            f"the devices {' and '.join(places)} have {twice} in two groups: a GPU trains one run at a time."
        )


def gpus_of(device: str, pool: Sequence[str]) -> int:
    """How many devices train one run: of the job's device, or of a place of the pool."""
    return len(places_of(device, pool)[0].split(","))


def describe_turns(jobs: Sequence[Job], pool: Sequence[str]) -> list[str]:
    """What is said before the start of experts that were to take turns on a GPU, and won't. `jobs`: all that are trained."""
    wanted = [job for job in jobs if job.alternate_every]
    if not wanted:
        return []
    if len(jobs) == 1:
        return [
            "alternate_every has an effect only while the other expert is trained on the same GPU; this trains one alone."
        ]
    if len(wanted) < len(jobs):
        return [
            f"alternate_every is set for the {wanted[0].stage} noise expert alone, and has no effect: set it for both."
        ]
    if len({job.device for job in jobs}) > 1 or (len(pool) > 1 and wanted[0].device == AUTO):
        return [
            "alternate_every has no effect, since each expert has a GPU of its own: both are trained at the same time."
        ]
    return []


def describe_devices(
    jobs: Sequence[Job],
    pool: Sequence[str],
    gpus: Mapping[Stage, int],
    expected: Expected | None = None,
) -> list[str]:
    """What is said before the start about the GPUs: how a run is spread over them, or that it is not. [] for one GPU.

    `gpus`: how many train each stage together. Two experts have a GPU each where both are free to choose: each then trains
    the samples of a step that were asked for, which a run over all GPUs would multiply. `expected`: see `Expected`.
    """
    said = [(job, describe_spread(job, gpus[job.stage])) for job in jobs if gpus[job.stage] > 1]
    if said and len({sentence for _, sentence in said}) == 1:
        in_turn = "; the experts take turns" if len(said) > 1 and len(pool) < len(said) else ""
        return [f"{said[0][1]}{in_turn}"]
    if said:
        return [f"{job.stage}: {sentence}" for job, sentence in said]
    free = [job for job in jobs if job.device == AUTO]
    if len(pool) < 2 or not free:
        return []
    if len(free) == 1:
        return [f"1 of {len(pool)} GPUs is used: with device all they train this run together."]
    more = f"; {len(pool) - len(free)} stay free" if len(pool) > len(free) else ""
    apart = f"{len(pool)} GPUs: each expert is trained on one, at the same time{more}"
    together = "all of them train one expert after the other, with as many samples more in each step."
    return [f"{apart}. With device all, {together}", *_compared(free, len(pool), expected)]


def _compared(jobs: Sequence[Job], count: int, expected: Expected | None) -> list[str]:
    """One expert a GPU against all GPUs for one after the other, by what they are expected to take for the same training."""
    if expected is None:
        return []
    alone, on_all = ([expected(job, number) or (math.inf, 1) for job in jobs] for number in (1, count))
    apart, together = max(seconds for seconds, _ in alone), sum(seconds for seconds, _ in on_all)
    if not math.isfinite(apart) or not math.isfinite(together):
        return []
    said = (
        f"At the same time they take about {duration(apart)}; one after the other on all GPUs, with as many samples in each "
        f"step, about {duration(together)}"
    )
    context = on_all[0][1]
    groups = count // context
    batches = {job.loop.gradient_accumulation for job in jobs}
    if together * GAIN >= apart or len(batches) > 1 or batches.pop() % groups or any(c != context for _, c in on_all):
        return [f"{said}."]
    each = jobs[0].loop.gradient_accumulation // groups
    how = f"{label('context')} {context} and {label('gradient_accumulation')} {each}"
    return [f"{said}, which is faster: device all, {how}."]
