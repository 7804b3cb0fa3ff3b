"""GGUF files: the container, the quantized types in pure torch, and a frozen linear layer that stays quantized.

Formats: github.com/ggml-org/ggml, docs/gguf.md (container, versions 2 and 3) and src/ggml-common.h (blocks). A quantized
tensor is a row of blocks; a block holds 32 or 256 numbers as small integers with their scales:
number = integer * scale - minimum, in fp32. Legend of shapes: N blocks, G groups that share a scale, W width of a group.
"""

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import ModelFileError
from .header import DTYPES, MAX_HEADER_BYTES, FileHeader, TensorEntry, read_header, read_tensor

Levels = tuple[Tensor, Tensor, Tensor | None]  # integers [N, G, W], scales and minimums [N, G or 1, 1] in fp32

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
ARCHITECTURES = (None, "wan", "pig")  # "pig" and none at all: makers who do not say, so that the keys decide
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."

# The C++ quantizer drops leading axes of length 1, which these parameters have.
_LEADING_ONE = (".modulation", "scale_shift_table", ".emb_pos", ".pos_embed")

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

_PLAIN = {0: "F32", 1: "F16", 30: "BF16"}

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


# Container --------------------------------------------------------------------------------------------------------


def is_gguf(first_bytes: bytes) -> bool:
    """Whether a file that begins so is GGUF, from its first 8 bytes.

    They may be the length of a safetensors header only where the version is 0: else that header would have 4 GiB.
    """
    return first_bytes.startswith(MAGIC) and any(first_bytes[4:8])


def open_header(path: Path) -> FileHeader:
    """The header of a model file, GGUF or safetensors; raises ModelFileError if it cannot be read."""
    try:
        with path.open("rb") as stream:
            first_bytes = stream.read(8)
    except OSError as error:
        raise _unreadable(path, error) from error
    return read_gguf_header(path) if is_gguf(first_bytes) else read_header(path)


