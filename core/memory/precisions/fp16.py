"""The base as it is in fp16: plain linear layers, and all arithmetic in the same dtype."""

import torch

from ..precision import PrecisionKind, plain_bytes

METHOD = PrecisionKind(
    help="16 bits with more digits and less range than bf16, for cards without bf16",
    dtype=torch.float16,
    weight_bytes=plain_bytes,
    lower="fp8",
)
