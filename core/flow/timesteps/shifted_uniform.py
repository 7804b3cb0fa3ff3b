"""Even over the noise levels, then moved by the time shift.

AI-Toolkit's timestep type "shift" (toolkit/samplers/custom_flowmatch_sampler.py, 27a03a9), SimpleTuner's
flow_use_uniform_schedule and diffusion-pipe's uniform, each with a shift.
"""

from torch import Tensor

from ...settings.timesteps import TimestepOptions
from ..shifts import shift_sigma
from . import TimestepSampling


def _quantile(u: Tensor, options: TimestepOptions) -> Tensor:
    return shift_sigma(u, options.shift)


def _cumulative(sigma: float, options: TimestepOptions) -> float:
    return sigma / (options.shift - (options.shift - 1) * sigma)


METHOD = TimestepSampling(
    help="all noise levels alike, then moved toward high noise by timestep_shift: AI-Toolkit's Shift",
    quantile=_quantile,
    cumulative=_cumulative,
    uses=("shift",),
)
