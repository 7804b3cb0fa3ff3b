"""All noise levels alike."""

from torch import Tensor

from ...settings.timesteps import TimestepOptions
from . import TimestepSampling


def _quantile(u: Tensor, _options: TimestepOptions) -> Tensor:
    return u


def _cumulative(sigma: float, _options: TimestepOptions) -> float:
    return sigma


METHOD = TimestepSampling(
    help="every noise level is trained as often as any other: AI-Toolkit's Linear",
    quantile=_quantile,
    cumulative=_cumulative,
)
