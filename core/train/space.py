"""What a run will take of its disk, before it starts."""

from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path

from ..disk import check_room, gigabytes
from ..facts import clip_size
from ..optimizers import OPTIMIZERS
from ..plan.planning import trained_by
from ..plan.sizes import Sizes, adapter_params, optimizer_bytes
from ..sample.previews import preview_shots
from ..settings.job import Job
from ..words import counted
from .checkpoints import Checkpoints
from .length import checkpoints_made
from .preview_folder import MOST_KEPT
from .run_folder import RunFolder

_FLOAT32 = 4
_EVENT = 400  # bytes of a step's line in the diary
_PIXEL = 0.2  # bytes of a pixel of a decoded preview


@dataclass(frozen=True)
class SpaceNeed:
    """Bytes that a run writes and keeps, those of the moment included in which an old checkpoint waits for a new one."""

    checkpoint: int  # one of them
    checkpoints: int  # how many there will be at once
    lora: int
    previews: int
    diary: int

    @property
    def total(self) -> int:
        """All together."""
        return self.checkpoint * self.checkpoints + self.lora + self.previews + self.diary


def space_needed(job: Job, sizes: Sizes) -> SpaceNeed:
    """For the whole run of `job`, on the model of these sizes."""
    trained = trained_by(job)
    number = adapter_params(sizes, trained)
    weights = _FLOAT32 * number
    averages = OPTIMIZERS.get(job.optimizer.name).averages_with(job.optimizer)
    is_scored = job.saving.keep_best and bool(job.held_out_samples)
    also = 2 if is_scored else 0  # the best by its score, and that of the lowest held-out loss
    kept = min(checkpoints_made(job), job.loop.keep_last + 1 + also)
    return SpaceNeed(
        checkpoint=weights * (3 if job.ema.use else 2 if averages else 1) + optimizer_bytes(sizes, trained),
        checkpoints=kept,
        lora=weights * (2 if job.ema.use else 1),
        previews=_previews(job, kept),
        diary=job.loop.steps * _EVENT,
    )


def check_space(job: Job, sizes: Sizes, folder: Path) -> list[str]:
    """Compare what the run in `folder` will take with what is free: sentences of warning.

    Checkpoints that are there already are not counted again. RunError if it can't fit.
    """
    need = space_needed(job, sizes)
    there = min(len(Checkpoints(folder / "checkpoints").all()), need.checkpoints - 1)
    checkpoints = need.checkpoints - there
    epochs = job.saving.every_epochs
    rhythm = f"checkpoint_every_epochs {epochs}" if epochs else f"checkpoint_every {job.loop.checkpoint_every}"
    what = (
        f"{rhythm} with keep_last {job.loop.keep_last} ({counted(checkpoints, 'checkpoint')} of "
        f"{gigabytes(need.checkpoint)}), the LoRA and {'the previews' if need.previews else 'the diary'}"
    )
    warning = check_room(
        folder, need.total - there * need.checkpoint, what, f"lower keep_last or raise {rhythm.split()[0]}"
    )
    return [*filter(None, [warning, _check_copies(job, need)])]


def _check_copies(job: Job, need: SpaceNeed) -> str | None:
    """The same for the copies of checkpoints in the folder of LoRAs."""
    if not job.loras_folder:
        return None
    number = checkpoints_made(job)
    number = min(number, job.saving.keep_copies + 1) if job.saving.keep_copies else number
    one = need.lora // (2 if job.ema.use else 1)
    what = f"checkpoints_to_loras ({counted(number, 'copy', 'copies')} of {gigabytes(one)})"
    return check_room(Path(job.loras_folder), number * one, what, "lower keep_copies")


def check_space_before(job: Job, sizes: Sizes, folder: RunFolder) -> None:
    """As `check_space`, before a process is started for the run: a run that is finished takes nothing more."""
    if folder.finished_lora(job.loop.steps) is None:
        check_space(job, sizes, folder.path)


def _previews(job: Job, checkpoints: int) -> int:
    if not job.previews.every:
        return 0
    shapes = [shot.shape for shot in preview_shots(job)]
    each = sum(_FLOAT32 * prod(shape) + round(prod(clip_size(shape)) * _PIXEL) for shape in shapes)
    return min(MOST_KEPT + 1 + checkpoints, ceil(job.loop.steps / job.previews.every) + job.previews.at_start) * each
