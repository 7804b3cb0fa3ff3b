"""What can be told of frames by numbers: cuts, black bars, stillness, blur, and a hash of how they look.

Shapes: F frames, H W their size; all frames are uint8 RGB [F, H, W, 3].
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

_GRID = 48  # side of the small grey-scale and colour pictures that frames are compared by
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # BT.601

# Cuts, as PySceneDetect's AdaptiveDetector: a frame differs from the last far more than its neighbours do.
_CUT_LEAST, _CUT_RATIO, _CUT_NEIGHBOURS = 15.0, 3.0, 2
# Black bars: lines that stay this dark in all frames, beside a picture that does not.
_BLACK, _NOT_BLACK, _BAR_LEAST, _EDGE_LEAST = 24.0, 40.0, 0.02, 0.6
_BLUR_WINDOW = 11  # pixels of the second blur: Crete et al., "The blur effect", 2007 (doi.org/10.1117/12.702790)
_BLUR_FRAMES = 3
_HASH_SIDE, _HASH_GRID = 8, 32
_COLOUR_GRID = 4


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured of one sample."""

    hashes: tuple[str, ...]  # perceptual hashes of the first, the middle and the last frame: 64 bits each, in hex
    colours: tuple[int, ...]  # of the middle frame: a 4x4 grid of means, RGB
    cuts: tuple[int, ...]  # frames that begin another scene
    bars: tuple[int, int, int, int]  # black at the left, top, right and bottom, in pixels of the bucket
    change: float | None  # the largest change of a part of the picture over the clip, in levels; None for a picture
    blur: float  # of the sharpest frame: 0 sharp to 1 blurred


def measure(frames: np.ndarray) -> Measured:
    """All of it, of a sample's frames."""
    grids = np.stack([_shrunk(frame, _GRID) for frame in frames])  # [F, 48, 48, 3]
    middle = len(frames) // 2
    return Measured(
        hashes=tuple(perceptual_hash(frames[index]) for index in (0, middle, len(frames) - 1)),
        colours=tuple(int(value) for value in _shrunk(frames[middle], _COLOUR_GRID).round().flatten()),
        cuts=find_cuts(grids),
        bars=black_bars(frames),
        change=largest_change(grids) if len(frames) > 1 else None,
        blur=min(blur_effect(frames[index]) for index in _spread(len(frames), _BLUR_FRAMES)),
    )


def perceptual_hash(frame: np.ndarray) -> str:
    """pHash of one frame [H, W, 3]: the signs of the 8x8 lowest frequencies about their median, 64 bits in hex."""
    grey = _shrunk(frame, _HASH_GRID) @ _LUMA  # [32, 32]
    low = (_cosines() @ grey @ _cosines().T).flatten()  # [64]
    bits = low > np.median(low[1:])
    return f"{int(''.join('1' if bit else '0' for bit in bits), 2):016x}"


def find_cuts(grids: np.ndarray) -> tuple[int, ...]:
    """Frames of small pictures [F, h, w, 3] at which another scene begins. A flash of one frame is none."""
    if len(grids) < 2:
        return ()
    steps = np.abs(np.diff(grids, axis=0)).mean((1, 2, 3))  # [F - 1]
    cuts = []
    for index, step in enumerate(steps):
        near = [
            steps[i]
            for i in range(max(0, index - _CUT_NEIGHBOURS), min(len(steps), index + _CUT_NEIGHBOURS + 1))
            if i != index
        ]
        usual = float(np.mean(near)) if near else 0.0
        after = min(index + 2, len(grids) - 1)
        stays = np.abs(grids[after] - grids[index]).mean() >= step / 2
        if step >= _CUT_LEAST and step >= _CUT_RATIO * usual and stays:
            cuts.append(index + 1)
    return tuple(cuts)


def largest_change(grids: np.ndarray) -> float:
    """How far any part of the small pictures [F, h, w, 3] goes from the first one, in levels: noise averages out."""
    return float(np.abs(grids - grids[:1]).mean(3).max())


