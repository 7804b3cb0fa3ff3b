"""Frames as files: an mp4, and a contact sheet."""

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..disk import write_atomic

SHEET_FRAMES, SHEET_WIDTH, GAP, LINE = 5, 1600, 8, 16  # pictures in a row; pixels


def free_stem(folder: Path, name: str, suffixes: Sequence[str]) -> str:
    """`name`, or `name_v2`, `name_v3`, ...: the first for which none of the files exists."""
    number, stem = 1, name
    while any((folder / (stem + suffix)).exists() for suffix in suffixes):
        number += 1
        stem = f"{name}_v{number}"
    return stem


def write_video(path: Path, frames: np.ndarray, fps: float) -> None:
    """Frames [F, H, W, 3] uint8 with even H and W as h264. RunError if the file can't be written."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options={"crf": "16"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    write_atomic(path, lambda file: file.write(buffer.getvalue()))


def title_strip(titles: Sequence[str], width: int, height: int) -> np.ndarray:
    """A strip [h, width, 3] uint8 of titles, each over its part of a row of videos of `height` pixels; h is even."""
    high = max(16, height // 24 * 2)
    strip = Image.new("RGB", (width, high), (24, 24, 24))
    draw = ImageDraw.Draw(strip)
    each = width // len(titles)
    size = high * 0.7
    while size > 5 and max(draw.textlength(title, font=ImageFont.load_default(size)) for title in titles) > each - 4:
        size -= 1
    for index, title in enumerate(titles):
        place = (index * each + each / 2, high / 2)
        draw.text(place, title, fill=(235, 235, 235), anchor="mm", font=ImageFont.load_default(size))
    return np.array(strip)  # a copy, which PyTorch may take over


def write_sheet(path: Path, rows: Sequence[tuple[str, np.ndarray]]) -> None:
    """A picture with a row for each video [F, H, W, 3] uint8: its title, and frames evenly spaced over its length."""
    num_frames, height, width = rows[0][1].shape[:3]
    shown = np.unique(np.linspace(0, num_frames - 1, SHEET_FRAMES).round().astype(int))
    scale = min(1.0, SHEET_WIDTH / (len(shown) * width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    sheet = Image.new(
        "RGB", (len(shown) * (size[0] + GAP) + GAP, len(rows) * (size[1] + LINE + GAP) + GAP), (255, 255, 255)
    )
    draw = ImageDraw.Draw(sheet)
    for row, (title, frames) in enumerate(rows):
        top = GAP + row * (size[1] + LINE + GAP)
        draw.text((GAP, top), title, fill=(0, 0, 0))
        for column, index in enumerate(shown):
            picture = Image.fromarray(frames[index]).resize(size, Image.Resampling.LANCZOS)
            sheet.paste(picture, (GAP + column * (size[0] + GAP), top + LINE))
    write_atomic(path, lambda file: sheet.save(file, "PNG"))
