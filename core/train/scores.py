"""Which checkpoint of a run is best, as far as its numbers tell.

score = 100 l m, and the best is the highest score, of equal ones the latest. l: 1 up to LOSS_ROOM times the lowest held-out
loss of the run's checkpoints, and beyond it the share that is left. m: the same of the motion of the step's preview, as a share
of that of the sample it was made after, in MOTION_ROOM both ways; 1 where there is no preview of that step, or where previews
show prompts.

So the last is best unless its numbers say that something broke. Neither number says which of two sound ones has learnt more:
held-out loss rises while a LoRA still learns what it is taught (nano/README.md, "Which checkpoint"). There is as much room as
the 291 runs measured there took, and a little more: up to 1.8 times the lowest loss, 0.5 to 2.2 of the sample's motion.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from ..errors import ConfigError
from ..sample.previews import preview_sample
from ..settings.job import Job
from .checkpoints import STATE
from .held_out import HeldOutLoss, at_step, difference, read_held_out
from .partway import checkpoint_lora
from .preview_folder import PreviewFolder
from .run_folder import RunFolder
from .sound import LORA, damage

LOSS_ROOM, MOTION_ROOM = 2.0, 2.5
NOT_MEASURED = (
    "no held-out loss was measured: set held_out of the dataset to 1 or more, and the checkpoints can be compared"
)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One checkpoint, and what its numbers are."""

    step: int
    lora: Path
    loss: float | None = None  # held out
    is_between: bool = False  # not measured at the step itself: on the line between its neighbours
    behind: float | None = None  # how much above the lowest loss of the checkpoints
    error: float | None = None  # the standard error of that
    motion: float | None = None  # of its preview, as a share of the sample's
    score: float | None = None  # 0 to 100
    damage: str = ""  # why its LoRA is not what was written: a clause; it is not compared then
    no_resume: str = ""  # the same of what a resume needs beside it


@dataclass(frozen=True)
class Scores:
    """The checkpoints that are kept, oldest first."""

    checkpoints: list[Scored]

    @property
    def best(self) -> Scored | None:
        """The one with the highest score, of equal ones the latest; None where nothing was measured."""
        scored = [one for one in self.checkpoints if one.score is not None]
        return max(scored, key=lambda one: (one.score or 0.0, one.step), default=None)

    @property
    def lowest(self) -> Scored | None:
        """The one with the lowest held-out loss; None where nothing was measured."""
        measured = [one for one in self.checkpoints if one.score is not None]
        return min(measured, key=lambda one: one.loss or 0.0, default=None)


def best_in_words(scores: Scores) -> str:
    """ "step 200 (scores out of 100: step 100: 100, step 200: 100; lowest held-out loss: step 100)".

    "" where nothing tells, or there is one checkpoint alone.
    """
    best, lowest = scores.best, scores.lowest
    if best is None or lowest is None or len(scores.checkpoints) < 2:
        return ""
    others = ", ".join(f"step {one.step}: {one.score:.0f}" for one in scores.checkpoints if one.score is not None)
    return f"step {best.step} (scores out of 100: {others}; lowest held-out loss: step {lowest.step})"


def last_in_words(scores: Scores) -> tuple[str, bool]:
    """What is to be said of the last checkpoint where another one is best, a clause, and whether it is better left alone.

    "" where it is best itself, or nothing tells.
    """
    best, last = scores.best, scores.checkpoints[-1] if scores.checkpoints else None
    if best is None or last is None or best.step == last.step:
        return "", False
    newest = max(one.step for one in scores.checkpoints if one.score is not None)
    if newest != best.step:
        return "the last one may be broken" if newest == last.step else f"step {newest} may be broken", True
    if last.damage:
        return f"step {last.step} is damaged", True
    return f"step {last.step}, the last one, was not measured", False


def score_run(folder: RunFolder, job: Job, *, read: bool = True) -> Scores:
    """Score the checkpoints that a run has kept, but for those whose LoRA is damaged. `read`: see `damage`."""
    found = {step: (path, lora) for step, path in folder.checkpoints() if (lora := checkpoint_lora(folder, step))}
    damaged = {step: why for step, (path, _) in found.items() if (why := damage(path, LORA, read=read))}
    known = read_held_out(folder.events_path)
    measured = {step: value for step in found if step not in damaged and (value := at_step(known, step))}
    lowest = min(measured.values(), key=lambda value: value.loss, default=None)
    moves = _motions(folder, job, [step for step in found if step not in damaged])
    made: list[Scored] = []
    for step, (path, lora) in found.items():
        one = scored(step, lora, measured.get(step), lowest, moves.get(step), is_between=step not in known)
        made.append(replace(one, damage=damaged.get(step, ""), no_resume=damage(path, [STATE], read=read)))
    return Scores(made)


def best_checkpoint(folder: RunFolder, job: Job) -> Scored:
    """The best one. ConfigError where nothing tells, or no checkpoint is kept."""
    scores = score_run(folder, job)
    if not scores.checkpoints:
        raise ConfigError(f"{folder.path} keeps no checkpoint, so none can be the best: use the last.")
    if scores.best is None:
        raise ConfigError(
            f"which checkpoint of {folder.path.name} is best can't be told: {NOT_MEASURED}. Use the last."
        )
    return scores.best


def motion(latents: torch.Tensor) -> float | None:
    """How much moves in latents [C, F, H, W]: the change from frame to frame, root mean square over channels, mean over
    places and frames. None for a picture.
    """
    if latents.shape[1] < 2:
        return None
    return latents.float().diff(dim=1).square().mean(0).sqrt().mean().item()


def scored(
    step: int,
    lora: Path,
    value: HeldOutLoss | None,
    lowest: HeldOutLoss | None,
    moves: float | None,
    *,
    is_between: bool = False,
) -> Scored:
    """A checkpoint with its score. `value`: its held-out loss; `lowest`: the lowest; `moves`: see `Scored.motion`."""
    if value is None or lowest is None:
        return Scored(step=step, lora=lora, motion=moves)
    behind, error = difference(value, lowest)
    return Scored(
        step=step,
        lora=lora,
        loss=value.loss,
        is_between=is_between,
        behind=behind,
        error=error,
        motion=moves,
        score=score_of(value.loss, lowest.loss, moves),
    )


def score_of(loss: float, lowest: float, moves: float | None) -> float:
    """0 to 100, of a held-out loss, the lowest of the checkpoints, and the preview's motion as a share of the sample's."""
    fits = 1.0 if loss <= LOSS_ROOM * lowest else LOSS_ROOM * lowest / loss
    still = 1.0 if moves is None else min(1.0, MOTION_ROOM * moves, MOTION_ROOM / moves) if moves > 0 else 0.0
    return 100 * fits * still


def _motions(folder: RunFolder, job: Job, steps: list[int]) -> dict[int, float]:
    """The motion of the previews of these steps, as a share of their sample's.

    {} where the sample is gone, or is a picture, and where previews show prompts: no clip says how these should move.
    """
    if job.data.prompts:
        return {}
    previews = PreviewFolder.of(folder)
    there = [step for step in steps if previews.latents_path(step).is_file()]
    if not there:
        return {}
    try:
        own = motion(load_file(preview_sample(job).latents_path)["latents"])
        found = {step: motion(previews.read(step)) for step in there}
    except Exception:  # a cache that was emptied, or a file that is being replaced: whatever the library raises
        return {}
    return {step: value / own for step, value in found.items() if value is not None and own}
