"""The folder `previews` of a run: for each step the latents, the videos once somebody has decoded them, and their mark.

The files of the first prompt are step-00000100.safetensors and .webp, those of the second step-00000100_02.*, and so on.
step-00000100.json says of what they are: a list of {"name", "prompt", "seed"}.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from ..disk import write_atomic
from ..errors import RunError
from ..locks import FileLock
from ..safe_json import as_table
from ..safetensors_file import write_safetensors
from .checkpoints import step_of
from .run_folder import RunFolder

MOST_KEPT, NEWEST = 20, 10  # previews, beside those of checkpoints
VIDEO_NAME = re.compile(r"step-(\d{8})(?:_(\d{2}))?\.webp")
WEBP_QUALITY = 85
_MOST_BYTES = 8_000_000  # of what is said of a step's videos


@dataclass(frozen=True)
class Shown:
    """What one video of a preview is of."""

    name: str  # of the prompt; "": a caption of the dataset
    prompt: str
    seed: int


@dataclass(frozen=True)
class PreviewFolder:
    """Previews by step. Files of a step that comes again, after a resume, are replaced."""

    path: Path

    @classmethod
    def of(cls, run: RunFolder) -> "PreviewFolder":
        """The one of a run."""
        return cls(run.path / "previews")

    def latents_path(self, step: int, number: int = 0) -> Path:
        """`latents`, [C, F, H, W] float32, normalised; `number` counts the prompts from 0."""
        return self.path / f"{_stem(step, number)}.safetensors"

    def video_path(self, step: int, number: int = 0) -> Path:
        """An animated picture."""
        return self.path / f"{_stem(step, number)}.webp"

    def shown_path(self, step: int) -> Path:
        """What the videos of a step are of."""
        return self.path / f"{_stem(step)}.json"

    def mark_path(self, step: int) -> Path:
        """Says that the decoder is done with this step, well or badly."""
        return self.path / f"step-{step:08d}.done"

    def write(self, step: int, latents: torch.Tensor) -> Path:
        """As `write_all`, of one video."""
        return self.write_all(step, [latents])[0]

    def write_all(self, step: int, latents: Sequence[torch.Tensor], shown: Sequence[Shown] = ()) -> list[Path]:
        """Keep the latents of each prompt, in the place of what there was of this step; drop those that `thin` names.

        Those of steps with a checkpoint stay as long as it does. Raises RunError when the disk refuses.
        """
        new = [self.latents_path(step, number) for number in range(len(latents))]
        known = {step, *_steps_of(self.path.glob("step-*.safetensors"))}
        dropped = thin(known.difference(map(step_of, (self.path.parent / "checkpoints").glob("step-*"))))
        outdated = [
            file for other in {step, *dropped} for file in self.path.glob(f"{_stem(other)}*") if file not in new
        ]
        for path, one in zip(new, latents, strict=True):
            write_safetensors(path, {"latents": one}, {"format": "pt"}, kept="the run goes on")
        for file in outdated:
            with suppress(OSError):  # on Windows: shown to somebody at the moment
                file.unlink(missing_ok=True)
        if shown:
            text = json.dumps([{"name": one.name, "prompt": one.prompt, "seed": one.seed} for one in shown])
            write_atomic(self.shown_path(step), lambda file: file.write(text.encode()))
        return new

    def read(self, step: int, number: int = 0) -> torch.Tensor:
        """The latents of a step's prompt."""
        return load_file(self.latents_path(step, number))["latents"]

    def read_all(self, step: int) -> Iterator[tuple[int, torch.Tensor]]:
        """(number, latents) of each prompt of a step."""
        number = 0
        while self.latents_path(step, number).is_file():
            yield number, self.read(step, number)
            number += 1

    def videos(self) -> list[tuple[int, str]]:
        """(step, name of the file with its version, as a query) of the first prompt's videos, oldest first."""
        return [(step, name) for step, number, name in self._all_videos() if number == 0]

    def gallery(self) -> dict[str, Any]:
        """All videos there are: `prompts`, each {"name", "prompt"}, and `steps`, oldest first, each {"step", "files"}.

        Of `files` there is one for each prompt: the name with its version, as a query, or None where there is none.
        """
        prompts: dict[tuple[str, str], int] = {}
        by_step: dict[int, dict[int, str]] = {}
        for step, number, name in self._all_videos():
            by_step.setdefault(step, {})[number] = name
        placed: list[tuple[int, dict[int, str]]] = []
        for step, files in by_step.items():
            shown = self._shown(step)
            row: dict[int, str] = {}
            for number, name in files.items():
                which = shown[number] if number < len(shown) else ("", "")
                row[prompts.setdefault(which, len(prompts))] = name
            placed.append((step, row))
        return {
            "prompts": [{"name": name, "prompt": prompt} for name, prompt in prompts],
            "steps": [{"step": step, "files": [row.get(i) for i in range(len(prompts))]} for step, row in placed],
        }

    def _all_videos(self) -> list[tuple[int, int, str]]:
        """(step, number of the prompt from 0, name with its version), by step and number."""
        found = []
        for file in self.path.glob("step-*.webp"):
            match = VIDEO_NAME.fullmatch(file.name)
            if match:
                number = int(match[2]) - 1 if match[2] else 0
                found.append((int(match[1]), number, f"{file.name}?v={file.stat().st_mtime_ns // 10**6}"))
        return sorted(found)

    def _shown(self, step: int) -> list[tuple[str, str]]:
        """(name, prompt) of each video of a step, as far as that is known: somebody else may have written it."""
        path = self.shown_path(step)
        try:
            data: Any = json.loads(path.read_bytes()) if path.stat().st_size <= _MOST_BYTES else []
        except (OSError, ValueError, RecursionError):
            return []
        if not isinstance(data, list):
            return []
        tables = [as_table(one) for one in cast(list[Any], data)]
        return [(str(one.get("name", "")), str(one.get("prompt", ""))) for one in tables]

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Say to the run, as long as this lasts, that this process decodes its previews and marks them."""
        lock = self._lock()
        lock.acquire()  # if another process has it, then the run is that one's too
        try:
            yield
        finally:
            lock.release()

    def has_decoder(self) -> bool:
        """Whether a process is there that decodes previews; False where that can't be found out."""
        lock = self._lock()
        try:
            if not lock.acquire():
                return True
        except RunError:
            return False
        lock.release()
        return False

    def _lock(self) -> FileLock:
        return FileLock(self.path / ".decoder.lock")


