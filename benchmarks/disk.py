"""Whether a folder is on a disk, and how fast a file comes from there when nothing of it is in main memory."""

import os
import re
import time
from pathlib import Path
from typing import NamedTuple

PIECE = 1 << 24  # bytes of one read
_IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")


class Mount(NamedTuple):
    """A line of mountinfo."""

    root: str  # what of the file system is seen there
    place: Path
    kind: str
    options: tuple[str, ...]  # of the file system


def read_mounts(text: str) -> list[Mount]:
    """The lines of /proc/self/mountinfo (proc(5)), the last mounted last."""
    mounts = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        _, _, _, root, place, *_ = before.split()
        kind, _, options = after.split()[:3]
        mounts.append(Mount(_unescape(root), Path(_unescape(place)), kind, tuple(options.split(","))))
    return mounts


def lies_in_memory(path: Path, mounts: list[Mount]) -> bool:
    """Whether the file system that holds the existing `path` keeps its files in main memory."""
    path = path.resolve()
    found = [mount for mount in mounts if mount.place == path or mount.place in path.parents]
    # Of two on the same place, the later one covers the other.
    deepest = max(enumerate(found), key=lambda pair: (len(pair[1].place.parts), pair[0]))[1]
    return deepest.kind in _IN_MEMORY


def mounted() -> list[Mount]:
    """This process's mounts. SystemExit where there is no Linux."""
    path = Path("/proc/self/mountinfo")
    if not path.exists():
        raise SystemExit("Main memory can be held to an amount only under Linux: leave --hold-ram out.")
    return read_mounts(path.read_text())


def drop_cache(folder: Path) -> None:
    """Have the files in `folder` on the disk, and not in main memory, as far as no process maps them."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_rate(path: Path, num_bytes: int) -> float:
    """Bytes per second at which the first `num_bytes` of `path`, at most, are read one after another; from disk where
    `drop_cache` was called before."""
    piece = bytearray(PIECE)
    done = 0
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while done < num_bytes and (read := file.readinto(piece)):
            done += read
    return done / (time.perf_counter() - start)


def _unescape(text: str) -> str:
    """Mountinfo writes blanks in octal."""
    return re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), text)
