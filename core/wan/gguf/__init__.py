"""GGUF files: the container, the quantized types, and a frozen linear layer that stays quantized."""

from .container import is_gguf, open_header, read_gguf_header, read_stored
from .linear import QuantizedLinear, keep_quantized
from .types import QUANTS, dequantize

__all__ = [
    "QUANTS",
    "QuantizedLinear",
    "dequantize",
    "is_gguf",
    "keep_quantized",
    "open_header",
    "read_gguf_header",
    "read_stored",
]
