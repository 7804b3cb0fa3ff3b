"""The sigmoid's distribution, moved toward noise by the official time shift."""

from torch import Tensor

from ...settings.timesteps import TimestepOptions
from ..shifts import shift_sigma
from . import TimestepSampling, sigmoid


def _quantile(u: Tensor, options: TimestepOptions) -> Tensor:
    return shift_sigma(sigmoid.quantile(u, options), options.shift)


def _cumulative(sigma: float, options: TimestepOptions) -> float:
    if sigma in (0.0, 1.0):
        return sigma
    return sigmoid.cumulative(sigma / (options.shift - (options.shift - 1) * sigma), options)


METHOD = TimestepSampling(
    help="as sigmoid, moved toward high noise by timestep_shift",
    quantile=_quantile,
    cumulative=_cumulative,
    uses=("shift", "sigmoid_scale"),
)
