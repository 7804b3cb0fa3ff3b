"""Many scenes drawn by many processes."""

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing import get_all_start_methods, get_context

import numpy as np

from . import world
from .world import Scene


def draw_all(scenes: Sequence[Scene], num_frames: int = world.NUM_FRAMES) -> np.ndarray:
    """Frames [N, F, H, W, 3] uint8; scenes in order."""
    frames = np.empty((len(scenes), num_frames, world.SIZE, world.SIZE, 3), dtype=np.uint8)
    draw = _Draw(num_frames)
    if len(scenes) < 256 or "fork" not in get_all_start_methods():
        for row, scene in zip(frames, scenes, strict=True):
            row[:] = draw(scene)
        return frames
    with get_context("fork").Pool(os.cpu_count()) as pool:  # the children draw with numpy and nothing else
        for row, clip in zip(frames, pool.imap(draw, scenes, chunksize=64), strict=True):
            row[:] = clip
    return frames


class _Draw:
    """`world.draw` with its number of frames, so that it can be sent to a process."""

    def __init__(self, num_frames: int) -> None:
        self.num_frames = num_frames

    def __call__(self, scene: Scene) -> np.ndarray:
        return world.draw(scene, self.num_frames)


def everything(rng: random.Random, scene: Scene) -> Scene:
    """The scene with shape, texture and motion drawn anew from all there are, the new ones too."""
    choose: Callable[[Sequence[str]], str] = rng.choice
    return replace(
        scene,
        shape=choose(world.SHAPES + world.NEW_SHAPES),
        texture=choose(world.TEXTURES + world.NEW_TEXTURES),
        motion=choose(world.MOTIONS + world.NEW_MOTIONS) if scene.camera == "fixed" else "still",
    )
