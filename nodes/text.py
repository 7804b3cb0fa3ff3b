"""Short texts that nodes show."""

from collections import Counter
from collections.abc import Sequence

from ..core.data.types import Dataset, Note


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def quantity(number: int) -> str:
    """A number with its prefix: 456 k, 1.42 G."""
    for limit, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g} {prefix}"
    return f"{number} "


def list_notes(notes: Sequence[Note], limit: int = 30) -> str:
    """The notes, one a line; the first `limit` of them."""
    lines = [f"- {note}" for note in notes[:limit]]
    if len(notes) > limit:
        lines.append(f"- ... and {len(notes) - limit} more (all of them are in the server's log)")
    return "\n".join(lines)


def describe_dataset(dataset: Dataset) -> str:
    """What was found, in how many buckets, and everything that was dropped, cut or changed."""
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
    if dataset.notes:
        lines.append(list_notes(dataset.notes))
    return "\n".join(lines)
