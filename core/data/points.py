"""In and out points: which part of a clip is used, kept in a small file beside the clip.

`dive.mp4.inout.json` holds {"in_frame": 12, "out_frame": 80}: the frames 12 to 79 of the clip, counted from 0 as they are
shown. Whatever samples frames sees that part alone, as if the clip began and ended there.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from ..disk import write_atomic
from ..errors import DatasetError
from ..safe_json import parse_object
from ..words import counted
from .media import BadMediaError, check_plain_file

POINTS_SUFFIX = ".inout.json"
_MAX_BYTES = 4096
_FIELDS = {"in_frame", "out_frame"}


@dataclass(frozen=True, kw_only=True)
class Points:
    """The frames [in_frame, out_frame) of a clip, in the order in which they are shown."""

    in_frame: int
    out_frame: int

    def problem(self, num_frames: int) -> str:
        """Why a clip of so many frames has no such part, as a clause; "" if it has."""
        if not 0 <= self.in_frame < self.out_frame <= num_frames:
            return (
                f"in_frame {self.in_frame} and out_frame {self.out_frame} must be a part of its "
                f"{counted(num_frames, 'frame')}: 0 <= in_frame < out_frame <= {num_frames}"
            )
        return ""


def points_path(media: Path) -> Path:
    """Where the points of a clip stand, or would stand."""
    return media.with_name(media.name + POINTS_SUFFIX)


def read_points(path: Path) -> Points:
    """The points in a file. BadMediaError, with a clause, for a file that is anything else."""
    try:
        check_plain_file(path)
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES} bytes")
        values = parse_object(data)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise BadMediaError(
            f"its in and out points in {path.name} cannot be read ({why}): correct or remove it"
        ) from error
    numbers = [values.get(name) for name in ("in_frame", "out_frame")]
    first, last = numbers
    if set(values) != _FIELDS or type(first) is not int or type(last) is not int:
        raise BadMediaError(
            f'its in and out points in {path.name} are not of the form {{"in_frame": 0, "out_frame": 33}}: correct or '
            "remove it"
        )
    return Points(in_frame=first, out_frame=last)


def write_points(media: Path, points: Points | None) -> None:
    """Keep the points beside a clip, or with None remove them. RunError where the disk refuses."""
    path = points_path(media)
    if points is None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise DatasetError(f"{path} cannot be removed ({error.strerror or error}).") from error
        return
    text = json.dumps({"in_frame": points.in_frame, "out_frame": points.out_frame}) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()))


def used_part(times_us: tuple[int, ...], end_us: int, points: Points | None) -> tuple[tuple[int, ...], int, int]:
    """(start of each used frame in microseconds from the first of them, end of the last, number of the first)."""
    if points is None:
        return times_us, end_us, 0
    first, last = points.in_frame, points.out_frame
    end = times_us[last] if last < len(times_us) else end_us
    return tuple(time - times_us[first] for time in times_us[first:last]), end - times_us[first], first
