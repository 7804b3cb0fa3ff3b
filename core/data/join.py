"""Several datasets as one: each keeps its own options, and samples and notes say which dataset they are of."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .types import Dataset, JoinedPart, Note, Sample


def join(datasets: Sequence[Dataset]) -> Dataset:
    """One dataset with the samples of all, in order. One alone stays as it is; joined ones are taken apart first.

    A dataset is called by its folder's name, with a number where several have the same: the same folder may be given
    twice. ConfigError for more samples an epoch than there can be.
    """
    assert datasets, "a run has a dataset"
    if len(datasets) == 1:
        return datasets[0]
    sources = [source for dataset in datasets for source in dataset.sources]
    names = iter(_names([source.folder for source in sources]))
    parts: list[JoinedPart] = []
    samples: list[Sample] = []
    notes: list[Note] = []
    for dataset in datasets:
        new = {source.name: replace(source, name=next(names)) for source in dataset.sources}
        parts += new.values()
        samples += [replace(sample, dataset=new[sample.dataset].name) for sample in dataset.samples]
        notes += [replace(note, dataset=new[note.dataset].name) for note in dataset.notes]
    folder = f"the joined dataset ({', '.join(part.name for part in parts)})"
    return Dataset(
        folder=folder, options=parts[0].options, samples=tuple(samples), notes=tuple(notes), parts=tuple(parts)
    )


def split(dataset: Dataset) -> list[tuple[JoinedPart, list[Sample]]]:
    """Each of the joined datasets with its samples; the one, where nothing is joined."""
    samples: dict[str, list[Sample]] = {part.name: [] for part in dataset.sources}
    for sample in dataset.samples:
        samples[sample.dataset].append(sample)
    return [(part, samples[part.name]) for part in dataset.sources]


def frame_rates(dataset: Dataset) -> tuple[float, ...]:
    """Frames per second of the clips, the one that an epoch has most of first; of a dataset of pictures, what it says."""
    if not dataset.parts:
        return (dataset.options.fps,)
    counts = Counter[float]()
    for part, samples in split(dataset):
        clips = [sample for sample in samples if sample.file.kind == "video"]
        if clips:
            counts[part.options.fps] += sum(sample.repeats for sample in clips)
    return tuple(fps for fps, _ in counts.most_common()) or (dataset.options.fps,)


def join_warnings(dataset: Dataset) -> list[str]:
    """What all datasets together have that is rarely meant, a sentence each."""
    found = []
    if all(part.options.regularization for part in dataset.sources):
        found.append(
            "regularization is on for all that is trained on, so that nothing shows the concept: turn it off for the files "
            "that do."
        )
    found += _held_out_warning(dataset.samples)
    rates = frame_rates(dataset)
    if len(rates) == 1:
        return found
    each = ", ".join(
        f"{part.name} has {part.options.fps:g}"
        for part, samples in split(dataset)
        if any(sample.file.kind == "video" for sample in samples)
    )
    return [
        *found,
        f"the clips have different frame rates ({each}): a Wan model works at one, so that motion is learnt at different "
        "speeds; give all datasets the same fps.",
    ]


def _held_out_warning(samples: Sequence[Sample]) -> list[str]:
    """A sentence where a file of the same content as one that is held out is trained on: in another dataset, or as a copy."""
    trained: dict[str, dict[str, None]] = {}
    for sample in samples:
        if not sample.held_out:
            trained.setdefault(sample.file.sha256, {})[_place(sample)] = None
    pairs: dict[str, str] = {}
    for sample in samples:
        others = [place for place in trained.get(sample.file.sha256, ()) if place != _place(sample)]
        if sample.held_out and others:
            pairs.setdefault(_place(sample), others[0])
    if not pairs:
        return []
    (held, other), *rest = pairs.items()
    more = f" (and {len(rest)} more)" if rest else ""
    return [
        f"{held} is held out, and trained on as {other}{more}: the held-out loss then tells of clips that are learnt by heart;"
        " hold out the same files of both, or leave them out of one."
    ]


def _place(sample: Sample) -> str:
    return f"{sample.dataset}/{sample.file.name}" if sample.dataset else sample.file.name


def _names(folders: Sequence[str]) -> list[str]:
    """A name for each folder, no two the same: clips, or clips (1) and clips (2)."""
    names = [Path(folder).name or folder for folder in folders]
    counts, seen, found = Counter(names), Counter[str](), []
    for name in names:
        seen[name] += 1
        found.append(f"{name} ({seen[name]})" if counts[name] > 1 else name)
    return found
