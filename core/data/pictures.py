"""Images and PIL-read animations (gif, webp, apng, avif): frame times, and frames as displayed."""

import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .media import BadMediaError

# What PIL raises on damaged files, besides OSError and its own UnidentifiedImageError, which is one.
PICTURE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
ANIMATED_FORMATS = ("GIF", "WEBP", "PNG", "AVIF")  # others have several pictures (MPO, TIFF), not frames
_DEFAULT_DELAY_MS = 100.0  # what browsers show for delays of 10 ms and less


def probe_picture(path: Path) -> tuple[int, int, tuple[int, ...], int]:
    """Decode every frame once: (displayed width, height, start of each frame in microseconds, end of the last).

    A still image has the times (0,) and the end 0. Raises BadMediaError if anything in the file cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            num_frames = _num_frames(image)
            times, clock = [], 0.0
            for index in range(num_frames):
                image.seek(index)
                image.load()
                times.append(round(clock))
                clock += 1000.0 * _delay_ms(image)
            width, height = image.size
            if num_frames > 1:
                return width, height, tuple(times), round(clock)
            if image.getexif().get(0x0112, 1) in (5, 6, 7, 8):  # EXIF orientation: stored lying on its side
                width, height = height, width
            return width, height, (0,), 0
    except PICTURE_ERRORS as error:
        raise BadMediaError(f"the image cannot be decoded ({_reason(error)})") from error


def read_picture(path: Path, indices: Sequence[int]) -> Iterator[tuple[int, Image.Image]]:
    """Yield (index, RGB image as displayed) for ascending `indices`; transparency is laid on white.

    Raises BadMediaError if a frame is damaged or missing.
    """
    try:
        with Image.open(path) as image:
            num_frames = _num_frames(image)
            if indices[-1] >= num_frames:
                raise BadMediaError(f"it has {num_frames} frames, but frame {indices[-1]} was expected")
            wanted = set(indices)
            for index in range(indices[-1] + 1):
                image.seek(index)
                image.load()
                if index in wanted:
                    yield index, _as_rgb(image if num_frames > 1 else ImageOps.exif_transpose(image))
    except PICTURE_ERRORS as error:
        raise BadMediaError(f"the image cannot be decoded ({_reason(error)})") from error


def on_white(image: Image.Image) -> Image.Image:
    """An image with an alpha channel as RGB on a white ground."""
    rgba = image.convert("RGBA")
    ground = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(ground, rgba).convert("RGB")


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: PIL's own conversion would clip at 255
        grey = np.asarray(image).astype(np.int64) >> 8
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return on_white(image)
    return image.convert("RGB")


def _num_frames(image: Image.Image) -> int:
    return getattr(image, "n_frames", 1) if image.format in ANIMATED_FORMATS else 1


def _delay_ms(image: Image.Image) -> float:
    delay = float(image.info.get("duration") or 0)
    return delay if delay > 10 else _DEFAULT_DELAY_MS


def _reason(error: BaseException) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image of a known format, or cut off"
    return str(error) or type(error).__name__