def read_gguf_header(path: Path) -> FileHeader:
    """Tensors with torch's shapes (GGUF lists axes in reverse) and types such as "BF16" or "Q4_K"; no data is read.

    Raises ModelFileError if the file is missing, truncated, damaged, of another architecture than Wan, or holds a type
    that cannot be dequantized here.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            cursor = _Cursor(stream, path, size)
            num_tensors, num_values = _read_prologue(cursor)
            values = dict(cursor.pair() for _ in range(num_values))
            infos = [_read_info(cursor) for _ in range(num_tensors)]
    except OSError as error:
        raise _unreadable(path, error) from error
    _check_architecture(path, values.get("general.architecture"))
    alignment = values.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise _damaged(path, f"its alignment is {alignment}")
    data_start = -(-cursor.position // alignment) * alignment
    entries = {info.name: _make_entry(path, info, values, data_start) for info in infos}
    if len(entries) != len(infos):
        raise _damaged(path, "two of its tensors have the same name")
    expected = max((entry.end for entry in entries.values()), default=data_start)
    if expected > size:
        raise _damaged(path, f"{expected} bytes expected, but the file has {size} bytes")
    metadata = {name: str(value) for name, value in values.items() if not isinstance(value, tuple)}
    return FileHeader(path, entries, metadata, data_start, size)


def read_stored(stream: BinaryIO, entry: TensorEntry, path: Path) -> Tensor:
    """Like `read_tensor`; a quantized tensor comes as its blocks, [num_blocks, bytes of a block] uint8."""
    if entry.dtype not in QUANTS:
        return read_tensor(stream, entry, path)
    num_bytes = QUANTS[entry.dtype].num_bytes
    return read_tensor(stream, replace(entry, dtype="U8", shape=(entry.num_bytes // num_bytes, num_bytes)), path)


@dataclass(frozen=True)
class _Info:
    """One line of the tensor table; `axes` as stored, fastest first, `offset` from the start of the data."""

    name: str
    axes: tuple[int, ...]
    type_id: int
    offset: int


class _Cursor:
    """Reads little-endian values one after another; raises ModelFileError where the file or a sane header ends."""

    def __init__(self, stream: BinaryIO, path: Path, size: int) -> None:
        self.path = path
        self.position = 0
        self._stream = stream
        self._size = size

    def take(self, num_bytes: int) -> bytes:
        end = self.position + num_bytes
        if end > self._size:
            raise _damaged(
                self.path, f"at least {end} bytes are expected from its header, but the file has {self._size} bytes"
            )
        if end > MAX_HEADER_BYTES:
            raise _damaged(self.path, f"its header is longer than {MAX_HEADER_BYTES} bytes")
        self.position = end
        return self._stream.read(num_bytes)

    def numbers(self, code: str, count: int) -> tuple[Any, ...]:
        """`count` numbers of the type that `struct` calls `code`."""
        return struct.unpack(f"<{count}{code}", self.take(struct.calcsize(f"<{code}") * count))

    def number(self, code: str) -> Any:
        return self.numbers(code, 1)[0]

    def string(self) -> str:
        raw = self.take(self.number("Q"))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _damaged(self.path, f"its header has text that is not UTF-8, before byte {self.position}") from error

    def value(self, kind: int) -> Any:
        """A number, a string, or a tuple of numbers or strings."""
        if kind == _ARRAY:
            kind, count = self.number("I"), self.number("Q")
            if kind == _STRING:
                return tuple(self.string() for _ in range(count))
            if kind in _NUMBERS:
                return self.numbers(_NUMBERS[kind], count)
        elif kind == _STRING:
            return self.string()
        elif kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        raise _damaged(self.path, f"its metadata has a value of the unknown type {kind}, before byte {self.position}")

    def pair(self) -> tuple[str, Any]:
        name = self.string()
        return name, self.value(self.number("I"))


def _read_prologue(cursor: _Cursor) -> tuple[int, int]:
    """The numbers of tensors and of metadata values."""
    if cursor.take(4) != MAGIC:
        raise _damaged(cursor.path, "it does not begin with 'GGUF'")
    version = cursor.number("I")
    if version and version % 2**16 == 0:
        raise ModelFileError(
            f"'{cursor.path}' is a big-endian GGUF file, which cannot be read; use the little-endian file of the same "
            "model, which is the usual one."
        )
    if version not in VERSIONS:
        raise ModelFileError(
            f"'{cursor.path}' is a GGUF file of version {version}, and only versions 2 and 3 can be read; use a file "
            "of the same model that a current tool has made."
        )
    return cursor.number("Q"), cursor.number("Q")


def _read_info(cursor: _Cursor) -> _Info:
    name = cursor.string()
    axes = cursor.numbers("Q", cursor.number("I"))
    return _Info(name, axes, cursor.number("I"), cursor.number("Q"))


def _check_architecture(path: Path, architecture: Any) -> None:
    if architecture not in ARCHITECTURES:
        raise ModelFileError(
            f"'{path}' is a GGUF file of the architecture '{architecture}', not a Wan model; use a GGUF file of Wan 2.1 "
            "or Wan 2.2, such as Wan2.2-T2V-A14B-HighNoise-Q8_0.gguf."
        )


def _make_entry(path: Path, info: _Info, values: Mapping[str, Any], data_start: int) -> TensorEntry:
    num_params = math.prod(info.axes)
    start = data_start + info.offset
    if info.type_id in _PLAIN:
        dtype = _PLAIN[info.type_id]
        num_bytes = num_params * DTYPES[dtype].itemsize
    elif info.type_id in _QUANT_NAMES:
        dtype = _QUANT_NAMES[info.type_id]
        quant = QUANTS[dtype]
        if not info.axes or info.axes[0] % quant.block_size:
            raise _damaged(
                path,
                f"the tensor '{info.name}' has rows of {info.axes[0] if info.axes else 1} numbers, but {dtype} has "
                f"blocks of {quant.block_size}",
            )
        num_bytes = num_params // quant.block_size * quant.num_bytes
    else:
        raise ModelFileError(
            f"The model file '{path}' stores '{info.name}' in the GGUF type {info.type_id}"
            f"{_OTHER_NAMES.get(info.type_id, '')}, which cannot be trained; use a file of the same model in "
            f"F16, BF16, {', '.join(QUANTS)}."
        )
    return TensorEntry(dtype, _true_shape(path, info, values), start, start + num_bytes)


def _true_shape(path: Path, info: _Info, values: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape before the converter reshaped the tensor or the quantizer dropped an axis."""
    shape = tuple(reversed(info.axes))
    original = values.get(ORIGINAL_SHAPE + info.name)
    if original is not None:
        sizes = original if isinstance(original, tuple) else (original,)
        if not all(isinstance(size, int) for size in sizes) or math.prod(sizes) != math.prod(shape):
            raise _damaged(
                path, f"the tensor '{info.name}' of shape {list(shape)} cannot have had the shape {original}"
            )
        return sizes
    return (1, *shape) if len(shape) == 2 and info.name.endswith(_LEADING_ONE) else shape


