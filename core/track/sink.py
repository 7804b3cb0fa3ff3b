"""What a tracker is: it takes the diary's events in order, and says by a key what it has taken already."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from PIL import Image

from ..settings.samples import MOST_PROMPTS
from ..train.events import Event
from ..train.preview_folder import PreviewFolder

MEASURED = ("step", "validation", "preview")
_NOT_SHOWN = ("event", "time", "step", "crc")
_MOST_FRAMES, _SIDE = 81, 480


class Sink(Protocol):
    """Where events go. Errors are the caller's to tell; a sink that fails is asked no more, or only tried again later."""

    name: str  # in sentences: TensorBoard
    key: str  # what it has taken is kept by this; it holds no secret
    drops: bool  # whether one failure is its end
    is_new: bool  # whether what it had taken before is gone

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of events that it takes."""
        ...

    def take(self, event: Event) -> None:
        """One event of `kinds`, that it has not had."""
        ...

    def flush(self) -> None:
        """What was taken is written."""
        ...

    def close(self, state: str, /) -> None:
        """The run is over, or at least this attempt of it: finished, stopped, error."""
        ...


def numbers(event: Event) -> Iterator[tuple[str, float]]:
    """(name, value) of what a step or a validation measured."""
    group = "validation" if event["event"] == "validation" else "train"
    for name, value in event.items():
        if name not in _NOT_SHOWN and isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{group}/{name}", float(value)
    terms = event.get("terms")
    for name, value in terms.items() if isinstance(terms, dict) else ():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{group}/terms/{name}", float(value)


def preview_paths(folder: Path, event: Event) -> dict[str, Path]:
    """The videos of a preview, which are there once somebody has decoded them, by what a tracker calls them."""
    previews, step, count = PreviewFolder(folder / "previews"), event["step"], event.get("prompts", 1)
    return {
        f"preview_{i + 1}" if i else "preview": previews.video_path(step, i) for i in range(min(count, MOST_PROMPTS))
    }


def as_gif(path: Path) -> tuple[bytes, int, int]:
    """An animated WEBP as a GIF, which trackers show; its width and height. OSError for a damaged one."""
    with Image.open(path) as video:
        count = min(getattr(video, "n_frames", 1), _MOST_FRAMES)
        frames: list[Image.Image] = []
        duration = 62
        for index in range(count):
            video.seek(index)
            duration = video.info.get("duration") or duration
            frame = video.convert("RGB")
            frame.thumbnail((_SIDE, _SIDE))
            frames.append(frame)
    made = io.BytesIO()
    frames[0].save(made, "GIF", save_all=True, append_images=frames[1:], duration=duration, loop=0)
    return made.getvalue(), *frames[0].size
