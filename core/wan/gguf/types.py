"""The quantized types of GGUF, in pure torch.

Format: github.com/ggml-org/ggml, src/ggml-common.h. A quantized tensor is a row of blocks; a block holds 32 or 256
numbers as small integers with their scales: number = integer * scale - minimum, in fp32. Legend of shapes: N blocks,
G groups that share a scale, W width of a group.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Levels = tuple[Tensor, Tensor, Tensor | None]  # integers [N, G, W], scales and minimums [N, G or 1, 1] in fp32

# Numbers dequantized at a time: what fits a CPU's cache (1.5 times as fast as a whole layer), and on a GPU enough for
# few launches; there the fp32 intermediate of a chunk takes 64 MiB.
CPU_CHUNK, GPU_CHUNK = 2**18, 2**24


@dataclass(frozen=True)
class Quant:
    """A quantized type: `block_size` numbers in `num_bytes` bytes; `unpack` takes blocks [N, num_bytes] uint8."""

    type_id: int
    block_size: int
    num_bytes: int
    unpack: Callable[[Tensor], Levels]


def dequantize(blocks: Tensor, quant: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The numbers in `shape` and `dtype`, on the blocks' device; `blocks` uint8, any shape of whole blocks in order.

    They are computed in fp32, exactly as ggml computes them, and rounded once.
    """
    kind = QUANTS[quant]
    blocks = blocks.reshape(-1, kind.num_bytes)
    result = torch.empty(blocks.shape[0], kind.block_size, dtype=dtype, device=blocks.device)
    step = (CPU_CHUNK if blocks.device.type == "cpu" else GPU_CHUNK) // kind.block_size
    for part, target in zip(blocks.split(step), result.split(step), strict=True):
        levels, scale, minimum = kind.unpack(part)
        values = levels * scale
        if minimum is not None:
            values -= minimum
        target.copy_(values.view(target.shape))
    return result.view(shape)


def _half(blocks: Tensor, start: int) -> Tensor:
    """The fp16 number at byte `start` of each block, [N, 1, 1] fp32."""
    return blocks[:, start : start + 2].view(torch.float16).float().unsqueeze(2)


def _fields(packed: Tensor, bits: int) -> Tensor:
    """Splits the bytes [N, A, B] into fields of `bits`, low bits first: [N, A, 8 / bits, B], flattened to [N, ...]."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device).view(-1, 1)
    return ((packed.unsqueeze(2) >> shifts) & (2**bits - 1)).flatten(1)


def _signed(levels: Tensor, zero: int) -> Tensor:
    """Levels of uint8 minus the level that means zero, as int8."""
    return levels.view(torch.int8) - zero


def _unpack_q8_0(blocks: Tensor) -> Levels:
    return blocks[:, None, 2:].view(torch.int8), _half(blocks, 0), None


def _unpack_q4_0(blocks: Tensor) -> Levels:
    return _signed(_fields(blocks[:, None, 2:], 4), 8).unsqueeze(1), _half(blocks, 0), None


def _unpack_q4_1(blocks: Tensor) -> Levels:
    return _fields(blocks[:, None, 4:], 4).unsqueeze(1), _half(blocks, 0), -_half(blocks, 2)


def _five_bits(high: Tensor, low: Tensor) -> Tensor:
    """Fifth bits [N, 4], one per number in order, and the lower four [N, 16] -> levels [N, 1, 32] of uint8."""
    return (_fields(low.unsqueeze(1), 4) | _fields(high.unsqueeze(2), 1) << 4).unsqueeze(1)


def _unpack_q5_0(blocks: Tensor) -> Levels:
    return _signed(_five_bits(blocks[:, 2:6], blocks[:, 6:]), 16), _half(blocks, 0), None


def _unpack_q5_1(blocks: Tensor) -> Levels:
    return _five_bits(blocks[:, 4:8], blocks[:, 8:]), _half(blocks, 0), -_half(blocks, 2)


def _unpack_q2_k(blocks: Tensor) -> Levels:
    """Bytes: 16 of (scale, minimum) in 4 bits each, 64 of levels, fp16 factor of the scales, of the minimums."""
    scales = blocks[:, :16].unsqueeze(2)
    levels = _fields(blocks[:, 16:80].view(-1, 2, 32), 2).view(-1, 16, 16)
    return levels, _half(blocks, 80) * (scales & 15), _half(blocks, 82) * (scales >> 4)


def _unpack_q3_k(blocks: Tensor) -> Levels:
    """Bytes: 32 of high bits, 64 of low bits, 12 of 16 scales in 6 bits, fp16 factor of the scales."""
    low = _fields(blocks[:, 32:96].view(-1, 2, 32), 2)
    levels = _signed(low | _fields(blocks[:, None, :32], 1) << 2, 4).view(-1, 16, 16)
    scales = _fields(blocks[:, None, 96:104], 4) | _fields(blocks[:, None, 104:108], 2) << 4
    return levels, _half(blocks, 108) * _signed(scales, 32).unsqueeze(2), None


def _group_scales(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and minimums [N, 8, 1] of Q4_K and Q5_K: fp16 factors of both, then 8 of each in 6 bits, in 12 bytes."""
    first, second, third = blocks[:, 4:16].view(-1, 3, 4).unbind(1)
    scales = torch.cat([first & 63, third & 15 | first >> 6 << 4], dim=1).unsqueeze(2)
    minimums = torch.cat([second & 63, third >> 4 | second >> 6 << 4], dim=1).unsqueeze(2)
    return _half(blocks, 0) * scales, _half(blocks, 2) * minimums


