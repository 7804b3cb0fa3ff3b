"""A sample's frames with what its mask leaves out shown as such. Shapes: F frames, H W bucket, f h w latents."""

import numpy as np

from ..data.decode import read_mask
from ..data.types import Sample
from ..data.watch import Interrupt
from ..facts import FRAMES_PER_LATENT, PIXELS_PER_LATENT, LatentFormat

_STRIPE = 8  # pixels
_GREYS = (90, 150)
_LEFT = 0.3  # of the picture, where nothing counts


def shaded(
    frames: np.ndarray, sample: Sample, latent_format: LatentFormat, interrupt: Interrupt | None = None
) -> np.ndarray:
    """Frames, uint8 RGB [F, H, W, 3], under grey stripes the more, the less the error there counts, latent by latent.

    Without a mask they are as they were. Raises DatasetError as `read_mask` does.
    """
    if sample.mask is None:
        return frames
    counts = read_mask(sample, latent_format, interrupt).numpy()  # [f, h, w]
    of_frame = [0, *(1 + i // FRAMES_PER_LATENT for i in range(len(frames) - 1))]
    pixels = PIXELS_PER_LATENT[latent_format]
    height, width = frames.shape[1:3]
    weight = counts.repeat(pixels, 1).repeat(pixels, 2)
    rest = ((0, 0), (0, height - weight.shape[1]), (0, width - weight.shape[2]))
    weight = np.pad(weight, rest, mode="edge")[..., None]  # [f, H, W, 1]
    rows, columns = np.indices((height, width))
    stripes = np.where((rows + columns) // _STRIPE % 2, *_GREYS)[..., None]  # [H, W, 1]
    hidden = _LEFT * frames + (1 - _LEFT) * stripes
    shown = weight[of_frame] * frames + (1 - weight[of_frame]) * hidden
    return shown.round().astype(np.uint8)
