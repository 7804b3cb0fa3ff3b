"""Which files are used, which part of their picture is kept, and what is flipped: functions of facts and content alone."""

import dataclasses
import math
import re
from collections.abc import Sequence

from ..serial import digest
from ..settings.dataset import DatasetOptions
from ..settings.dataset_frames import aspect_ratios
from ..words import counted
from .buckets import cover_box
from .types import CENTER, MediaFile, Note, Sample

_NOTED_SCALE = 1.02  # less is not worth a word
_EDGES = {"top": (0.5, 0.0), "bottom": (0.5, 1.0), "left": (0.0, 0.5), "right": (1.0, 0.5)}
_SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)
_WORDS = {"x": "left to right", "y": "upside down", "xy": "left to right and upside down"}


def why_left_out(file: MediaFile, seconds: float, options: DatasetOptions) -> str:
    """A clause for a file that the options leave out; "" for one that is used. `seconds`: how long a clip is."""
    size = f"{file.width}x{file.height} pixels"
    sides, megapixels = (min(file.width, file.height), max(file.width, file.height)), file.width * file.height / 1e6
    checks = [
        ("min_side", sides[0], "its shorter side has {} of " + size),
        ("max_side", sides[1], "its longer side has {} of " + size),
        ("min_megapixels", megapixels, f"it is {size}" + ", {:.3g} million"),
        ("max_megapixels", megapixels, f"it is {size}" + ", {:.3g} million"),
    ]
    if file.kind == "video":
        checks += [
            (f"{end}_frames", file.num_frames, f"it has {counted(file.num_frames, 'frame')}") for end in ("min", "max")
        ]
        checks += [(f"{end}_seconds", seconds, "it is {:.3g} seconds long") for end in ("min", "max")]
    for name, value, words in checks:
        limit = getattr(options, name)
        is_least = name.startswith("min_")
        if limit and (value < limit if is_least else value > limit):
            return f"{words.format(value)}, and {name} is {limit:g}"
    return ""


def shape_for(file: MediaFile, options: DatasetOptions) -> tuple[int, int]:
    """(width, height) of the part of a file that its bucket is chosen for: all of it, or that of one of crop_aspects."""
    ratios = aspect_ratios(options.crop_aspects)
    if not ratios or not options.aspect_buckets:
        return file.width, file.height
    if options.crop_aspect == "random":
        ratio = ratios[min(int(_drawn(file.sha256, "aspect") * len(ratios)), len(ratios) - 1)]
    else:
        own = file.width / file.height
        ratio = min(ratios, key=lambda ratio: abs(math.log(ratio / own)))
    width, height = min(file.width, file.height * ratio), min(file.height, file.width / ratio)
    return max(16, round(width)), max(16, round(height))


def scale_note(file: MediaFile, bucket: tuple[int, int]) -> Note | None:
    """Told of a file that is scaled up."""
    scale = max(bucket[0] / file.width, bucket[1] / file.height)
    if scale <= _NOTED_SCALE:
        return None
    reason = f"it is scaled up {scale:.2f} times ({file.width}x{file.height} to {bucket[0]}x{bucket[1]})"
    return Note(name=file.name, action="note", reason=reason)


def with_crop(sample: Sample, options: DatasetOptions) -> Sample:
    """The sample with the place of the part that is kept; it stays the centre along a side of which nothing is cut off."""
    file = sample.file
    left, top, right, bottom = cover_box(file.width, file.height, (sample.width, sample.height), CENTER)
    is_free = (right - left < file.width - 1e-6, bottom - top < file.height - 1e-6)
    if options.crop == "motion":
        moves = len(set(sample.frame_indices)) > 1 and any(is_free)
        return dataclasses.replace(sample, follows_motion=moves)
    if options.crop == "random":
        window = f"{file.sha256} {sample.frame_indices[0]}"
        place = (_drawn(window, "crop x"), _drawn(window, "crop y"))
    else:
        place = _EDGES.get(options.crop, CENTER)
    x, y = (where if free else 0.5 for where, free in zip(place, is_free, strict=True))
    return dataclasses.replace(sample, crop=(x, y))


def with_flips(samples: Sequence[Sample], options: DatasetOptions) -> tuple[list[Sample], list[Note]]:
    """All samples in order: flipped ones behind their own, or in their place. Held-out ones are not flipped."""
    kinds = [kind for kind, wanted in (("x", options.flip_x), ("y", options.flip_y)) if wanted]
    if not kinds:
        return list(samples), []
    kinds += ["xy"] if len(kinds) == 2 else []
    found: list[Sample] = []
    told: dict[str, Note] = {}
    for sample in samples:
        chosen = [] if sample.held_out else _chosen(sample, kinds, options)
        if options.flips == "add" or not chosen:
            found.append(sample)
        for kind in chosen:
            found.append(dataclasses.replace(sample, flip=kind))
            said = _SIDES.search(" ".join((sample.file.caption, *sample.file.more_captions)))
            if "x" in kind and said:
                reason = f"it is flipped {_WORDS[kind]}, and its caption says '{said[0]}'"
                told.setdefault(sample.file.name, Note(name=sample.file.name, action="note", reason=reason))
    return found, list(told.values())


def _chosen(sample: Sample, kinds: Sequence[str], options: DatasetOptions) -> list[str]:
    """How a sample is flipped: in all ways that are wanted, or as the draws say."""
    if options.flips == "add":
        return list(kinds)
    window = f"{sample.file.sha256} {sample.frame_indices[0]}"
    drawn = "".join(kind for kind in kinds if len(kind) == 1 and _drawn(window, f"flip {kind}") < 0.5)
    return [drawn] if drawn else []


def _drawn(content: str, what: str) -> float:
    """A number in [0, 1) that depends on the content and the question alone."""
    return int(digest([content, what], 12), 16) / 16**12
