"""The sigmoid's distribution, moved by a shift that follows the number of tokens, up to a cap.

SimpleTuner's flow_schedule_auto_shift (training/custom_schedule.py, bc8e6ab), which counts all tokens of a video and has no
cap: ours is the option shift_cap.
"""

from collections.abc import Sequence
from dataclasses import replace

from ...facts import num_tokens
from ...settings.timesteps import TimestepOptions
from ..shifts import shift_of_tokens
from . import TimestepSampling, shift

_SAFE = 100_000  # tokens; the exponential overflows beyond 4 million


def _at_size(options: TimestepOptions, shape: Sequence[int]) -> TimestepOptions:
    found = shift_of_tokens(min(num_tokens(shape), _SAFE))
    return replace(options, shift=min(found, options.shift_cap))


METHOD = TimestepSampling(
    help="as shift, with a shift that grows with size and length of each sample, up to timestep_shift_cap",
    quantile=shift.METHOD.quantile,
    cumulative=shift.METHOD.cumulative,
    uses=("sigmoid_scale", "shift_cap"),
    at_size=_at_size,
)
