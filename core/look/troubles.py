"""What looks wrong with a sample or its caption, as badges: a kind that can be filtered by, and a sentence."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..data.buckets import crop_loss
from ..data.types import Sample
from ..facts import TEXT_TOKENS
from ..prompts import whole_word
from ..settings.dataset import DatasetOptions
from ..words import counted, some
from .measure import Measured
from .tokens import Counted

TroubleKind = Literal[
    "near duplicate", "cut", "black bars", "still", "blurred", "speed", "repeated frames", "enlarged", "cropped",
    "no caption", "same caption", "no trigger", "too long", "unreadable",
]  # fmt: skip

_STILL = 6.0  # levels that no part of a still clip changes by; compression changes them by less
_BLURRED, _BLUR_LEAST_SIDE = 0.65, 128  # photos: 0.2 to 0.45, with a Gaussian of 3 pixels at 832x480 0.6 to 0.8
_SAME_SPEED = 0.03
_MANY_REPEATS = 0.1  # of the frames of a window
_MUCH_CROPPED, _MUCH_ENLARGED = 0.15, 1.25
_HASH_NEAR, _COLOUR_NEAR = 8.0, 10.0  # bits of 64, levels


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """One badge."""

    kind: TroubleKind
    text: str


def picture_troubles(sample: Sample, measured: Measured) -> list[Trouble]:
    """What the frames show."""
    found: list[Trouble] = []

    def tell(kind: TroubleKind, text: str) -> None:
        found.append(Trouble(kind=kind, text=text))

    if measured.cuts:
        at = ", ".join(str(cut + 1) for cut in measured.cuts)
        tell("cut", f"another scene begins at frame {at}: use in and out points, or shorter windows")
    if any(measured.bars):
        left, top, right, bottom = measured.bars
        sides = f"{counted(top, 'pixel')} at the top and {bottom} at the bottom" if top else ""
        sides += (" and " if top and left else "") + (f"{left} at the left and {right} at the right" if left else "")
        tell("black bars", f"black in all frames: {sides}; the model would learn them")
    if measured.change is not None and measured.change < _STILL:
        tell("still", "nothing moves: the model would learn that this stands still")
    if measured.blur > _BLURRED and min(sample.width, sample.height) >= _BLUR_LEAST_SIDE:
        tell("blurred", f"even its sharpest frame is blurred ({measured.blur:.2f} of 1)")
    return found


def sampling_troubles(sample: Sample, options: DatasetOptions) -> list[Trouble]:
    """What sampling, scaling and cutting did to the file."""
    found: list[Trouble] = []
    file, frames = sample.file, sample.frame_indices
    if len(frames) > 1 and file.fps:
        speed = (frames[-1] - frames[0]) / file.fps * options.fps / (len(frames) - 1)
        slack = max(_SAME_SPEED, 1.5 / (len(frames) - 1))  # a frame more or less at the ends
        if abs(speed - 1) > slack:
            found.append(Trouble(kind="speed", text=f"it is trained at {speed:.2g} times its own speed"))
        repeats = len(frames) - len(set(frames))
        if repeats > _MANY_REPEATS * len(frames):
            shown = some(repeats, len(frames), "frame", "is", "are")
            text = f"{shown} shown twice: it has {file.fps:.3g} a second, not {options.fps:g}"
            found.append(Trouble(kind="repeated frames", text=text))
    scale = max(sample.width / file.width, sample.height / file.height)
    if scale > _MUCH_ENLARGED:
        text = f"enlarged {scale:.2g} times, from {file.width}x{file.height} to {sample.width}x{sample.height}"
        found.append(Trouble(kind="enlarged", text=text))
    losses = crop_loss(file.width, file.height, (sample.width, sample.height))
    for lost, side in zip(losses, ("width", "height"), strict=True):
        if lost > _MUCH_CROPPED:
            found.append(Trouble(kind="cropped", text=f"{lost:.0%} of its {side} is cut off"))
    return found


def caption_troubles(
    samples: Sequence[Sample], counted: Mapping[str, Counted], written: Sequence[str], trigger_words: Sequence[str]
) -> list[list[Trouble]]:
    """What is wrong with each sample's captions. `counted`: the length of each caption; `written`: what stands in
    each one's caption file, before the trigger word is put in, and `trigger_words` which that is."""
    files: dict[str, list[str]] = defaultdict(list)
    for sample in samples:
        if sample.file.path not in files[sample.file.caption]:
            files[sample.file.caption].append(sample.file.path)
    return [
        _of_captions(sample, files, counted, text, " ".join(word.split()))
        for sample, text, word in zip(samples, written, trigger_words, strict=True)
    ]


