"""Which of a dataset's files a mask, a control clip or a given picture belongs to: by its name."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from ..names import same_name
from .types import Note


class Partners:
    """Files that belong to others, found by what the others are called.

    A file has the name of its owner, with or without the owner's ending: clip.png or clip.mp4.png is of clip.mp4. Where none
    has the very name, the only one does that differs in case or in form (NFC, NFD) alone: Windows and the Mac take such names
    for the same, and a Mac writes letters with marks in another form than others do.
    """

    def __init__(self, files: Mapping[str, Path], owners: Iterable[str], *, flat: bool = False) -> None:
        """`files`: by their names without ending, and without what marks them. `owners`: names relative to the dataset.

        `flat`: a file may also lie directly in the files' folder, and not in the same one below it.
        """
        self._files, self._flat = files, flat
        taken = {call for name in owners for call in self._calls(name)}
        self._loosely: dict[str, list[str]] = {}
        for call in files:
            if call not in taken:
                self._loosely.setdefault(same_name(call), []).append(call)
        self._used = set[str]()

    def of(self, name: str) -> Path | None:
        """The file that belongs to the one called `name`; None where there is none."""
        calls = self._calls(name)
        call = next((call for call in calls if call in self._files), None) or self._spelled_otherwise(calls)
        if call is None:
            return None
        self._used.add(call)
        return self._files[call]

    @property
    def left(self) -> dict[str, Path]:
        """Those that no owner was found for, so far."""
        return {call: path for call, path in self._files.items() if call not in self._used}

    def _calls(self, name: str) -> list[str]:
        """What its file may be called, the likeliest first."""
        calls = [without_ending(name), name]
        return calls + [call.rpartition("/")[2] for call in calls] if self._flat else calls

    def _spelled_otherwise(self, calls: Iterable[str]) -> str | None:
        found = (self._loosely.get(same_name(call), []) for call in calls)
        return next((one[0] for one in found if len(one) == 1), None)


def without_ending(name: str) -> str:
    """clip.final of clip.final.mp4."""
    return name.rpartition(".")[0]


def without_mark(stem: str, mark: str) -> str:
    """`stem` without a `mark` at its end, in any case; "" where it has none."""
    if stem.endswith(mark):
        return stem.removesuffix(mark)
    wanted = same_name(mark)
    if not same_name(stem).endswith(wanted):
        return ""
    return next((stem[:cut] for cut in range(len(stem) - 1, 0, -1) if same_name(stem[cut:]) == wanted), "")


def ownerless(names: Iterable[str], what: str, example: str) -> list[Note]:
    """A word for each file that belongs to none. `what`: of the dataset's files. `example`: a name, and whose it would be."""
    reason = f"not used: no file of the dataset is left for it; {what} has the name of its clip or picture, such as {example}"
    return [Note(name=name, action="note", reason=reason) for name in names]
