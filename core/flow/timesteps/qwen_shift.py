"""The sigmoid's distribution, moved by a shift that follows the picture's size as Qwen's sampler has it.

musubi-tuner's qwen_shift (trainer_base.py, 30c658c): frames are not counted.
"""

from collections.abc import Sequence
from dataclasses import replace

from ...settings.timesteps import TimestepOptions
from ..shifts import QWEN, shift_of_picture
from . import TimestepSampling, shift


def at_size(options: TimestepOptions, shape: Sequence[int]) -> TimestepOptions:
    """`options` with the shift of latents [..., F, H, W]."""
    return replace(options, shift=min(shift_of_picture(shape, QWEN), 1e4))


METHOD = TimestepSampling(
    help="as shift, with a shift that grows with the picture's size, more slowly than flux_shift",
    quantile=shift.METHOD.quantile,
    cumulative=shift.METHOD.cumulative,
    uses=("sigmoid_scale",),
    at_size=at_size,
)