def thin(steps: Iterable[int]) -> list[int]:
    """Which of these steps' previews to drop, so that MOST_KEPT remain.

    The first stays, with which all others are compared, and so do the NEWEST ones. Of those between, the one goes whose
    neighbours are closest to each other: what remains is spread over the whole run.
    """
    kept, dropped = sorted(steps), list[int]()
    while len(kept) > MOST_KEPT:
        dropped.append(kept.pop(min(range(1, len(kept) - NEWEST), key=lambda i: kept[i + 1] - kept[i - 1])))
    return dropped


def _steps_of(paths: Iterable[Path]) -> list[int]:
    return [int(number) for path in paths if (number := path.name[5:13]).isdecimal()]


def _stem(step: int, number: int = 0) -> str:
    return f"step-{step:08d}" + (f"_{number + 1:02d}" if number else "")


def write_video(path: Path, frames: np.ndarray, fps: float) -> Path:
    """Frames [F, H, W, 3] uint8 as an animated WEBP, or a still one where F is 1. RunError if the disk refuses."""
    first, *others = (Image.fromarray(frame) for frame in frames)
    options = {"save_all": True, "append_images": others, "duration": round(1000 / fps), "loop": 0}
    write_atomic(path, lambda file: first.save(file, "WEBP", quality=WEBP_QUALITY, **options))
    return path
