"""Which frames make a sample: resampling to a steady rate, then windows of 4n+1 frames. Pure functions of times."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from ..facts import longest_clip
from ..settings.dataset import DatasetOptions
from ..words import counted
from .types import Action

_SAME_RATE = 0.01  # rates that differ by less are taken as equal: 15.98 is 16

# Of one file. All far above what can be trained on, and far below what fills the memory with numbers of frames.
MAX_RESAMPLED = 5_000_000  # frames at the wanted rate: 86 hours at 16
MAX_INDICES = 2**25  # of the frames of all windows together
MAX_SAMPLE_FRAMES = 10_000  # of one window


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Windows of source frame indices (each 4n+1 long), and what the user has to be told."""

    windows: tuple[tuple[int, ...], ...]
    notes: tuple[tuple[Action, str], ...] = ()
    problem: str = ""  # why the clip cannot be cut into such windows at all


def mean_fps(times_us: Sequence[int], end_us: int) -> float:
    """Frames per second over the whole clip; 0 for a still image."""
    return len(times_us) / end_us * 1e6 if end_us else 0.0


def resample(times_us: Sequence[int], end_us: int, fps: float) -> tuple[int, ...]:
    """Source frame index for each frame of a clip at `fps`: the one nearest in time, the earlier one on a tie.

    `times_us` are the frames' starts in microseconds, ascending from 0; `end_us` is when the last frame ends. Frame k
    is at k / fps, for every k that begins before the end. A steady clip within 1 % of `fps` is left as it is.
    """
    if is_steady(times_us, end_us) and rate_matches(times_us, end_us, fps):
        return tuple(range(len(times_us)))
    # 0.05 frames of slack: containers round times to milliseconds, which must not add a frame.
    count = max(1, math.ceil(end_us * fps / 1e6 - 0.05))
    return tuple(_nearest(times_us, k * 1e6 / fps) for k in range(count))


def is_steady(times_us: Sequence[int], end_us: int) -> bool:
    """True if no frame is off the mean rate's grid by half a frame or more."""
    step = end_us / len(times_us)
    half = step / 2
    return all([abs(time - i * step) < half for i, time in enumerate(times_us)])  # noqa: C419 - a list takes half the time


def rate_matches(times_us: Sequence[int], end_us: int, fps: float) -> bool:
    """True if the mean rate is within 1 % of `fps`."""
    return abs(mean_fps(times_us, end_us) - fps) <= _SAME_RATE * fps


def select_frames(times_us: Sequence[int], end_us: int, options: DatasetOptions) -> Selection:
    """The samples of one clip.

    head: the first num_frames. chunk: consecutive windows. slide: windows every slide_stride frames. uniform:
    windows_per_clip windows, the first at the start, the last at the end, the same one never twice. full: the whole
    clip cut to 4n+1, whatever num_frames says. even: num_frames spread over the whole clip, which changes its speed.
    All but `even` first resample to options.fps. A clip with fewer frames than num_frames follows options.short_clips,
    except with `full`; no windows mean that it was skipped or, with "refuse", that the caller must refuse it.
    """
    if options.frame_sampling == "even":
        return _select_even(times_us, end_us, options)
    if end_us * options.fps / 1e6 > MAX_RESAMPLED:
        hours, limit = end_us / 3.6e9, MAX_RESAMPLED / options.fps / 3600
        problem = (
            f"it runs for {hours:.3g} hours, and at {options.fps:g} fps {limit:.3g} are the limit: cut it, or lower fps"
        )
        return Selection(windows=(), problem=problem)
    frames = resample(times_us, end_us, options.fps)
    notes: list[tuple[Action, str]] = []
    if not rate_matches(times_us, end_us, options.fps):
        notes.append(("resampled", f"from {mean_fps(times_us, end_us):.4g} to {options.fps:g} frames per second"))
    elif not is_steady(times_us, end_us):
        notes.append(("resampled", f"from a variable rate to a steady {options.fps:g} frames per second"))
    total = len(frames)
    if options.frame_sampling != "full" and total < options.num_frames:
        at_rate = f"{counted(total, 'frame')} at {options.fps:g} fps, fewer than num_frames {options.num_frames}"
        return _select_short(frames, at_rate, options, notes)
    starts, length = window_starts(total, options)
    if length > MAX_SAMPLE_FRAMES or len(starts) * length > MAX_INDICES:
        return Selection(windows=(), problem=_too_much(len(starts), length))
    unused = total - starts[-1] - length
    if unused and options.frame_sampling != "uniform":
        notes.append(
            ("cropped", f"{unused} of {total} frames at the end {'is' if unused == 1 else 'are'} in no window")
        )
    windows = tuple(frames[start : start + length] for start in starts)
    return Selection(windows=windows, notes=tuple(notes))


def _too_much(num_windows: int, length: int) -> str:
    if length > MAX_SAMPLE_FRAMES:
        return (
            f"a single sample of {length} frames was asked for, and {MAX_SAMPLE_FRAMES} are the limit: cut the clip, or let "
            "frame_sampling be chunk"
        )
    return f"{num_windows} windows of {length} frames were asked for, {MAX_INDICES} frames are the limit: raise slide_stride"


def window_starts(total: int, options: DatasetOptions) -> tuple[tuple[int, ...], int]:
    """(ascending starts, length) of the windows in a clip of `total` >= num_frames frames (`full`: any total)."""
    length, last = options.num_frames, total - options.num_frames
    if options.frame_sampling == "full":
        return (0,), longest_clip(total)
    if options.frame_sampling == "chunk":
        return tuple(range(0, last + 1, length)), length
    if options.frame_sampling == "slide":
        return tuple(range(0, last + 1, options.slide_stride)), length
    if options.frame_sampling == "uniform" and options.windows_per_clip > 1:
        gaps = options.windows_per_clip - 1
        return tuple(dict.fromkeys((2 * i * last + gaps) // (2 * gaps) for i in range(gaps + 1))), length
    return (0,), length


def _select_even(times_us: Sequence[int], end_us: int, options: DatasetOptions) -> Selection:
    total, length = len(times_us), options.num_frames
    if total < length:
        return _select_short(
            tuple(range(total)), f"{counted(total, 'frame')}, fewer than num_frames {length}", options, []
        )
    span = times_us[-1]
    window = tuple(_nearest(times_us, i * span / max(1, length - 1)) for i in range(length))
    notes: list[tuple[Action, str]] = []
    speed = span / 1e6 / ((length - 1) / options.fps) if length > 1 else 1.0
    if abs(speed - 1) > _SAME_RATE:
        notes.append(
            ("resampled", f"{length} frames spread over {end_us / 1e6:.2f} s: it plays at {speed:.3g} x its speed")
        )
    return Selection(windows=(window,), notes=tuple(notes))


def _select_short(
    frames: tuple[int, ...], what: str, options: DatasetOptions, notes: list[tuple[Action, str]]
) -> Selection:
    if options.short_clips != "shorten":
        return Selection(windows=(), notes=(("skipped", what),))
    length = longest_clip(len(frames))
    used = "the first one is" if length == 1 else f"the first {length} are"
    return Selection(windows=(frames[:length],), notes=(*notes, ("shortened", f"{what}: {used} used")))


def _nearest(times_us: Sequence[int], time: float) -> int:
    after = bisect_left(times_us, time)
    if after == 0:
        return 0
    if after == len(times_us):
        return after - 1
    return after - 1 if time - times_us[after - 1] <= times_us[after] - time else after