def near_duplicates(samples: Sequence[Sample], measured: Mapping[int, Measured]) -> dict[int, list[str]]:
    """Names of the files that look nearly like a sample's, by its number. Windows of one file are not compared."""
    numbers = sorted(measured)
    if len(numbers) < 2:
        return {}
    of_path: dict[str, int] = {}
    files = np.array([of_path.setdefault(samples[i].file.path, i) for i in numbers])
    colours = np.array([measured[i].colours for i in numbers], np.int16)  # [N, 48]
    bits = np.stack([_bits(measured[i].hashes) for i in numbers])  # [N, 192]
    is_clip = np.array([measured[i].change is not None for i in numbers])
    found: dict[int, list[str]] = {}
    for row, number in enumerate(numbers):
        near = np.flatnonzero((files != files[row]) & (is_clip == is_clip[row]))
        near = near[np.abs(colours[near] - colours[row]).mean(1) <= _COLOUR_NEAR]
        near = near[(bits[near] != bits[row]).mean(1) * 64 <= _HASH_NEAR]
        names = dict.fromkeys(samples[numbers[other]].file.name for other in near)
        if names:
            found[number] = list(names)
    return found


def duplicate_trouble(names: Sequence[str]) -> Trouble:
    """The badge of a sample that looks like others."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return Trouble(kind="near duplicate", text=f"looks nearly like {', '.join(names[:3])}{more}")


def _bits(hashes: Sequence[str]) -> np.ndarray:
    """All bits of the hashes of first, middle and last frame: [192]."""
    return np.unpackbits(np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8))


def _of_captions(
    sample: Sample,
    files: Mapping[str, Sequence[str]],
    counted: Mapping[str, Counted],
    written: str,
    trigger: str,
) -> list[Trouble]:
    found: list[Trouble] = []
    file = sample.file
    captions = (file.caption, *file.more_captions)
    if not file.caption:
        found.append(Trouble(kind="no caption", text="its caption is empty"))
    elif trigger and file.caption == trigger:
        found.append(Trouble(kind="no caption", text="its caption is the trigger word alone"))
    elif len(files[file.caption]) > 1:
        text = f"{len(files[file.caption])} files have this same caption"
        found.append(Trouble(kind="same caption", text=text))
    if trigger and not all(_has(caption, trigger) for caption in captions):
        found.append(Trouble(kind="no trigger", text=f"the trigger word '{trigger}' is not in its caption"))
    elif trigger and written and not (_has(written, trigger) or "[trigger]" in written.lower()):
        text = f"its caption file does not name the trigger word '{trigger}', which is therefore put in front"
        found.append(Trouble(kind="no trigger", text=text))
    longest = max((counted[caption] for caption in captions), key=lambda c: c.num_tokens)
    if longest.is_too_long:
        about = "about " if longest.is_estimate else ""
        text = f"{about}{longest.num_tokens} tokens: what comes after the {TEXT_TOKENS}th is not used"
        found.append(Trouble(kind="too long", text=text))
    return found


def _has(text: str, trigger: str) -> bool:
    return whole_word(trigger).search(text) is not None
