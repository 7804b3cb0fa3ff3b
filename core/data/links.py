"""Links in folders of data: followed, but into no folder twice, and to no place that the user has not named."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path


def is_file(path: Path) -> bool:
    """Whether a plain file is there, at the end of its links; False, too, for a name that the system can't have."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """As `is_file`, for a folder."""
    try:
        return path.is_dir()
    except OSError:
        return False


def files_below(folder: Path) -> Iterator[Path]:
    """All plain files below `folder`, in folders that are linked there, too; what can't be read is left out."""
    seen = {folder.resolve()}
    for place, folders, names in os.walk(folder, followlinks=True):
        new = []
        for name in sorted(folders):
            target = Path(place, name).resolve()
            if target not in seen:
                seen.add(target)
                new.append(name)
        folders[:] = new
        yield from (path for path in (Path(place, name) for name in sorted(names)) if is_file(path))


def leads_within(path: Path, places: Sequence[Path]) -> bool:
    """Whether `path`, once its links are followed, lies in one of `places`."""
    try:
        real = path.resolve()
        return any(real.is_relative_to(place.resolve()) for place in places)
    except (OSError, ValueError, RuntimeError):  # a loop of links, or a null character
        return False
