"""GGUF files: the header, and tensors as they are stored.

Format: github.com/ggml-org/ggml, docs/gguf.md, versions 2 and 3.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from ...errors import ModelFileError
from ..header import DTYPES, MAX_HEADER_BYTES, FileHeader, TensorEntry, read_header, read_tensor
from ..limits import MAX_AXES, MAX_TENSORS, file_size, is_name, is_shape, shown, unreadable
from .types import OTHER_NAMES, QUANT_NAMES, QUANTS

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
ARCHITECTURES = (None, "wan", "pig")  # "pig" and none at all: makers who do not say, so that the keys decide
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."

# The C++ quantizer drops leading axes of length 1, which these parameters have.
_LEADING_ONE = (".modulation", "scale_shift_table", ".emb_pos", ".pos_embed")

MAX_ITEMS = 4_000_000  # of all lists in a header together; a vocabulary has 256,000
MAX_ALIGNMENT = 2**20

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

_PLAIN = {0: "F32", 1: "F16", 30: "BF16"}


def is_gguf(first_bytes: bytes) -> bool:
    """Whether a file that begins so is GGUF, from its first 8 bytes.

    They may be the length of a safetensors header only where the version is 0: else that header would have 4 GiB.
    """
    return first_bytes.startswith(MAGIC) and any(first_bytes[4:8])


def open_header(path: Path) -> FileHeader:
    """The header of a model file, GGUF or safetensors; raises ModelFileError if it cannot be read."""
    file_size(path)
    try:
        with path.open("rb") as stream:
            first_bytes = stream.read(8)
    except OSError as error:
        raise unreadable(path, error) from error
    return read_gguf_header(path) if is_gguf(first_bytes) else read_header(path)


def read_gguf_header(path: Path) -> FileHeader:
    """Tensors with torch's shapes (GGUF lists axes in reverse) and types such as "BF16" or "Q4_K"; no data is read.

    Raises ModelFileError if the file is missing, truncated, damaged, of another architecture than Wan, or holds a type
    that cannot be dequantized here.
    """
    size = file_size(path)
    try:
        with path.open("rb") as stream:
            cursor = _Cursor(stream, path, size)
            num_tensors, num_values = _read_prologue(cursor)
            values = dict(cursor.pair() for _ in range(num_values))
            infos = [_read_info(cursor) for _ in range(num_tensors)]
    except OSError as error:
        raise unreadable(path, error) from error
    _check_architecture(path, values.get("general.architecture"))
    alignment = values.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 1 <= alignment <= MAX_ALIGNMENT:
        raise _damaged(path, f"its alignment is {shown(alignment)}")
    data_start = -(-cursor.position // alignment) * alignment
    entries = {info.name: _make_entry(path, info, values, data_start) for info in infos}
    if len(entries) != len(infos):
        raise _damaged(path, "two of its tensors have the same name")
    expected = max((entry.end for entry in entries.values()), default=data_start)
    if expected > size:
        raise _damaged(path, f"{expected} bytes expected, but the file has {size} bytes")
    _check_overlap(path, entries)
    metadata = {name: str(value) for name, value in values.items() if not isinstance(value, tuple)}
    return FileHeader(path, entries, metadata, data_start, size)


def read_stored(stream: BinaryIO, entry: TensorEntry, path: Path, into: Tensor | None = None) -> Tensor:
    """Like `read_tensor`; a quantized tensor comes as its blocks, [num_blocks, bytes of a block] uint8."""
    if entry.dtype not in QUANTS:
        return read_tensor(stream, entry, path, into)
    num_bytes = QUANTS[entry.dtype].num_bytes
    blocks = replace(entry, dtype="U8", shape=(entry.num_bytes // num_bytes, num_bytes))
    return read_tensor(stream, blocks, path, into)


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
        self._num_items = 0

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

    def _count(self) -> int:
        """The length of a list."""
        count = self.number("Q")
        self._num_items += count
        if self._num_items > MAX_ITEMS:
            raise _damaged(self.path, f"its lists have more than {MAX_ITEMS} items, before byte {self.position}")
        return count

    def value(self, kind: int) -> Any:
        """A number, a string, or a tuple of numbers or strings."""
        if kind == _ARRAY:
            kind, count = self.number("I"), self._count()
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
    num_tensors, num_values = cursor.number("Q"), cursor.number("Q")
    if max(num_tensors, num_values) > MAX_TENSORS:
        raise _damaged(
            cursor.path,
            f"it is said to have {num_tensors} tensors and {num_values} values of metadata, and {MAX_TENSORS} are the limit",
        )
    return num_tensors, num_values


def _read_info(cursor: _Cursor) -> _Info:
    name = cursor.string()
    if not is_name(name):
        raise _damaged(cursor.path, f"its header has a tensor whose name is no plain text, '{shown(name)}'")
    num_axes = cursor.number("I")
    if num_axes > MAX_AXES:
        raise _damaged(cursor.path, f"the tensor '{name}' is said to have {num_axes} axes")
    axes = cursor.numbers("Q", num_axes)
    if not is_shape(axes):
        raise _damaged(cursor.path, f"the tensor '{name}' is said to have the shape {list(reversed(axes))}")
    return _Info(name, axes, cursor.number("I"), cursor.number("Q"))


def _check_architecture(path: Path, architecture: Any) -> None:
    if architecture not in ARCHITECTURES:
        raise ModelFileError(
            f"'{path}' is a GGUF file of the architecture '{shown(architecture)}', not a Wan model; use a GGUF file of Wan 2.1 "
            "or Wan 2.2, such as Wan2.2-T2V-A14B-HighNoise-Q8_0.gguf."
        )


def _make_entry(path: Path, info: _Info, values: Mapping[str, Any], data_start: int) -> TensorEntry:
    num_params = math.prod(info.axes)
    start = data_start + info.offset
    if info.type_id in _PLAIN:
        dtype = _PLAIN[info.type_id]
        num_bytes = num_params * DTYPES[dtype].itemsize
    elif info.type_id in QUANT_NAMES:
        dtype = QUANT_NAMES[info.type_id]
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
            f"{OTHER_NAMES.get(info.type_id, '')}, which cannot be trained; use a file of the same model in "
            f"F16, BF16, {', '.join(QUANTS)}."
        )
    return TensorEntry(dtype, _true_shape(path, info, values), start, start + num_bytes)


def _true_shape(path: Path, info: _Info, values: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape before the converter reshaped the tensor or the quantizer dropped an axis."""
    shape = tuple(reversed(info.axes))
    original = values.get(ORIGINAL_SHAPE + info.name)
    if original is not None:
        sizes = original if isinstance(original, tuple) else (original,)
        if not is_shape(sizes) or math.prod(sizes) != math.prod(shape):
            raise _damaged(
                path, f"the tensor '{info.name}' of shape {list(shape)} cannot have had the shape {shown(original)}"
            )
        return sizes
    return (1, *shape) if len(shape) == 2 and info.name.endswith(_LEADING_ONE) else shape


def _check_overlap(path: Path, entries: Mapping[str, TensorEntry]) -> None:
    """No byte belongs to two tensors: a small file could else claim a huge model."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start < end:
            raise _damaged(path, f"the tensor '{name}' begins at byte {entry.start}, inside of another one")
        end = max(end, entry.end)


def _damaged(path: Path, reason: str) -> ModelFileError:
    return ModelFileError(f"The GGUF file '{path}' is damaged or incomplete: {reason}; download it again.")
