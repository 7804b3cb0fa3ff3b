"""The host's curve widget."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def curve_heights(drawn: Any, places: Sequence[float]) -> list[float]:
    """The heights at `places` in [0, 1] of a curve as the widget saves it, or as the host's Curve Editor gives it."""
    from comfy_api.input import CurveInput  # older hosts have none, and none of its nodes

    return CurveInput.from_raw(drawn).interp_array(np.asarray(places, dtype=np.float64)).tolist()
