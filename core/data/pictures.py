"""Images and PIL-read animations (gif, webp, apng, avif): frame times, and frames as displayed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..words import counted
from .icc import profile_changes, to_srgb
from .media import BadMediaError, check_plain_file, decoding
from .reading import ANIMATION, ICC, READINGS, Contents
from .watch import ANIMATION_PIXELS, CLIP_PIXELS, MAX_ANIMATED_PIXELS, MAX_FRAME_PIXELS, Interrupt, Work, check_span

ANIMATED_FORMATS = ("GIF", "WEBP", "PNG", "AVIF")  # others have several pictures (MPO, TIFF), not frames
# PIL tells formats by content, not by name, and knows some that run a program or a library of the system (EPS, WMF).
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "HEIF", "BMP", "DIB", "GIF", "TIFF", "JPEG2000", "PPM", "TGA", "ICO")
_DEFAULT_DELAY_MS = 100.0  # what browsers show for delays of 10 ms and less


def probe_picture(path: Path, interrupt: Interrupt | None = None) -> Contents:
    """What is in a picture or animation; decodes every frame once.

    A still image has the times (0,) and the end 0. Raises BadMediaError if anything in the file cannot be decoded, or
    takes more than the limits allow.
    """
    with _open(path) as image:
        skipped, num_frames, work = _start(image, interrupt)
        work.expect(skipped + num_frames, *image.size)
        times, clock, is_transparent = [], 0.0, False
        for index in range(skipped, skipped + num_frames):
            _show(image, index, work)
            is_transparent = is_transparent or _has_alpha(image)
            times.append(round(clock))
            clock += 1000.0 * _delay_ms(image)
            check_span(clock)
        read_as, remarks = _colours(image)
        read_as = (ANIMATION, *read_as) if skipped else read_as
        width, height = image.size
        if num_frames == 1:
            times, clock = [0], 0.0
            with decoding("image"):
                if image.getexif().get(0x0112, 1) in (5, 6, 7, 8):  # EXIF orientation: stored lying on its side
                    width, height = height, width
        return Contents(
            width=width,
            height=height,
            times_us=tuple(times),
            end_us=round(clock),
            read_as=read_as,
            has_alpha=is_transparent,
            remarks=(*(READINGS[name] for name in read_as), *remarks),
        )


def read_picture(
    path: Path,
    indices: Sequence[int],
    interrupt: Interrupt | None = None,
    *,
    read_as: Sequence[str] = (),
    alpha: bool = False,
) -> Iterator[tuple[int, Image.Image]]:
    """Yield (index, RGB image as displayed) for ascending `indices`; transparency is laid on white.

    With `alpha` the images are of mode L instead, 255 where nothing is transparent. Raises BadMediaError if a frame is
    damaged or missing.
    """
    with _open(path) as image:
        skipped, num_frames, work = _start(image, interrupt)
        if indices[-1] >= num_frames:
            raise BadMediaError(f"it has {counted(num_frames, 'frame')}, but frame {indices[-1]} was expected")
        work.expect(skipped + indices[-1] + 1, *image.size)
        wanted = set(indices)
        for index in range(indices[-1] + 1):
            _show(image, skipped + index, work)
            if index in wanted:
                with decoding("image"):
                    frame = image if num_frames > 1 else ImageOps.exif_transpose(image)
                    shown = _alpha(frame) if alpha else _as_rgb(to_srgb(frame) if ICC in read_as else frame)
                yield index, shown


def on_white(image: Image.Image) -> Image.Image:
    """An image with an alpha channel as RGB on a white ground."""
    rgba = image.convert("RGBA")
    ground = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(ground, rgba).convert("RGB")


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: PIL's own conversion would clip at 255
        grey = np.asarray(image).astype(np.int64) >> 8
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    return on_white(image) if _has_alpha(image) else image.convert("RGB")


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def _alpha(image: Image.Image) -> Image.Image:
    return image.convert("RGBA").getchannel("A") if _has_alpha(image) else Image.new("L", image.size, 255)


def _colours(image: Image.Image) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """How the picture's colours are to be read, and what there is to say of them."""
    try:
        return ((ICC,) if profile_changes(image) else ()), ()
    except ValueError as error:
        return (), (f"its colour profile is not used, since {error}: its colours are taken as sRGB",)


@contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    with decoding("image"):
        check_plain_file(path)
        # All that is installed, also while another thread is at it: a format may not seem unknown for a moment.
        Image.init()
        image = Image.open(path, formats=[name for name in _FORMATS if name in Image.OPEN])
    with image:
        yield image


def _start(image: Image.Image, interrupt: Interrupt | None) -> tuple[int, int, Work]:
    """Pictures that are no part of the animation and come first, the number of frames, and what counts the work on them."""
    is_animated = image.format in ANIMATED_FORMATS
    with decoding("image"):
        num_frames = getattr(image, "n_frames", 1) if is_animated else 1
    if num_frames > 1:
        skipped = 1 if image.info.get("default_image") else 0  # APNG: shown where animations are not known
        return skipped, num_frames - skipped, Work(interrupt, ANIMATION_PIXELS, MAX_ANIMATED_PIXELS)
    return 0, 1, Work(interrupt, CLIP_PIXELS, MAX_FRAME_PIXELS)


def _show(image: Image.Image, index: int, work: Work) -> None:
    """Decode frame `index`, which may have made the picture larger."""
    with decoding("image"):
        image.seek(index)
    work.frame(*image.size)
    with decoding("image"):
        image.load()


def _delay_ms(image: Image.Image) -> float:
    delay = float(image.info.get("duration") or 0)
    return delay if delay > 10 else _DEFAULT_DELAY_MS
