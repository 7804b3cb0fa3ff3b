"""What a run does beside its steps: validations, previews, checkpoints, and how often, by its job.

How long each takes under a plan is in `beside_costs`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

from ..errors import WanTrainError
from ..facts import EXPERTS, clip_size
from ..flow.sigmas import NUM_SIGMAS
from ..sample.counting import Calls, calls_of
from ..sample.previews import preview_shots, reads_own, sampled_together
from ..sample.sampler import SampleOptions
from ..settings.job import Job
from ..wan.files import find_files
from .rhythm import Rhythms, rhythms_of

_ACTIVATIONS = 24  # [tokens, width]: what a forward of a block takes at most, and what is between the blocks
_SPARE_BYTES = 2 * 2**30  # for kernels, and for what other programs come to need
Shape = tuple[int, int, int, int]
ForwardCounts = Mapping[Shape, int]  # of one sample each, by the shape of its latents


@dataclass(frozen=True)
class Interlude:
    """Something that a run does `count` times from its first step to its end, `seconds` each."""

    count: int = 0
    seconds: float = 0.0

    @property
    def total(self) -> float:
        """Seconds of all of them."""
        return self.count * self.seconds


NEVER = Interlude()


@dataclass(frozen=True)
class BesideSteps:
    """What a run does beside its steps."""

    validations: Interlude = NEVER
    previews: Interlude = NEVER
    checkpoints: Interlude = NEVER  # but that of the last step, which is part of the run's end

    @property
    def total(self) -> float:
        """Seconds of all of it."""
        return self.validations.total + self.previews.total + self.checkpoints.total

    def told(self) -> dict[str, dict[str, Any]]:
        """For the diary."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: {"count": one.count, "seconds": round(one.seconds, 3)} for name, one in found.items() if one.count
        }


NOTHING = BesideSteps()


@dataclass(frozen=True)
class FileReads:
    """Of a model that is not held: `times` that its file, of so many bytes, is read for one preview."""

    file_bytes: int
    times: int


@dataclass(frozen=True)
class WorkBeside:
    """What there is to do, whatever the plan. One validation and one preview, each as this process has to do it."""

    rhythms: Rhythms
    validation: ForwardCounts
    preview: ForwardCounts  # of the model that is trained
    from_files: ForwardCounts  # of experts that are read from their files
    reads: tuple[FileReads, ...]  # of these
    pixels: int  # of a preview, over all its videos and frames
    # How often each changes the expert in the model, where a LoRA is trained through both.
    validation_changes: int = 0
    preview_changes: int = 0


def work_of(job: Job, *, sharing: int = 1) -> WorkBeside:
    """Of a job. `sharing`: how many processes share the held-out samples."""
    own = job.held_out_samples[::sharing]  # the first process has the most
    validation = Counter({shape: NUM_SIGMAS * number for shape, number in Counter(s.shape for s in own).items()})
    preview, from_files, reads = Counter[Shape](), Counter[Shape](), Counter[str]()
    pixels = groups = 0
    if job.previews.every:
        with suppress(WanTrainError):  # previews that can't be made are refused elsewhere
            other = job.other_expert if job.stage in ("high", "low") else None
            is_read = reads_own(job)
            for group in sampled_together(preview_shots(job), reads_files=other is not None or is_read):
                shape = group[0].shape
                trained, away = _calls(job, group[0].sampling, len(group))
                (from_files if is_read else preview)[shape] += trained.forwards
                reads[job.model.path] += trained.times if is_read else 0
                if other is not None:
                    from_files[shape] += away.forwards
                    reads[other.path] += away.times
                groups, pixels = groups + 1, pixels + len(group) * _pixels(shape)
    changes = len(EXPERTS) if job.stage == "both" else 0
    return WorkBeside(
        rhythms=rhythms_of(job),
        validation=validation,
        preview=preview,
        from_files=from_files,
        reads=tuple(FileReads(_file_bytes(path), times) for path, times in reads.items() if times),
        pixels=pixels,
        validation_changes=changes,
        preview_changes=groups * changes,
    )


def usual(measured: Sequence[float]) -> float:
    """Seconds of the next one: the middle of those that were, but for the first, which has more to do."""
    return median(measured[1:] or measured)


def bytes_to_stay(num_bytes: int, tokens: int, width: int, element_size: int) -> int:
    """What must be free of a device for experts of so many bytes, read for a preview of so many tokens, to stay there.

    With what all models compute with of one video, tokens [tokens, width], and with a rest.
    """
    return num_bytes + _ACTIVATIONS * tokens * width * element_size + _SPARE_BYTES


def _calls(job: Job, sampling: SampleOptions, samples: int) -> tuple[Calls, Calls]:
    """Of the model that is trained, and of the expert that is not."""
    high, low = calls_of(sampling, samples=samples, has_experts=job.stage != "single")
    if job.stage == "both":
        return Calls(high.times + low.times, high.forwards + low.forwards), Calls()
    return (low, high) if job.stage == "low" else (high, low)


def _pixels(shape: Shape) -> int:
    frames, height, width = clip_size(shape)
    return frames * height * width


def _file_bytes(path: str) -> int:
    """Of an expert; 0 where it is gone, so that previews go without it."""
    with suppress(OSError, WanTrainError):
        return sum(file.stat().st_size for file in find_files(Path(path)))
    return 0