def black_bars(frames: np.ndarray) -> tuple[int, int, int, int]:
    """Pixels that are black in all frames at the left, top, right and bottom. Only pairs of bars count.

    A bar is at least 2 % of its side; a picture that is dark all over has none.
    """
    brightest = np.zeros(frames.shape[1:3], np.float32)  # [H, W]
    for index in _spread(len(frames), 9):
        brightest = np.maximum(brightest, frames[index].astype(np.float32) @ _LUMA)
    (top, bottom), (left, right) = _bars(brightest), _bars(brightest.T)
    return left, top, right, bottom


def blur_effect(frame: np.ndarray) -> float:
    """How little a frame [H, W, 3] loses by being blurred: 0 sharp to 1 blurred (Crete et al., 2007)."""
    grey = frame.astype(np.float32) @ _LUMA
    values = []
    for axis in (0, 1):
        if grey.shape[axis] <= 2:
            continue
        sharp = np.abs(np.diff(grey, axis=axis))
        soft = np.abs(np.diff(_smooth(grey, axis), axis=axis))
        total = float(sharp.sum())
        lost = float(np.maximum(0, sharp - soft).sum())
        values.append((total - lost) / total if total > sharp.size * 0.05 else 0.0)  # nothing is there to be blurred
    return max(values, default=0.0)


def hash_distance(one: str, other: str) -> int:
    """In how many of their 64 bits two hashes differ."""
    return (int(one, 16) ^ int(other, 16)).bit_count()


def _bars(brightest: np.ndarray) -> tuple[int, int]:
    """Numbers of dark lines at the start and the end of [lines, pixels]; (0, 0) unless both are bars beside a picture."""
    lines = np.percentile(brightest, 98, axis=1)
    bright = np.flatnonzero(lines > _BLACK)
    if not len(bright) or float(lines.max()) <= _NOT_BLACK:
        return 0, 0
    first, last = int(bright[0]), int(bright[-1])
    start, end = first, len(lines) - 1 - last
    # A picture begins along the whole edge of its bar; a thing before a black ground does not.
    inside = min(_edge(brightest, first, 1), _edge(brightest, last, -1))
    is_pair = min(start, end) >= max(1.0, _BAR_LEAST * len(lines)) and inside > _EDGE_LEAST
    return (start, end) if is_pair else (0, 0)


def _edge(brightest: np.ndarray, line: int, step: int) -> float:
    """Which share of the pixels is not black a few lines inside of a bar's edge."""
    inner = min(max(line + 3 * step, 0), len(brightest) - 1)
    return float((brightest[inner] > _BLACK).mean())


def _smooth(grey: np.ndarray, axis: int) -> np.ndarray:
    """A mean over 11 pixels along an axis; at the edges the last pixel goes on."""
    size = min(_BLUR_WINDOW, grey.shape[axis])
    before, after = (size - 1) // 2, size // 2
    padding: Any = [(before + 1, after) if i == axis else (0, 0) for i in range(2)]
    sums = np.cumsum(np.pad(grey, padding, mode="edge"), axis=axis, dtype=np.float64)
    length = grey.shape[axis]
    ends = np.take(sums, range(size, size + length), axis=axis)
    return (ends - np.take(sums, range(length), axis=axis)) / size


def _shrunk(frame: np.ndarray, side: int) -> np.ndarray:
    """[H, W, 3] uint8 to [side, side, 3] float32 by the mean of each part."""
    image = Image.fromarray(frame).resize((side, side), Image.Resampling.BOX)
    return np.asarray(image).astype(np.float32)


def _spread(count: int, most: int) -> list[int]:
    """At most `most` indices below `count`, evenly spread, with both ends."""
    return sorted({round(i * (count - 1) / max(1, most - 1)) for i in range(most)})


def _cosines() -> np.ndarray:
    """The first 8 rows of the discrete cosine transform of 32 values, [8, 32]."""
    k, n = np.arange(_HASH_SIDE)[:, None], np.arange(_HASH_GRID)[None, :]
    return np.cos(math.pi * k * (2 * n + 1) / (2 * _HASH_GRID)).astype(np.float32)
