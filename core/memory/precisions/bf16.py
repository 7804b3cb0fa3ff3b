"""The base as it is in bf16: plain linear layers, and all arithmetic in the same dtype."""

import torch

from ..precision import PrecisionKind, plain_bytes

METHOD = PrecisionKind(
    help="16 bits with the range of 32, what GPUs compute fastest in; two bytes a number",
    dtype=torch.bfloat16,
    weight_bytes=plain_bytes,
    lower="fp8",
)
