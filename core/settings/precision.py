"""Forms that the frozen model can have while it is trained on."""

from typing import Literal, get_args

Precision = Literal["auto", "fp32", "bf16", "fp16", "fp8", "fp8_compute", "int8", "nf4", "int4_svd", "ara"]

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
