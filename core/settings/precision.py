"""Forms that the frozen model can have while it is trained on."""

from ..errors import ConfigError
from ..methods import method_names
from ..paths import shown

Precision = str  # "auto", or the name of a file in core/memory/precisions

_KNOWN = (
    "auto",
    "fp32",
    "bf16",
    "fp16",
    "fp8",
    "fp8_compute",
    "int8",
    "nf4",
    "int4_svd",
    "ara",
)  # in the order of lists
METHODS = "memory.precisions"

PRECISIONS: tuple[Precision, ...] = (*_KNOWN, *(name for name in method_names(METHODS) if name not in _KNOWN))


def check_precision(precision: Precision) -> None:
    """ConfigError, with the names that there are, for one that is not known."""
    if precision not in PRECISIONS:
        raise ConfigError(f"precision is '{shown(precision)}': choose one of {', '.join(PRECISIONS)}.")