def _unpack_q4_k(blocks: Tensor) -> Levels:
    """Bytes: 16 of scales and minimums, 128 of levels."""
    return _fields(blocks[:, 16:].view(-1, 4, 32), 4).view(-1, 8, 32), *_group_scales(blocks)


def _unpack_q5_k(blocks: Tensor) -> Levels:
    """Bytes: 16 of scales and minimums, 32 of high bits, 128 of low bits."""
    low, high = _fields(blocks[:, 48:].view(-1, 4, 32), 4), _fields(blocks[:, None, 16:48], 1)
    return (low | high << 4).view(-1, 8, 32), *_group_scales(blocks)


def _unpack_q6_k(blocks: Tensor) -> Levels:
    """Bytes: 128 of low bits, 64 of high bits, 16 scales of int8, fp16 factor of the scales."""
    low, high = _fields(blocks[:, :128].view(-1, 2, 64), 4), _fields(blocks[:, 128:192].view(-1, 2, 32), 2)
    scales = _half(blocks, 208) * blocks[:, 192:208].view(torch.int8).unsqueeze(2)
    return _signed(low | high << 4, 32).view(-1, 16, 16), scales, None


QUANTS = {
    "Q8_0": Quant(8, 32, 34, _unpack_q8_0),
    "Q6_K": Quant(14, 256, 210, _unpack_q6_k),
    "Q5_K": Quant(13, 256, 176, _unpack_q5_k),
    "Q5_1": Quant(7, 32, 24, _unpack_q5_1),
    "Q5_0": Quant(6, 32, 22, _unpack_q5_0),
    "Q4_K": Quant(12, 256, 144, _unpack_q4_k),
    "Q4_1": Quant(3, 32, 20, _unpack_q4_1),
    "Q4_0": Quant(2, 32, 18, _unpack_q4_0),
    "Q3_K": Quant(11, 256, 110, _unpack_q3_k),
    "Q2_K": Quant(10, 256, 84, _unpack_q2_k),
}
QUANT_NAMES = {quant.type_id: name for name, quant in QUANTS.items()}
OTHER_NAMES = {
    16: " (IQ2_XXS)", 17: " (IQ2_XS)", 18: " (IQ3_XXS)", 19: " (IQ1_S)", 20: " (IQ4_NL)", 21: " (IQ3_S)",
    22: " (IQ2_S)", 23: " (IQ4_XS)", 29: " (IQ1_M)", 34: " (TQ1_0)", 35: " (TQ2_0)", 39: " (MXFP4)",
}  # fmt: skip
