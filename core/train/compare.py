"""Which checkpoints of a run, or of the runs of both experts, are compared: chosen by words, paired by nearest step."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError
from ..names import in_short
from ..settings.job import Stage
from .copies import find_copies
from .partway import checkpoint_lora
from .run_folder import RunFolder
from .scores import NOT_MEASURED, best_checkpoint, best_in_words, last_in_words, score_run
from .sound import damaged_lora, refuse_damaged, sound_steps

MAX_STRENGTHS, MAX_STRENGTH = 32, 10.0
_STAGES: dict[Stage, str] = {
    "high": "of the high noise expert",
    "low": "of the low noise expert",
    "single": "of a single model",
    "both": "of one LoRA for both experts",
}


@dataclass(frozen=True)
class At:
    """One checkpoint as a LoRA."""

    step: int
    lora: Path


@dataclass(frozen=True)
class Pair:
    """What is on the models together; None: nothing is on this one."""

    high: At | None = None
    low: At | None = None

    @property
    def label(self) -> str:
        """For its column."""
        steps = {one.step for one in (self.high, self.low) if one}
        if not steps:
            return "without the LoRA"
        if len(steps) > 1 and self.high and self.low:
            return f"high {self.high.step}, low {self.low.step}"
        return f"step {steps.pop()}"


def loras_of(run: RunFolder, folders: Sequence[Path] = ()) -> dict[int, Path]:
    """A run's LoRAs by step: its checkpoints, and copies in `folders` of those that it has removed or that are damaged."""
    copies = find_copies(run, folders)
    there = {step: lora for step in sound_steps(run) if (lora := checkpoint_lora(run, step)) is not None}
    return dict(sorted({**copies, **there}.items()))


def pairs_of(high: RunFolder | None, low: RunFolder | None, wanted: str, folders: Sequence[Path] = ()) -> list[Pair]:
    """The chosen checkpoints of `high`, each with the nearest of `low` (of two as near, the earlier); or those of the one run.

    `folders`: where copies of checkpoints may lie.
    ConfigError where there is no run, one is of the wrong expert, or nothing fits `wanted` (see `choose_steps`).
    """
    for run, stages, name in ((high, ("high", "single", "both"), "high_run"), (low, ("low",), "low_run")):
        if run and (stage := run.read_job().stage) not in stages:
            raise ConfigError(
                f"{name} is {run.path.name}, a run {_STAGES[stage]}: choose it for the other, or another run."
            )
    if high and low and high.read_job().stage == "single":
        raise ConfigError("high_run is of a single model, so that there is no low noise half: set low_run to none.")
    if high and low and high.read_job().stage == "both":
        raise ConfigError("high_run is of one LoRA for both experts: set low_run to none.")
    first = high or low
    if first is None:
        raise ConfigError("no run is chosen: choose one for high_run, for low_run, or for both.")
    found = loras_of(first, folders)
    chosen = [At(step, found[step]) for step in choose_steps(wanted, first, list(found))]
    if high is None:
        return [Pair(low=one) for one in chosen]
    if low is None:
        is_shared = high.read_job().stage == "both"
        return [Pair(high=one, low=one if is_shared else None) for one in chosen]
    others = [At(step, lora) for step, lora in loras_of(low, folders).items()]
    if not others:
        raise ConfigError(f"{_has_none(low)}, or set low_run to none.")
    return [Pair(one, min(others, key=lambda other: (abs(other.step - one.step), other.step))) for one in chosen]


def _has_none(run: RunFolder) -> str:
    which = "no checkpoint but damaged ones" if run.checkpoints() else "no checkpoint yet"
    return f"{run.path.name} has {which}: let it train"


def left_out(runs: Iterable[RunFolder | None]) -> list[str]:
    """A sentence for each damaged checkpoint of these runs: none is compared."""
    return [
        f"the checkpoint of step {step} of {run.path.name} is damaged and left out ({why})"
        for run in runs
        if run is not None
        for step, _ in run.checkpoints()
        if (why := damaged_lora(run, step))
    ]


