"""Draws a small captioned dataset: clips (h264 mp4) and pictures (png) of coloured shapes in motion.

Run as a program: python -m tools.shapes FOLDER
"""

import math
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

COLOURS = {
    "red": (226, 75, 66),
    "orange": (240, 150, 50),
    "yellow": (245, 205, 75),
    "green": (70, 175, 105),
    "blue": (65, 125, 220),
    "purple": (145, 95, 200),
}
GROUNDS = {"a cream": (248, 240, 222), "a pale blue": (215, 230, 242), "a dark grey": (52, 56, 66)}
SHAPES = ("circle", "square", "triangle", "star")
MOTIONS = {"to the right": (1, 0), "to the left": (-1, 0), "upwards": (0, -1), "downwards": (0, 1)}
SUPERSAMPLE = 4


@dataclass(frozen=True)
class Scene:
    """One shape, its colours and its way. Directions are in picture widths over the whole clip."""

    shape: str
    colour: str
    ground: str
    motion: str
    radius: float  # of the picture's size
    turns: float  # over the whole clip

    @property
    def caption(self) -> str:
        """What is to be seen, in one line."""
        return f"[trigger] a {self.colour} {self.shape} moving {self.motion} on {self.ground} background"


def draw_dataset(
    folder: Path, *, clips: int = 6, images: int = 2, size: int = 96, frames: int = 17, fps: int = 16, seed: int = 0
) -> list[Path]:
    """Write `clips` mp4 and `images` png files of size x size pixels, each with a .txt caption; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = _scenes(seed)
    paths = []
    for index in range(clips):
        path = folder / f"clip_{index:02d}.mp4"
        scene = next(scenes)
        write_clip(path, [draw_frame(scene, i / max(1, frames - 1), size) for i in range(frames)], fps)
        paths.append(_caption(path, scene))
    for index in range(images):
        path = folder / f"image_{index:02d}.png"
        scene = next(scenes)
        Image.fromarray(draw_frame(scene, 0.5, size)).save(path)
        paths.append(_caption(path, scene))
    return paths


def _caption(path: Path, scene: Scene) -> Path:
    path.with_suffix(".txt").write_text(scene.caption + "\n", encoding="utf-8")
    return path


def _scenes(seed: int) -> Iterator[Scene]:
    """Scenes without end; every colour, shape and motion comes up before one comes up again."""
    chance = random.Random(seed)

    def shuffled(names: tuple[str, ...]) -> Iterator[str]:
        while True:
            yield from chance.sample(names, len(names))

    colours, grounds = shuffled(tuple(COLOURS)), shuffled(tuple(GROUNDS))
    shapes, motions = shuffled(SHAPES), shuffled(tuple(MOTIONS))
    while True:
        radius, turns = chance.uniform(0.17, 0.24), chance.choice((-0.25, 0.0, 0.25))
        yield Scene(next(shapes), next(colours), next(grounds), next(motions), radius, turns)


def draw_frame(scene: Scene, time: float, size: int) -> np.ndarray:
    """The scene at `time` in [0, 1]: [size, size, 3] uint8, antialiased."""
    big = size * SUPERSAMPLE
    right, down = MOTIONS[scene.motion]
    eased = 0.5 - 0.5 * math.cos(math.pi * time)  # starts and stops gently
    way = 0.5 * (eased - 0.5)
    x, y = (0.5 + way * right) * big, (0.5 + way * down) * big
    canvas = Image.new("RGB", (big, big), GROUNDS[scene.ground])
    draw = ImageDraw.Draw(canvas)
    radius = scene.radius * big
    colour = COLOURS[scene.colour]
    if scene.shape == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    else:
        draw.polygon(_corners(scene, (x, y), radius, scene.turns * eased), fill=colour)
    return np.asarray(canvas.resize((size, size), Image.Resampling.LANCZOS))


def _corners(scene: Scene, centre: tuple[float, float], radius: float, turn: float) -> list[tuple[float, float]]:
    radii = {"square": [1.15] * 4, "triangle": [1.2] * 3, "star": [1.25, 0.55] * 5}[scene.shape]
    start = math.pi / 4 if scene.shape == "square" else -math.pi / 2
    angles = [start + 2 * math.pi * (turn + i / len(radii)) for i in range(len(radii))]
    return [
        (centre[0] + radius * length * math.cos(angle), centre[1] + radius * length * math.sin(angle))
        for length, angle in zip(radii, angles, strict=True)
    ]


def write_clip(path: Path, frames: list[np.ndarray], fps: int) -> None:
    """Encode [H, W, 3] uint8 frames with even H and W as h264 in an mp4 file.

    The preset makes the bytes, and with them every cache key, the same each time: with its look-ahead x264 (core 165)
    gives other bytes from call to call, also on one thread.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options={"crf": "12", "preset": "ultrafast"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


if __name__ == "__main__":
    for drawn in draw_dataset(Path(sys.argv[1])):
        print(drawn)
