"""Strips: all frames of a sample as one small WebP picture, made once and kept with what was measured of them.

The page plays a strip frame by frame. Shapes: F frames, H W their size.
"""

import io
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.types import Sample
from ..disk import write_atomic
from ..errors import ConfigError
from ..facts import LatentFormat
from ..safe_json import read_object, seal
from ..serial import digest, from_dict, to_dict
from .measure import Measured, measure

_VERSION = 1  # raise when strips or measures change: they are then made anew
_SIDE = 224  # pixels of a frame's longer side in a strip
_MOST_PIXELS = 6_000_000  # of a whole strip, which the page holds decoded
_MOST_SIDE = 16_383  # of WebP
_QUALITY = 72


@dataclass(frozen=True, kw_only=True)
class Strip:
    """Where the frames lie in a strip: `count` of them, in rows of `columns`, each width x height pixels."""

    count: int
    columns: int
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What is kept of a sample."""

    strip: Strip
    measured: Measured


def make_strip(frames: np.ndarray, side: int = _SIDE) -> tuple[bytes, Strip]:
    """Frames, uint8 RGB [F, H, W, 3], side by side as WebP."""
    count, height, width = frames.shape[:3]
    scale = min(1.0, side / max(width, height), math.sqrt(_MOST_PIXELS / (count * width * height)))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    columns = min(count, math.ceil(math.sqrt(count)), _MOST_SIDE // size[0])
    sheet = Image.new("RGB", (columns * size[0], math.ceil(count / columns) * size[1]))
    for index, frame in enumerate(frames):
        small = Image.fromarray(frame).resize(size, Image.Resampling.BOX if scale < 0.5 else Image.Resampling.BILINEAR)
        sheet.paste(small, (index % columns * size[0], index // columns * size[1]))
    return webp(sheet), Strip(count=count, columns=columns, width=size[0], height=size[1])


def webp(image: Image.Image, quality: int = _QUALITY) -> bytes:
    """The bytes of a picture as WebP."""
    file = io.BytesIO()
    image.save(file, "WEBP", quality=quality, method=2)
    return file.getvalue()


class StripStore:
    """Strips in a folder: `key.webp` and, written last, `key.json`. Several processes may use it at once."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def key(self, sample: Sample, latent_format: LatentFormat = "wan2.1") -> str:
        """Of what a sample's pixels are, and of its mask in latents."""
        mask = [*sample.mask_keys, latent_format] if sample.mask else []
        return digest(["look", _VERSION, sample.content_key, *mask], 32)

    def picture(self, key: str) -> Path:
        """Where the strip of a key lies, or would lie."""
        return self.root / f"{key}.webp"

    def get(self, key: str) -> Seen | None:
        """What is kept under a key; None for nothing, or for what is not as it was written."""
        found = read_object(self.root / f"{key}.json")
        if found is None or not self.picture(key).is_file():
            return None
        try:
            return from_dict(Seen, found)
        except ConfigError:
            return None

    def make(self, key: str, frames: np.ndarray, shown: np.ndarray | None = None) -> Seen:
        """Make and keep what is told of a sample's frames [F, H, W, 3], and a strip of them, or of those `shown` instead.

        RunError where the disk refuses.
        """
        picture, strip = make_strip(frames if shown is None else shown)
        seen = Seen(strip=strip, measured=measure(frames))
        write_atomic(self.picture(key), lambda file: file.write(picture))
        text = json.dumps(seal(to_dict(seen)), separators=(",", ":"))
        write_atomic(self.root / f"{key}.json", lambda file: file.write(text.encode()))
        return seen
