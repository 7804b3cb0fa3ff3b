"""Single weights of a checkpoint in float32, one at a time, however the file stores them."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .checkpoint import CheckpointInfo, collect, read_scales
from .gguf import QUANTS, dequantize, open_header, read_stored
from .header import TensorEntry
from .quantized import convert, is_extra, scale_name


@dataclass(eq=False)
class StoredWeights:
    """The weights of a transformer by official name."""

    info: CheckpointInfo
    entries: dict[str, TensorEntry] = field(init=False)  # of all tensors, with scales and marks of quantization

    def __post_init__(self) -> None:
        """Reads headers and scales."""
        self._source = collect(tuple(open_header(file) for file in self.info.files))
        self.entries = self._source.entries
        self._scales = read_scales(self._source)

    @property
    def metadata(self) -> dict[str, str]:
        """Of the files' headers."""
        return self._source.metadata

    @property
    def names(self) -> tuple[str, ...]:
        """Of the weights, without scales."""
        return tuple(name for name in self.entries if not is_extra(name))

    def raw(self, name: str) -> Tensor:
        """As it is stored; a quantized one of a GGUF file as blocks of bytes."""
        header, entry = self._source.tensors[name]
        with header.path.open("rb") as stream:
            return read_stored(stream, entry, header.path)

    def read(self, name: str, device: torch.device) -> Tensor:
        """In float32 on `device`."""
        stored, entry = self.raw(name), self.entries[name]
        if entry.dtype in QUANTS:
            return dequantize(stored.to(device), entry.dtype, entry.shape, torch.float32)
        return convert(stored, self._scales.get(scale_name(name, self._scales) or ""), torch.float32, device)
