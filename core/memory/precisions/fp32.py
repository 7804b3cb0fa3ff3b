"""The base as it is in fp32: plain linear layers, and all arithmetic in the same dtype."""

import torch

from ..precision import PrecisionKind, plain_bytes

METHOD = PrecisionKind(
    help="32 bits, exact; four bytes a number", dtype=torch.float32, weight_bytes=plain_bytes, lower="bf16"
)
