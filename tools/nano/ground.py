"""Reads off the tiles of the ground how the camera moves: plain image processing, as the judge's.

F frames, H W pixels.
"""

from dataclasses import replace

import numpy as np
from scipy import ndimage

from . import world
from .judge import (
    MAX_STRAY,
    MAX_STRAY_STILL,
    MIN_CHROMA,
    NOTHING,
    SMOOTHING,
    Array,
    Verdict,
    border_strength,
    chroma_of,
    judge,
    root_mean_square,
    stray_from,
)

TILES = 2  # periods of the tiles across the picture
MIN_TILES = 3.0  # grey levels of the tiles' basic wave; less is no tiled ground
# Ways of the ground under a camera that pans or tilts, x + iy, y down.
CAMERA_WAYS = {"pan left": world.TRAVEL, "pan right": -world.TRAVEL, "tilt up": 1j * world.TRAVEL}


def see(frames: Array) -> Verdict:
    """What the judge says of frames [F, H, W, 3] uint8, and how the camera moves."""
    return replace(judge(frames), camera=camera_of(frames))


def camera_of(frames: Array) -> str:
    """How the tiles of the ground move across frames [F, H, W, 3]; "fixed" where they stand, or where there are none.

    The tiles' basic wave goes along both diagonals. Its phase along each, frame after frame, says how far the ground has
    come in both directions; where its size falls, as it does when a camera zooms, that is not known.
    """
    strength = np.abs(ndimage.gaussian_filter(chroma_of(frames), (0, SMOOTHING, SMOOTHING), truncate=3))
    ground = strength < min(MIN_CHROMA, border_strength(strength))
    grey = frames.astype(np.float32).mean(-1)
    area = np.maximum(1, ground.sum((1, 2), keepdims=True))
    level = (grey * ground).sum((1, 2), keepdims=True) / area
    side = (np.arange(frames.shape[1]) + 0.5) / frames.shape[1]
    waves = [np.exp(-2j * np.pi * TILES * (side[None, :] + sign * side[:, None])) for sign in (1, -1)]
    sums = np.stack([((grey - level) * ground * wave).sum((1, 2)) / area[:, 0, 0] for wave in waves])  # [2, F]
    if np.abs(sums[:, 0]).max() < MIN_TILES:
        return "fixed"
    if np.abs(sums).min() < MIN_TILES:
        return NOTHING
    falling, rising = np.unwrap(np.angle(sums), axis=1) / (-2 * np.pi * TILES)
    track = (falling + rising) / 2 + 1j * (falling - rising) / 2
    if root_mean_square(track - track.mean()) < MAX_STRAY_STILL:
        return "fixed"
    times = np.linspace(0, 1, len(track))
    fits = [(stray_from(way * times, track[:, None], apart=False), camera) for camera, way in CAMERA_WAYS.items()]
    stray, camera = min(fits)
    return camera if stray < MAX_STRAY else NOTHING
