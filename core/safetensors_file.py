"""Writing safetensors files: byte for byte repeatable, and never half a file.

The library's own writer keeps metadata in a hash map, so that two runs give two different files. The format itself is
small (8 bytes of header length, JSON header, tensor bytes; huggingface/safetensors, README "Format"), so it is written
here. Tensors lie in the library's order, widest dtype first and then by name, which keeps the data section identical to
what `safetensors.torch.save` makes, and with it the hashes that kohya's tools put into metadata.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch

from .disk import HashingWriter, write_atomic
from .errors import RunError

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.uint8: "U8",
}
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
_LEGACY_START, _LEGACY_LENGTH = 0x100000, 0x10000  # the window that the oldest LoRA tools hashed


def write_safetensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], *, kept: str = "nothing was changed"
) -> tuple[int, str]:
    """Write `tensors` and `metadata` to `path` in one step: the whole file appears there, or nothing changes.

    Returns the size in bytes and the sha256 of what was to be written. RunError if the folder cannot be written, the disk
    is full, or the header is longer than readers take; `kept` is the end of its sentence.
    """
    header = _header(tensors, metadata)
    written = (0, "")

    def write(file: BinaryIO) -> None:
        nonlocal written
        hashing = HashingWriter(file)
        hashing.write(header)
        for chunk in _chunks(tensors):
            hashing.write(chunk)
        written = hashing.size, hashing.sha256

    write_atomic(path, write, kept=kept)
    return written


def write_one_by_one(
    path: Path,
    outline: Mapping[str, torch.Tensor],
    make: Callable[[str], torch.Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Write a file that is larger than the memory: `make` gives each tensor when its turn comes.

    `outline` has the tensors' dtypes and shapes, on the device "meta". RunError as `write_safetensors`; what `make` raises.
    """
    header = _header(outline, metadata)

    def write(file: BinaryIO) -> None:
        file.write(header)
        for name, planned in _ordered(outline):
            tensor = make(name)
            assert (tensor.dtype, tensor.shape) == (planned.dtype, planned.shape), name
            for chunk in _chunks({name: tensor}):
                file.write(chunk)

    write_atomic(path, write)


def content_hashes(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> tuple[str, str]:
    """kohya's `sshs_model_hash` and `sshs_legacy_hash` (sd-scripts, precalculate_safetensors_hashes).

    The first is the sha256 of the tensor bytes alone. The second hashes 64 KiB at offset 1 MiB of the file as it would
    be with the `ss_*` metadata only, and is cut to 8 digits.
    """
    full, legacy = hashlib.sha256(), hashlib.sha256()
    offset = len(_header(tensors, {key: value for key, value in metadata.items() if key.startswith("ss_")}))
    stop = _LEGACY_START + _LEGACY_LENGTH
    for chunk in _chunks(tensors):
        full.update(chunk)
        legacy.update(chunk[max(0, _LEGACY_START - offset) : max(0, stop - offset)])
        offset += len(chunk)
    return full.hexdigest(), legacy.hexdigest()[:8]


def _ordered(tensors: Mapping[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    return sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))


def _header(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name, tensor in _ordered(tensors):
        size = math.prod(tensor.shape) * tensor.element_size()
        entries[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
    if len(text) > MAX_HEADER_BYTES:
        raise RunError(
            f"the names and metadata of the LoRA take {len(text) / 1e6:.0f} MB, and readers of safetensors files take "
            f"{MAX_HEADER_BYTES / 1e6:.0f}: write it without the other file's metadata."
        )
    text += b" " * (-len(text) % 8)  # tensor data starts at a multiple of 8, as the format asks of writers
    return len(text).to_bytes(8, "little") + text


def _chunks(tensors: Mapping[str, torch.Tensor]) -> Iterator[memoryview]:
    for _, tensor in _ordered(tensors):
        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().data
