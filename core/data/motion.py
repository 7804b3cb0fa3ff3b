"""Where a clip moves most. Shapes: F frames, H W height and width of small grey pictures of it."""

import numpy as np

SIDE = 128  # pixels of the small pictures, in height and width


def place_of_motion(frames: np.ndarray, kept: tuple[float, float]) -> tuple[float, float]:
    """The place, as of `cover_box`, of the part with the most change from frame to frame.

    `frames` [F, H, W] uint8; `kept` are the shares of width and height that the part has. Of equal ones the one nearest
    to the middle is taken, and so it is where nothing moves.
    """
    change = np.abs(np.diff(frames.astype(np.float32), axis=0)).sum(0)  # [H, W]
    return _place(change.sum(0), kept[0]), _place(change.sum(1), kept[1])


def _place(change: np.ndarray, kept: float) -> float:
    """Along one side: `change` of each column or row."""
    length = round(len(change) * kept)
    free = len(change) - length
    if free <= 0 or not change.any():
        return 0.5
    total = np.concatenate([[0], np.cumsum(change, dtype=np.float64)])
    sums = total[length:] - total[: free + 1]
    best = np.flatnonzero(sums >= sums.max() * (1 - 1e-9))
    return float(best[np.abs(best - free / 2).argmin()]) / free
