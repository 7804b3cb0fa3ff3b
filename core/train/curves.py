"""What a chart shows of a run beside its loss: by noise level, learning rate, gradient norm; and all of it as a table."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..facts import SIGMA_BINS
from ..safe_json import read_object
from ..settings.job import Job
from .by_sigma import groups_of_window
from .history import LongHistory, window_of
from .run_folder import RunFolder
from .thinning import Drawn

LOSS, HELD_OUT, RATE, GRADIENT, SIGMA = "loss", "held_out", "learning_rate", "gradient_norm", "sigma"
SERIES = (LOSS, HELD_OUT, RATE, GRADIENT, SIGMA)


@dataclass(frozen=True, kw_only=True)
class CurvePart:
    """Which part of a curve is shown, and how smooth."""

    first: int | None = None
    last: int | None = None
    window: float | None = None  # values that an average looks back over; None: as fits the length of the run


def run_curves(job: Job, history: LongHistory, names: tuple[str, ...], part: CurvePart) -> dict[str, Any]:
    """Points and averages of the series called `names`, thinned; those by noise level with their sigmas."""
    window = part.window or window_of(job.loop.steps)
    drawn = {
        LOSS: lambda: _told(history.losses.drawn(window, first=part.first, last=part.last)),
        HELD_OUT: lambda: _told(history.validation.drawn(first=part.first, last=part.last)),
        RATE: lambda: _told(history.learning_rates.drawn(first=part.first, last=part.last)),
        GRADIENT: lambda: _told(history.gradient_norms.drawn(window, first=part.first, last=part.last)),
        SIGMA: lambda: _by_sigma(job, history, window, part),
    }
    return {name: drawn[name]() for name in names}


def sigma_note(job: Job, history: LongHistory) -> str:
    """What is not exact about the losses by noise level; "" where they are."""
    if not history.by_sigma.num_means or job.loop.batch_size * job.loop.gradient_accumulation == 1:
        return ""
    return (
        "Some steps were logged by an earlier version with the mean noise level of their samples alone: their loss stands at "
        "that level."
    )


def _told(drawn: Drawn) -> dict[str, Any]:
    return {"points": drawn.points, "smoothed": drawn.averages}


def _by_sigma(job: Job, history: LongHistory, window: float, part: CurvePart) -> list[dict[str, Any]]:
    groups = groups_of_window(job.timesteps.sigma_min, job.timesteps.sigma_max)
    curves = [history.by_sigma.drawn(bins, window, first=part.first, last=part.last) for bins in groups]
    return [
        {"low": bins[0] / SIGMA_BINS, "high": bins[1] / SIGMA_BINS, **_told(curve)}
        for bins, curve in zip(groups, curves, strict=True)
    ]


class CurveTable:
    """All steps of a run as the rows of a CSV file. It is made under the history's lock, and read without."""

    def __init__(self, job: Job, history: LongHistory) -> None:
        self._columns: dict[str, Mapping[int, float]] = {
            "loss": copy.deepcopy(history.losses),
            "held_out_loss": copy.deepcopy(history.validation),
            "learning_rate": copy.deepcopy(history.learning_rates),
            "gradient_norm": copy.deepcopy(history.gradient_norms),
        }
        for bins in groups_of_window(job.timesteps.sigma_min, job.timesteps.sigma_max):
            low, high = (edge / SIGMA_BINS for edge in bins)
            means = dict(zip(*history.by_sigma.means(bins), strict=True))
            self._columns[f"loss_at_sigma_{low:g}_to_{high:g}"] = means

    def lines(self) -> Iterator[str]:
        """The head, and a line a step; what was not measured at a step is empty."""
        yield ",".join(["step", *self._columns]) + "\n"
        columns = list(self._columns.values())
        steps = sorted({*self._columns["loss"], *self._columns["held_out_loss"]})
        for step in steps:
            values = (column.get(step) for column in columns)
            yield ",".join([str(step), *("" if value is None else repr(value) for value in values)]) + "\n"


@dataclass(frozen=True, kw_only=True)
class OtherRun:
    """A run that a chart can show beside its own."""

    run: str  # name of its folder
    name: str
    stage: str
    steps: int
    changed: float  # seconds since the epoch
    is_other_expert: bool  # the newest of the same name that trains the other expert


def other_runs(runs: Path, own: RunFolder) -> list[OtherRun]:
    """The runs in the folder `runs` but `own`: the other expert's first, then the one that changed last."""
    job = read_object(own.job_path) or {}
    other = {"high": "low", "low": "high"}.get(str(job.get("stage")))
    found = sorted(_runs(runs, own), key=lambda one: -one.changed)
    partner = next((one.run for one in found if one.name == job.get("name") and one.stage == other), None)
    marked = [OtherRun(**{**vars(one), "is_other_expert": one.run == partner}) for one in found]
    return sorted(marked, key=lambda one: not one.is_other_expert)


def _runs(runs: Path, own: RunFolder) -> Iterator[OtherRun]:
    for path in runs.iterdir():
        job = None if path.name.startswith(".") or path == own.path else read_object(path / "job.json")
        if job is None:
            continue
        loop, steps = job.get("loop"), 0
        if isinstance(loop, dict) and isinstance(loop.get("steps"), int):
            steps = loop["steps"]
        try:
            changed = (path / "events.jsonl").stat().st_mtime
        except OSError:
            continue  # nothing to show
        name, stage = str(job.get("name")), str(job.get("stage"))
        yield OtherRun(run=path.name, name=name, stage=stage, steps=steps, changed=changed, is_other_expert=False)
