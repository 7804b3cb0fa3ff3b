"""What the page shows, as plain values: a dataset at once, then its samples as they are read.

`look` gives one event after another, each an object with "event". The command line puts them into a page, ComfyUI sends
them to one that is open.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.decode import read_frames
from ..data.join import frame_rates
from ..data.links import leads_within
from ..data.media import BadMediaError
from ..data.points import points_path, read_points
from ..data.types import Dataset, Sample
from ..data.watch import Interrupt
from ..errors import DatasetError
from ..facts import TEXT_TOKENS, LatentFormat
from ..serial import to_dict
from ..words import counted
from .captions import CaptionFiles, CaptionOnDisk
from .costs import bucket_costs, latent_size
from .masked import shaded
from .measure import Measured
from .strips import Seen, StripStore, make_strip, webp
from .tokens import Counted, Tokenizer, count_tokens
from .troubles import Trouble, caption_troubles, duplicate_trouble, near_duplicates, picture_troubles, sampling_troubles

SOURCE_FRAMES = 32  # of a clip in one strip of its own frames
_SOURCE_SIDE = 448
_FRAME_QUALITY = 92


@dataclass(frozen=True, kw_only=True)
class Looker:
    """What is used to look at any dataset."""

    store: StripStore
    tokenizer: Tokenizer | None = None
    latent_format: LatentFormat = "wan2.1"
    within: tuple[Path, ...] | None = None  # the only places that links in the dataset may lead to; None: anywhere

    def look(self, dataset: Dataset, check: Callable[[], object] | None = None) -> Iterator[dict[str, Any]]:
        """Events: `dataset`, then `seen` for samples that are known or as they are read, `duplicates`, and `done`.

        `check` is called several times a second, and may raise to stop.
        """
        yield {"event": "dataset", **self._overview(dataset)}
        keys = [self.store.key(sample, self.latent_format) for sample in dataset.samples]
        kept = {i: seen for i, key in enumerate(keys) if (seen := self.store.get(key))}
        yield {"event": "seen", "items": [_item(i, keys[i], dataset.samples[i], seen) for i, seen in kept.items()]}
        measured = {i: seen.measured for i, seen in kept.items()}
        with Interrupt(check) as interrupt:
            for i, sample in enumerate(dataset.samples):
                if i not in kept:
                    yield {"event": "seen", "items": [self._see(i, keys[i], sample, measured, interrupt)]}
        alike = near_duplicates(dataset.samples, measured)
        items = [{"i": i, "badges": to_dict([duplicate_trouble(names)])} for i, names in alike.items()]
        yield {"event": "duplicates", "items": items}
        yield {"event": "done"}

    def _see(
        self, i: int, key: str, sample: Sample, measured: dict[int, Measured], interrupt: Interrupt
    ) -> dict[str, Any]:
        seen = self.store.get(key)  # an equal sample may have been made meanwhile
        try:
            if seen is None:
                frames = read_frames(sample, interrupt).numpy()
                seen = self.store.make(key, frames, shaded(frames, sample, self.latent_format, interrupt))
        except DatasetError as error:
            return {"i": i, "badges": to_dict([Trouble(kind="unreadable", text=str(error))])}
        measured[i] = seen.measured
        return _item(i, key, sample, seen)

    def _overview(self, dataset: Dataset) -> dict[str, Any]:
        """All but what the pixels tell."""
        samples = dataset.samples
        options = [dataset.options_of(sample) for sample in samples]
        counted = {caption: count_tokens(caption, self.tokenizer) for caption in dataset.captions}
        written = self._written(dataset)
        troubles = caption_troubles(
            samples, counted, [found.text for found in written], [own.trigger for own in options]
        )
        told: dict[str, list[str]] = {}
        for note in dataset.notes:
            told.setdefault(note.where, []).append(f"{note.action}: {note.reason}")
        used = {_where(sample) for sample in samples}
        return {
            "name": ", ".join(part.name or Path(part.folder).name for part in dataset.sources),
            "fps": list(frame_rates(dataset)),
            "limit": TEXT_TOKENS,
            "latents": self.latent_format,
            "counts_exactly": self.tokenizer is not None,
            "warnings": list(dict.fromkeys(s for part in dataset.sources for s in part.options.warnings())),
            "left": [{"name": name, "notes": notes} for name, notes in told.items() if name not in used],
            "buckets": {form: to_dict(bucket_costs(samples, form)) for form in ("wan2.1", "wan2.2")},
            "samples": [
                self._sample(sample, own.fps, found, counted, [*badges, *sampling_troubles(sample, own)])
                | {"notes": told.get(_where(sample), [])}
                for sample, own, found, badges in zip(samples, options, written, troubles, strict=True)
            ],
        }

    def _written(self, dataset: Dataset) -> list[CaptionOnDisk]:
        """What stands in the caption file of each sample; each file is read once."""
        files = {part.name: CaptionFiles(part.options, self.within) for part in dataset.sources}
        found: dict[tuple[str, str], CaptionOnDisk] = {}
        for sample in dataset.samples:
            key = (sample.dataset, sample.file.path)
            if key not in found:
                found[key] = files[sample.dataset].of(Path(sample.file.path))
        return [found[sample.dataset, sample.file.path] for sample in dataset.samples]

    def _sample(
        self, sample: Sample, fps: float, written: CaptionOnDisk, counted: dict[str, Counted], troubles: list[Trouble]
    ) -> dict[str, Any]:
        file = sample.file
        return {
            "name": file.name,
            "window": sample.name,
            "kind": file.kind,
            "size": [file.width, file.height],
            "source_frames": file.num_frames,
            "source_fps": file.fps,
            "fps": fps,
            "frames": list(sample.frame_indices),
            "bucket": [sample.width, sample.height],
            "latent": {form: list(latent_size(sample, form)) for form in ("wan2.1", "wan2.2")},
            "repeats": sample.repeats,
            "treatment": _treatment(sample),
            "held_out": sample.held_out,
            "captions": [{"text": text, **to_dict(counted[text])} for text in (file.caption, *file.more_captions)],
            "written": {
                "file": written.path.name,
                "text": written.text,
                "state": written.state,
                "locked": written.locked,
            },
            "points": _points(sample, self.within),
            "badges": to_dict(troubles),
        }


def exact_frame(sample: Sample, number: int, latent_format: LatentFormat = "wan2.1") -> bytes:
    """Frame `number` of a sample in its bucket's full size, as WebP, with what its mask leaves out shown as such.

    DatasetError if it has none, or can't be read.
    """
    if not 0 <= number < len(sample.frame_indices):
        raise DatasetError(f"{sample.name} has {counted(len(sample.frame_indices), 'frame')}, and no frame {number}.")
    if sample.follows_motion or sample.mask:  # of all of its frames
        frame = shaded(read_frames(sample).numpy(), sample, latent_format)[number]
    else:
        frame = read_frames(replace(sample, frame_indices=(sample.frame_indices[number],)))[0].numpy()
    return webp(Image.fromarray(frame), _FRAME_QUALITY)


def source_strip(sample: Sample, start: int) -> tuple[bytes, dict[str, int]]:
    """A clip's own frames from `start` on, at most 32, as a strip (WebP), and how it is laid out."""
    file = sample.file
    indices = tuple(range(start, min(start + SOURCE_FRAMES, file.num_frames)))
    if start < 0 or not indices:
        raise DatasetError(f"{file.name} has {counted(file.num_frames, 'frame')}, and no frame {start}.")
    scale = min(1.0, _SOURCE_SIDE / max(file.width, file.height))
    width, height = max(1, round(file.width * scale)), max(1, round(file.height * scale))
    whole = Sample(file=file, frame_indices=indices, width=width, height=height)  # neither cut nor flipped
    frames = read_frames(whole)
    picture, strip = make_strip(frames.numpy(), _SOURCE_SIDE)
    return picture, to_dict(strip)


