"""The folder `previews` of a run: for each step the latents, the video once somebody has decoded it, and their mark."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from ..disk import write_atomic
from ..errors import RunError
from ..locks import FileLock
from ..safetensors_file import write_safetensors
from .run_folder import RunFolder

KEEP_LAST = 20
VIDEO_NAME = re.compile(r"step-(\d{8})\.webp")
WEBP_QUALITY = 85


@dataclass(frozen=True)
class PreviewFolder:
    """Previews by step. Files of a step that comes again, after a resume, are replaced."""

    path: Path

    @classmethod
    def of(cls, run: RunFolder) -> "PreviewFolder":
        """The one of a run."""
        return cls(run.path / "previews")

    def latents_path(self, step: int) -> Path:
        """`latents`, [C, F, H, W] float32, normalised."""
        return self.path / f"step-{step:08d}.safetensors"

    def video_path(self, step: int) -> Path:
        """An animated picture."""
        return self.path / f"step-{step:08d}.webp"

    def mark_path(self, step: int) -> Path:
        """Says that the decoder is done with this step, well or badly."""
        return self.path / f"step-{step:08d}.done"

    def write(self, step: int, latents: torch.Tensor) -> Path:
        """Keep latents, in the place of what there was of this step; drop the oldest steps beyond KEEP_LAST.

        Raises RunError when the disk refuses.
        """
        path = self.latents_path(step)
        write_safetensors(path, {"latents": latents}, {"format": "pt"}, kept="the run goes on")
        outdated = [self.video_path(step), self.mark_path(step)]
        steps = sorted(file.stem for file in self.path.glob("step-*.safetensors"))
        for stem in steps[:-KEEP_LAST]:
            outdated += self.path.glob(f"{stem}.*")
        for file in outdated:
            with suppress(OSError):  # on Windows: shown to somebody at the moment
                file.unlink(missing_ok=True)
        return path

    def read(self, step: int) -> torch.Tensor:
        """The latents of a step."""
        return load_file(self.latents_path(step))["latents"]

    def videos(self) -> list[tuple[int, str]]:
        """(step, name of the file with its version, as a query) of what there is to see, oldest first."""
        found = []
        for file in sorted(self.path.glob("step-*.webp")):
            match = VIDEO_NAME.fullmatch(file.name)
            if match:
                found.append((int(match[1]), f"{file.name}?v={file.stat().st_mtime_ns // 10**6}"))
        return found

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


def write_video(path: Path, frames: np.ndarray, fps: float) -> Path:
    """Frames [F, H, W, 3] uint8 as an animated WEBP, or a still one where F is 1. RunError if the disk refuses."""
    first, *others = (Image.fromarray(frame) for frame in frames)
    options = {"save_all": True, "append_images": others, "duration": round(1000 / fps), "loop": 0}
    write_atomic(path, lambda file: first.save(file, "WEBP", quality=WEBP_QUALITY, **options))
    return path
