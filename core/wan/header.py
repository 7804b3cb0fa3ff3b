"""Reading safetensors files without memory mapping: the checked header, single tensors, and a content digest.

Format: 8 bytes little-endian header length, JSON header, tensor data (github.com/huggingface/safetensors). Plain reads
leave no file handle open under the weights (Windows could not replace the file) and notice a truncated file at once.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import torch
from torch import Tensor

from ..errors import ModelFileError
from .limits import MAX_TENSORS, file_size, is_name, is_shape, parse_json, shown, unreadable

T = TypeVar("T")

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
SAMPLE_BLOCKS = 64
SAMPLE_BYTES = 64 * 1024
PIECE_BYTES = 2**24  # of a large tensor, for one of the threads that read it
READERS = 4


class HeaderError(ModelFileError):
    """A file that is no whole safetensors file; `reason` is a clause without its name."""

    reason = ""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file; `start` and `end` are byte positions in the file."""

    dtype: str  # safetensors' name, such as "BF16"
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def num_params(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class FileHeader:
    """The header of one safetensors file, checked against the file's size."""

    path: Path
    entries: dict[str, TensorEntry]
    metadata: dict[str, str]
    data_start: int
    num_bytes: int  # of the whole file


def read_header(path: Path) -> FileHeader:
    """Raises ModelFileError if the file is missing, truncated or not valid safetensors.

    Whatever it claims is held against its size and `core.wan.limits` before memory is taken for it.
    """
    size = file_size(path)
    try:
        with path.open("rb") as stream:
            prefix = stream.read(8)
            length = int.from_bytes(prefix, "little")
            fits = len(prefix) == 8 and 2 <= length <= MAX_HEADER_BYTES and 8 + length <= size
            raw = stream.read(length) if fits else b""
    except OSError as error:
        raise unreadable(path, error) from error
    if not fits:
        expected = f"at least {8 + length} bytes" if 2 <= length <= MAX_HEADER_BYTES else "a safetensors header"
        raise _damaged(path, f"{expected} expected, but the file has {size} bytes")
    header = _parse_header(path, raw)
    metadata = _texts(path, header.pop("__metadata__", None) or {})
    if len(header) > MAX_TENSORS:
        raise _damaged(path, f"its header lists {len(header)} tensors, and {MAX_TENSORS} are the limit")
    data_start = 8 + length
    entries = {name: _parse_entry(path, name, item, data_start) for name, item in header.items()}
    expected = max((entry.end for entry in entries.values()), default=data_start)
    if expected != size:
        raise _damaged(path, f"{expected} bytes expected, but the file has {size} bytes")
    _check_places(path, entries, data_start)
    return FileHeader(path, entries, metadata, data_start, size)


def read_tensor(stream: BinaryIO, entry: TensorEntry, path: Path, into: Tensor | None = None) -> Tensor:
    """The tensor of `entry` in its stored dtype; `stream` is `path`, opened in binary mode.

    It is in memory of its own, or in the first bytes of `into` (uint8), where that is given and large enough.

    A large one is read by several threads, piece after piece: one alone is slower than an NVMe disk, for all the new pages
    of memory that it touches.
    """
    if entry.dtype not in DTYPES:
        raise ModelFileError(
            f"The model file '{path}' holds a tensor stored as {entry.dtype}, which cannot be read here; use the fp16, bf16 or "
            "fp8 file of the same model."
        )
    if into is None or into.numel() < entry.num_bytes:
        into = torch.empty(entry.num_bytes, dtype=torch.uint8, device="cpu")
    buffer = into[: entry.num_bytes]
    view = memoryview(buffer.numpy())  # type: ignore[reportArgumentType]
    pieces = [
        (entry.start + start, view[start : start + PIECE_BYTES]) for start in range(0, entry.num_bytes, PIECE_BYTES)
    ]
    try:
        if len(pieces) > 1:
            with ThreadPoolExecutor(READERS, thread_name_prefix="read") as readers:
                num_read = sum(readers.map(lambda piece: _read_piece(path, *piece), pieces))
        else:
            stream.seek(entry.start)
            num_read = stream.readinto(view)  # type: ignore[attr-defined]
    except OSError as error:
        raise unreadable(path, error) from error
    if num_read != entry.num_bytes:
        raise _damaged(path, f"{entry.num_bytes} bytes expected at {entry.start}, but only {num_read} are there")
    return buffer.view(DTYPES[entry.dtype]).view(entry.shape)


def _read_piece(path: Path, start: int, view: memoryview) -> int:
    """Fill `view` with what is in the file from `start` on; how many bytes there were."""
    done = 0
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while done < len(view) and (num_read := file.readinto(view[done:])):
            done += num_read
    return done


Read = Callable[[BinaryIO, TensorEntry, Path], Tensor]


def read_in_order(
    tensors: Mapping[str, tuple[FileHeader, TensorEntry]],
    names: Iterable[str],
    read: Read = read_tensor,
) -> Iterator[tuple[str, Tensor]]:
    """Tensors one by one, file by file and in the order in which they lie there: a disk reads best forwards."""
    by_file: dict[Path, list[str]] = {}
    for name in names:
        by_file.setdefault(tensors[name][0].path, []).append(name)
    for path, file_names in by_file.items():
        with _open(path) as stream:
            for name in sorted(file_names, key=lambda name: tensors[name][1].start):
                yield name, read(stream, tensors[name][1], path)


def read_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each made by a thread of its own while the one before it is in use."""
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
        coming = reader.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = reader.submit(next, items, end)
            yield item  # type: ignore[misc]


def content_digest(header: FileHeader) -> str:
    """Hex digest of size, header and 64 evenly spaced blocks of 64 KiB: fast for 28 GB, blind to path and mtime.

    Equal digests mean equal files unless someone edited a few bytes between the samples.
    """
    digest = hashlib.sha256(str(header.num_bytes).encode())
    with _open(header.path) as stream:
        digest.update(stream.read(header.data_start))
        data_bytes = header.num_bytes - header.data_start
        if data_bytes <= SAMPLE_BLOCKS * SAMPLE_BYTES:
            digest.update(stream.read())
        else:
            for i in range(SAMPLE_BLOCKS):
                stream.seek(header.data_start + i * (data_bytes - SAMPLE_BYTES) // (SAMPLE_BLOCKS - 1))
                digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()[:32]


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """A file that was there a moment ago; a disk that fails meanwhile is told in a sentence."""
    try:
        with path.open("rb") as stream:
            yield stream
    except OSError as error:
        raise unreadable(path, error) from error


def _parse_header(path: Path, raw: bytes) -> dict:
    try:
        header = parse_json(raw, unique=True)
    except ValueError as error:
        raise _damaged(path, f"its header is not JSON of this format ({shown(str(error))})") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not an object")
    return header


def _texts(path: Path, metadata: object) -> dict[str, str]:
    """The metadata, whose values the format wants to be texts; half letters, which no file can hold, become '?'."""
    if not isinstance(metadata, dict):
        raise _damaged(path, "its header metadata is not an object")
    try:
        return {_text(key): _text(value) for key, value in metadata.items()}
    except (RecursionError, ValueError) as error:
        raise _damaged(path, "its header metadata holds a value that is no text") from error


def _text(value: object) -> str:
    return str(value).encode("utf-8", "replace").decode()


def _parse_entry(path: Path, name: str, item: object, data_start: int) -> TensorEntry:
    if not is_name(name):
        raise _damaged(path, f"its header has a tensor whose name is no plain text, '{shown(name)}'")
    if not isinstance(item, dict) or not {"dtype", "shape", "data_offsets"} <= set(item):
        raise _damaged(path, f"its header describes the tensor '{name}' incompletely")
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(dtype, str) or not is_name(dtype) or not is_shape(shape) or not _is_place(offsets):
        raise _damaged(path, f"its header gives the tensor '{name}' no valid shape and position")
    entry = TensorEntry(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])
    if entry.dtype in DTYPES and entry.num_bytes != entry.num_params * DTYPES[entry.dtype].itemsize:
        raise _damaged(path, f"the tensor '{name}' of shape {shape} cannot fill {entry.num_bytes} bytes as {dtype}")
    return entry


def _is_place(offsets: object) -> bool:
    """Whether it is a beginning and an end."""
    return (
        isinstance(offsets, list)
        and len(offsets) == 2
        and all(type(offset) is int for offset in offsets)
        and 0 <= offsets[0] <= offsets[1] < 2**63
    )


def _check_places(path: Path, entries: Mapping[str, TensorEntry], data_start: int) -> None:
    """The tensors must lie one after another: where they overlap or leave gaps, the format's own library refuses too."""
    end = data_start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != end:
            raise _damaged(path, f"the tensor '{name}' begins at byte {entry.start}, where {end} was expected")
        end = entry.end


def _damaged(path: Path, reason: str) -> HeaderError:
    error = HeaderError(f"The model file '{path}' is damaged or incomplete: {reason}; download it again.")
    error.reason = reason
    return error
