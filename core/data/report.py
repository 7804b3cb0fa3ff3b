"""What a scan found, as text for people."""

from collections import Counter
from collections.abc import Sequence

from .types import Dataset, Note


def list_notes(notes: Sequence[Note], limit: int | None = 30) -> str:
    """The notes, one a line; the first `limit` of them, or all with None."""
    lines = [f"- {note}" for note in notes[:limit]]
    if len(notes) > len(lines):
        lines.append(f"- ... and {len(notes) - len(lines)} more (all of them are in the server's log)")
    return "\n".join(lines)


def describe_dataset(dataset: Dataset, limit: int | None = 30) -> str:
    """What was found, in how many buckets, options without effect, and everything that was dropped, cut or changed."""
    files = {s.file.path: s.file.kind for s in dataset.samples}
    kinds = Counter(files.values())
    buckets = Counter((s.width, s.height, len(s.frame_indices)) for s in dataset.samples)
    held_out = sum(s.held_out for s in dataset.samples)
    training = sum(s.repeats for s in dataset.samples if not s.held_out)
    lines = [
        f"{kinds['video']} clips, {kinds['image']} images: {training} samples an epoch"
        + (f", {held_out} held out" if held_out else ""),
        "buckets: " + ", ".join(f"{w}x{h}x{f} ({n})" for (w, h, f), n in sorted(buckets.items())),
    ]
    lines += [f"- {sentence}" for sentence in dataset.options.warnings()]
    if dataset.notes:
        lines.append(list_notes(dataset.notes, limit))
    return "\n".join(lines)
