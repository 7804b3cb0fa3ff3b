"""The sigmoid's distribution, moved by a shift that follows the picture's size as Flux's sampler has it.

musubi-tuner's flux_shift (trainer_base.py, 30c658c) and diffusion-pipe's (utils/common.py, 8f83dbf): frames are not counted.
"""

from collections.abc import Sequence
from dataclasses import replace

from ...settings.timesteps import TimestepOptions
from ..shifts import FLUX, shift_of_picture
from . import TimestepSampling, shift


def at_size(options: TimestepOptions, shape: Sequence[int]) -> TimestepOptions:
    """`options` with the shift of latents [..., F, H, W]."""
    return replace(options, shift=min(shift_of_picture(shape, FLUX), 1e4))


METHOD = TimestepSampling(
    help="as shift, with a shift that grows with the picture's size (2.1 at 832x480, 2.9 at 1280x720)",
    quantile=shift.METHOD.quantile,
    cumulative=shift.METHOD.cumulative,
    uses=("sigmoid_scale",),
    at_size=at_size,
)
