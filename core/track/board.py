"""TensorBoard's files, written by its own package."""

import importlib
from pathlib import Path
from typing import Any

from ..train.events import Event
from .packages import imported
from .run_facts import RunFacts
from .sink import MEASURED, as_gif, numbers, preview_paths

_EVENT, _WRITER = "tensorboard.compat.proto.event_pb2", "tensorboard.summary.writer.event_file_writer"
_SUMMARY = "tensorboard.compat.proto.summary_pb2"


class TensorBoard:
    """Files of one run, in a folder of its own below `folder`. ConfigError without the package."""

    name, drops = "TensorBoard", True
    kinds = MEASURED

    def __init__(self, folder: Path, run: RunFacts) -> None:
        imported("tensorboard")
        self._event, self._summary = importlib.import_module(_EVENT), importlib.import_module(_SUMMARY)
        self.path = folder / run.folder.name
        self.key = f"tensorboard {self.path}"
        self._run = run
        self.is_new = not any(self.path.glob("events.out.tfevents.*"))
        self._writer = importlib.import_module(_WRITER).EventFileWriter(str(self.path))

    def take(self, event: Event) -> None:
        """Numbers of steps and validations, and previews."""
        if event["event"] == "preview":
            values = [self._shown(tag, path) for tag, path in preview_paths(self._run.folder, event).items()]
        else:
            values = [self._summary.Summary.Value(tag=tag, simple_value=value) for tag, value in numbers(event)]
        self._add(event, values)

    def _shown(self, tag: str, path: Path) -> Any:
        gif, width, height = as_gif(path)
        image = self._summary.Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
        return self._summary.Summary.Value(tag=tag, image=image)

    def _add(self, event: Event, values: list[Any]) -> None:
        summary = self._summary.Summary(value=values)
        self._writer.add_event(self._event.Event(wall_time=event["time"], step=event["step"], summary=summary))

    def flush(self) -> None:
        """To the disk."""
        self._writer.flush()

    def close(self, _state: str, /) -> None:
        """To the disk, and no more."""
        self._writer.close()