def _damaged(path: Path, reason: str) -> ModelFileError:
    return ModelFileError(f"The GGUF file '{path}' is damaged or incomplete: {reason}; download it again.")


def _unreadable(path: Path, error: OSError) -> ModelFileError:
    return ModelFileError(
        f"The model file '{path}' cannot be read ({error.strerror}); check the path and its permissions."
    )


# Types ------------------------------------------------------------------------------------------------------------


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
_QUANT_NAMES = {quant.type_id: name for name, quant in QUANTS.items()}
_OTHER_NAMES = {
    16: " (IQ2_XXS)", 17: " (IQ2_XS)", 18: " (IQ3_XXS)", 19: " (IQ1_S)", 20: " (IQ4_NL)", 21: " (IQ3_S)",
    22: " (IQ2_S)", 23: " (IQ4_XS)", 29: " (IQ1_M)", 34: " (TQ1_0)", 35: " (TQ2_0)", 39: " (MXFP4)",
}  # fmt: skip


# Layer ------------------------------------------------------------------------------------------------------------


class QuantizedLinear(nn.Module):
    """A frozen linear layer whose weight stays in blocks; the numbers exist only during a product.

    `weight` is a buffer [num_blocks, bytes of a block] uint8 under the name that a plain weight has; the bias tells the
    compute dtype, as `compute_dtype` expects. Gradients reach the input and nothing else.
    """

    weight: Tensor
    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, quant: str, *, bias: bool, device: torch.device) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.quant = quant
        kind = QUANTS[quant]
        num_blocks = in_features * out_features // kind.block_size
        self.register_buffer("weight", torch.empty(num_blocks, kind.num_bytes, dtype=torch.uint8, device=device))
        values = torch.empty(out_features, device=device) if bias else None
        self.bias = None if values is None else nn.Parameter(values, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] in the bias' dtype -> [..., out]."""
        y = _Product.apply(x, self.weight, self.bias, self.quant)
        assert isinstance(y, Tensor)
        return y

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, quant={self.quant}"


def keep_quantized(model: nn.Module, name: str, quant: str) -> None:
    """Replace the nn.Linear `name` of `model` by a QuantizedLinear of the same size; its tensors are not filled."""
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    layer = QuantizedLinear(
        linear.in_features,
        linear.out_features,
        quant,
        bias=linear.bias is not None,
        device=linear.weight.device,
    )
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


class _Product(torch.autograd.Function):
    """x @ W.T + b, which keeps the blocks for the backward instead of W (a product in torch keeps W itself)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: Tensor, bias: Tensor | None, quant: str) -> Tensor:
        ctx.save_for_backward(blocks)
        ctx.quant, ctx.in_features = quant, x.shape[-1]
        return functional.linear(x, _matrix(blocks, quant, x.shape[-1], x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (blocks,) = ctx.saved_tensors
        (grad,) = grads
        return grad @ _matrix(blocks, ctx.quant, ctx.in_features, grad.dtype), None, None, None


def _matrix(blocks: Tensor, quant: str, in_features: int, dtype: torch.dtype) -> Tensor:
    return dequantize(blocks, quant, (-1, in_features), dtype)
