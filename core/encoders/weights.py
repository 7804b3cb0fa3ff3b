"""Weights by name, one tensor at a time, from safetensors files or from a pickle that holds nothing but tensors."""

import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ConfigError, ModelFileError
from ..wan.files import find_files, read_first_bytes
from ..wan.header import DTYPES, FileHeader, TensorEntry, read_header, read_in_order
from ..wan.identify import PICKLE, identify_bytes
from ..wan.limits import shown
from ..words import counted

_FLOATS = ("F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
FLOAT_DTYPES = tuple(DTYPES[name] for name in _FLOATS)


class SafetensorsWeights:
    """The tensors of a safetensors file, or of all parts of a sharded one. Nothing is mapped or held open."""

    def __init__(self, path: Path) -> None:
        self._entries: dict[str, tuple[FileHeader, TensorEntry]] = {}
        for header in map(read_header, find_files(path)):
            self._entries |= {name: (header, entry) for name, entry in header.entries.items()}
        self.path = path
        self.shapes = {name: entry.shape for name, (_, entry) in self._entries.items()}
        self.dtypes = {name: DTYPES.get(entry.dtype) for name, (_, entry) in self._entries.items()}

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Tensors in memory of their own, file by file and in the order in which they lie there."""
        return read_in_order(self._entries, names)


class PickledWeights:
    """The tensors of a file of torch.save. It is mapped where its format allows that, as long as this object lives."""

    def __init__(self, path: Path) -> None:
        self._tensors = _load_pickle(path)
        self.path = path
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        self.dtypes: dict[str, torch.dtype | None] = {name: tensor.dtype for name, tensor in self._tensors.items()}

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Tensors in memory of their own."""
        for name in names:
            yield name, self._tensors[name].detach().clone()


EncoderWeights = SafetensorsWeights | PickledWeights


def open_weights(path: Path) -> EncoderWeights:
    """What lies at `path`: a file, the index of a sharded one, or a folder of either. ModelFileError if it is neither."""
    if not path.is_file():
        return SafetensorsWeights(path)
    first_bytes = read_first_bytes(path)
    if first_bytes.startswith(b"GGUF"):
        raise ModelFileError(
            f"'{path}' is a GGUF file, which the encoders cannot read; use the .safetensors file of the same model."
        )
    return PickledWeights(path) if identify_bytes(first_bytes, path.suffix) is PICKLE else SafetensorsWeights(path)


def read_one(weights: EncoderWeights, name: str) -> Tensor:
    """A single tensor."""
    return next(iter(weights.read([name])))[1]


def check_weights(weights: EncoderWeights, names: dict[str, str], expected: dict[str, tuple[int, ...]]) -> None:
    """Raises ModelFileError unless the file has all weights, in these shapes and as floating point numbers.

    `names` leads from the names in `expected` to those in the file.
    """
    missing = [name for name in expected if name not in names]
    if missing:
        raise ModelFileError(
            f"The model file '{weights.path}' is incomplete: {counted(len(missing), 'weight is', 'weights are')} missing, such "
            f"as '{missing[0]}'; download it again."
        )
    for name, shape in expected.items():
        stored = names[name]
        if weights.shapes[stored] != shape:
            raise ModelFileError(
                f"The model file '{weights.path}' contradicts itself: '{stored}' has the shape "
                f"{list(weights.shapes[stored])}, but {list(shape)} is expected from its other weights; use the "
                "original file."
            )
        if weights.dtypes[stored] not in FLOAT_DTYPES:
            raise ModelFileError(
                f"The model file '{weights.path}' is quantized in a way that cannot be read here ('{stored}' is stored "
                f"as {weights.dtypes[stored] or 'an unknown type'}); use the fp16, bf16 or fp8 file of the same model."
            )


@contextmanager
def headless_packages() -> Iterator[None]:
    """Around lazy imports: says which package is missing, and how to get it."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"encoding without ComfyUI needs the packages diffusers, transformers and sentencepiece, and {error.name} is "
            "missing or too old: install the extra 'headless' (pip install \"wan-train[headless]\"), or run "
            "'pip install -U diffusers transformers sentencepiece'."
        ) from error


def _load_pickle(path: Path) -> dict[str, Tensor]:
    is_zip = read_first_bytes(path).startswith(b"PK\x03\x04")  # since torch 1.6; older files cannot be mapped
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise ModelFileError(
            f"'{path}' was not opened: it is a pickle file that holds more than weights, and such a file can run programs"
            " when it is opened; use the .safetensors file of the same model."
        ) from error
    except Exception as error:  # on damaged bytes torch's reader raises nearly anything: no list is complete
        reason = shown(next(iter(str(error).splitlines()), type(error).__name__))
        raise ModelFileError(
            f"The model file '{path}' is damaged or incomplete ({reason}); download it again."
        ) from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    items = loaded.items() if isinstance(loaded, dict) else ()
    tensors = {str(name): value for name, value in items if torch.is_tensor(value)}
    if not tensors:
        raise ModelFileError(f"'{path}' holds no weights by name; use the .safetensors file of the model.")
    return tensors
