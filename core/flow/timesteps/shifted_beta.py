"""The beta distribution, moved by the time shift: SimpleTuner's flow_use_beta_schedule with flow_schedule_shift."""

from torch import Tensor

from ...settings.timesteps import TimestepOptions
from ..shifts import shift_sigma
from . import TimestepSampling, beta


def _quantile(u: Tensor, options: TimestepOptions) -> Tensor:
    return shift_sigma(beta.quantile(u, options), options.shift)


def _cumulative(sigma: float, options: TimestepOptions) -> float:
    return beta.cumulative(sigma / (options.shift - (options.shift - 1) * sigma), options)


METHOD = TimestepSampling(
    help="as beta, moved toward high noise by timestep_shift",
    quantile=_quantile,
    cumulative=_cumulative,
    uses=("beta_a", "beta_b", "shift"),
)
