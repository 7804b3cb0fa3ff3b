"""Real media files whose frames can be told apart: frame i is grey with the level 10 + 5 i (modulo 50 frames)."""

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Interpolation
from PIL import Image


def level(index: int) -> int:
    """Grey level of frame `index`."""
    return 10 + 5 * (index % 50)


def write_clip(
    path: Path,
    num_frames: int = 20,
    *,
    size: tuple[int, int] = (64, 48),
    rate: int = 16,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    pts_ms: list[int] | None = None,
    **extra,
) -> Path:
    """Encode a clip. `pts_ms` makes the rate variable. Extra: picture (an RGB array for all frames), rotation, options
    (of the codec), container (options), colorspace, color_range, gop, aspect."""
    picture, colorspace, color_range = extra.get("picture"), extra.get("colorspace"), extra.get("color_range")
    options = extra.get("options", {"qp": "0"} if codec == "libx264" and pix_fmt == "yuv420p" else {})
    with av.open(str(path), "w", options=extra.get("container", {})) as container:
        stream: Any = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.gop_size = extra.get("gop", 10)
        if "aspect" in extra:
            stream.sample_aspect_ratio = extra["aspect"]
        if "rotation" in extra:
            stream.set_display_rotation(extra["rotation"])
        if colorspace:
            stream.codec_context.colorspace = colorspace
        if color_range:
            stream.codec_context.color_range = color_range
        for index in range(num_frames):
            pixels = np.full((size[1], size[0], 3), level(index), np.uint8) if picture is None else picture
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                format=pix_fmt,
                dst_colorspace=colorspace,
                dst_color_range=color_range or ColorRange.MPEG,
                interpolation=int(Interpolation.BICUBIC)
                | 0x40000,  # SWS_ACCURATE_RND, which older PyAV has no name for
            )
            if pts_ms is not None:
                frame.pts, frame.time_base = pts_ms[index], Fraction(1, 1000)
                stream.codec_context.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_animation(path: Path, num_frames: int = 6, *, delay_ms: int | list[int] = 100, **kwargs) -> Path:
    """An animated gif, webp, png or avif of 60x40 grey frames."""
    frames = [Image.fromarray(np.full((40, 60, 3), level(i), np.uint8)) for i in range(num_frames)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=delay_ms, **kwargs)
    return path


def write_image(path: Path, size: tuple[int, int] = (64, 48), colour=(200, 60, 30), **kwargs) -> Path:
    """A plain image."""
    Image.new("RGB", size, colour).save(path, **kwargs)
    return path


def cut(path: Path, fraction: float, target: Path | None = None) -> Path:
    """Keep only the first part of a file."""
    data = path.read_bytes()
    target = target or path
    target.write_bytes(data[: int(len(data) * fraction)])
    return target


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """Writers of small media files."""
    return SimpleNamespace(clip=write_clip, animation=write_animation, image=write_image, cut=cut, level=level)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty dataset folder."""
    path = tmp_path / "set"
    path.mkdir()
    return path


@pytest.fixture
def await_tick(tmp_path_factory):
    """Waits until what changes now gets a later time than a file has: a disk's clock may stand still for milliseconds."""
    clock = tmp_path_factory.mktemp("clock") / "clock"

    def wait(path: Path) -> None:
        clock.touch()
        while clock.stat().st_ctime_ns <= path.stat().st_ctime_ns:
            clock.touch()

    return wait