def _where(sample: Sample) -> str:
    """A sample's file, as notes name it."""
    return f"{sample.dataset}/{sample.file.name}" if sample.dataset else sample.file.name


def _treatment(sample: Sample) -> str:
    """How training treats a sample, where that is not the usual way."""
    treatment = sample.treatment
    told = ["keeps what the model knows"] if treatment.is_regularization else []
    told += [f"its loss counts {treatment.loss_weight:g}"] if treatment.loss_weight != 1 else []
    if sample.given is not None:
        pictures = (("first", sample.given.first), ("last", sample.given.last))
        told += [f"an image-to-video model is given {file.name} as {place} frame" for place, file in pictures if file]
        told += [
            f"a model with such an input is given {file.name} as {name}" for name, file in sample.given.paired.items()
        ]
    if sample.mask is not None:
        by = sample.mask.file.name if sample.mask.file else "its own transparency"
        told.append(f"its loss is masked by {by}, and counts little under the stripes")
    dropped = treatment.caption_dropout
    told += [f"trained without its caption {dropped:.0%} of the time"] if dropped is not None else []
    return ", ".join(told)


def _item(i: int, key: str, sample: Sample, seen: Seen) -> dict[str, Any]:
    return {
        "i": i,
        "key": key,
        "strip": to_dict(seen.strip),
        "badges": to_dict(picture_troubles(sample, seen.measured)),
    }


def _points(sample: Sample, within: tuple[Path, ...] | None) -> list[int] | None:
    path = points_path(Path(sample.file.path))
    try:
        is_ours = path.is_file() and (within is None or leads_within(path, within))
        points = read_points(path) if is_ours else None
    except BadMediaError:
        return None
    return [points.in_frame, points.out_frame] if points else None