def proposals(runs: Iterable[RunFolder | None]) -> list[str]:
    """A sentence for each run with several checkpoints: which is best by its numbers, or why these do not tell."""
    found: list[str] = []
    for run in filter(None, runs):
        scores = score_run(run, run.read_job(), read=False)
        if len(scores.checkpoints) < 2:
            continue
        if scores.best is None:
            found.append(f"which checkpoint of {run.path.name} is best can't be told: {NOT_MEASURED}")
            continue
        clause, is_bad = last_in_words(scores)
        said = f"best checkpoint of {run.path.name} by its score: {best_in_words(scores)}"
        found.append("; ".join(filter(None, [said, f"{clause}: compare them" if is_bad else clause])))
    return found


def choose_steps(wanted: str, run: RunFolder, there: Sequence[int]) -> list[int]:
    """Steps of the checkpoints that `wanted` names, in order: all; every 2 (the second, the fourth, ...); last 3; best; or a
    list of steps such as 500, 1000. `there`: what `loras_of` has found. ConfigError for other words, for other steps, and for
    damaged ones.
    """
    kind, numbers = read_choice(wanted)
    for step in set(numbers) - set(there) if kind == "steps" else ():
        refuse_damaged(run, step)
    if not there:
        raise ConfigError(f"{_has_none(run)} for checkpoint_every steps.")
    if kind == "all":
        return list(there)
    if kind == "best":
        return [best_checkpoint(run, run.read_job()).step]
    if kind == "last":
        return list(there[-numbers[0] :])
    if kind == "every":
        found = list(there[numbers[0] - 1 :: numbers[0]])
        if not found:
            raise ConfigError(f"checkpoints is 'every {numbers[0]}', but {run.path.name} keeps only {len(there)}.")
        return found
    missing = [step for step in numbers if step not in there]
    if missing:
        raise ConfigError(
            f"{run.path.name} has no checkpoint of step {missing[0]}: it keeps {', '.join(map(str, there))}. Choose among them."
        )
    return list(dict.fromkeys(numbers))


def read_choice(wanted: str) -> tuple[str, list[int]]:
    """Its kind (all, best, last, every, steps), and its numbers. ConfigError for what is none."""
    words = wanted.replace(",", " ").split()
    if words in ([], ["all"]):
        return "all", []
    if words == ["best"]:
        return "best", []
    kind, numbers = (words[0], words[1:]) if words[0] in ("last", "every") else ("steps", words)
    if all(number.isdecimal() and 0 < int(number) < 10**8 for number in numbers) and (
        kind == "steps" or len(numbers) == 1
    ):
        return kind, [int(number) for number in numbers]
    raise ConfigError(
        f"checkpoints is '{in_short(wanted)}': write all, best, last 3, every 2, or steps such as 500, 1000."
    )


def read_strengths(text: str) -> list[float]:
    """The strengths in a text such as "0.8, 1". ConfigError for what is no list of them."""
    try:
        found = list(dict.fromkeys(float(word) for word in text.replace(",", " ").split()))
    except ValueError:
        found = []
    if (
        not found
        or len(found) > MAX_STRENGTHS
        or not all(abs(one) <= MAX_STRENGTH for one in found if math.isfinite(one))
    ):
        raise ConfigError(
            f"strengths is '{in_short(text)}': write 1 to {MAX_STRENGTHS} numbers from -10 to 10, such as 0.8, 1."
        )
    if not all(map(math.isfinite, found)):
        raise ConfigError(f"strengths is '{in_short(text)}': write finite numbers, such as 0.8, 1.")
    return found


def read_prompts(text: str) -> list[str]:
    """A prompt a line. ConfigError where there is none."""
    found = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not found:
        raise ConfigError("prompts is empty: write at least one prompt, one a line.")
    return found


def run_names(runs: Path) -> list[str]:
    """The runs that have checkpoints in `runs`, the folder of run folders; the newest first."""
    found: list[tuple[float, str]] = []
    for path in runs.glob("*"):
        try:
            found.append((-(path / "checkpoints").stat().st_mtime, path.name))
        except OSError:  # none, or deleted meanwhile
            continue
    return [name for _, name in sorted(found)]


def num_cells(pairs: Sequence[Pair], strengths: Sequence[float], prompts: Sequence[str], *, with_base: bool) -> int:
    """How many videos that is."""
    return len(prompts) * (len(pairs) * len(strengths) + with_base)
