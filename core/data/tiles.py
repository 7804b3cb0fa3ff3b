"""A picture too large for memory, encoded in overlapping tiles. Shapes: F frames, H W pixels, C f h w latents.

ComfyUI and diffusers have tiled encoders too, and each gives other numbers. This one stands on `encode` alone, so that both
fill the same cache.
"""

from collections.abc import Callable

import torch
from torch import Tensor

TILE = 256  # pixels on a side; the VAE works through the frames in chunks, so that they need no tiles
OVERLAP = 64  # at least
_STEP = 16  # tiles begin at multiples: the coarser of the two VAEs has a latent for every 16 pixels


def encode_in_tiles(encode: Callable[[Tensor], Tensor], frames: Tensor, scale: int) -> Tensor:
    """[F, H, W, 3] to [C, f, H/scale, W/scale] float32, each tile by `encode`, faded into its neighbours."""
    height, width = frames.shape[1:3]
    total = weights = torch.zeros(())
    for top in tile_starts(height):
        for left in tile_starts(width):
            tile = encode(frames[:, top : top + TILE, left : left + TILE]).float()  # [C, f, h, w]
            if total.ndim == 0:
                total = torch.zeros(*tile.shape[:2], height // scale, width // scale)
                weights = torch.zeros(total.shape[2:])
            rows = slice(top // scale, top // scale + tile.shape[2])
            columns = slice(left // scale, left // scale + tile.shape[3])
            weight = _ramp(tile.shape[2], scale)[:, None] * _ramp(tile.shape[3], scale)  # [h, w]
            total[:, :, rows, columns] += tile * weight
            weights[rows, columns] += weight
    return total / weights


def tile_starts(length: int) -> list[int]:
    """Where the tiles of a side of `length` pixels begin: as few as cover it, evenly spread, all of full size."""
    if length <= TILE:
        return [0]
    last = (length - TILE) // _STEP  # in steps
    num_gaps = -(-last * _STEP // (TILE - OVERLAP))
    return [index * last // num_gaps * _STEP for index in range(num_gaps + 1)]


def _ramp(length: int, scale: int) -> Tensor:
    """Weight of each latent of a tile's side: 1 within, less toward both ends, where other tiles know more."""
    distance = torch.arange(length) + 0.5
    return (torch.minimum(distance, length - distance) / (OVERLAP // scale)).clamp(max=1.0)
