"""Which Wan files lie in a folder, what each is, and how large it is on the GPU."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..adapters.transfer import SIZES
from ..errors import ConfigError, ModelFileError
from ..wan.checkpoint import CheckpointInfo, hints_expert, inspect
from ..wan.files import find_files
from ..wan.gguf import QUANTS, open_header
from ..wan.identify import FileKind, identify

ENCODERS = ("wan2.1_vae", "wan2.2_vae", "umt5", "clip_vision")
MINIATURE_BYTES = 2**30  # Wan's smallest takes 2.6 GiB
_SUFFIXES = (".safetensors", ".gguf")


@dataclass(frozen=True)
class FoundModel:
    """A file, or a set of shards, that belongs to Wan."""

    path: str
    label: str  # what it is, with its article
    size: str  # 1.3B, 5B or 14B; "" for other sizes, and for encoders
    is_trainable: bool
    problem: str  # why a Wan model cannot be trained, or a file cannot be read; "" if nothing is wrong
    weight_bytes: int  # on the GPU while training; 0 unless it can be trained

    @property
    def is_miniature(self) -> bool:
        """Whether it is far smaller than any model of Wan: made for tests, for the demo, or for trying things out."""
        return not self.size and self.weight_bytes < MINIATURE_BYTES


def list_models(folder: Path) -> tuple[list[FoundModel], Counter[str]]:
    """The Wan models and encoders below `folder`, and how many files of other kinds there are, by their label.

    Reads headers of safetensors and GGUF files. ConfigError if there is no such folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"the folder {folder} does not exist: name a folder with models, such as ComfyUI/models.")
    found, others = [], Counter[str]()
    seen: set[Path] = set()
    for path in _candidates(folder):
        if path in seen:
            continue
        try:
            files = find_files(path)
            seen.update(files)
            kind = identify({name: e.shape for file in files for name, e in open_header(file).entries.items()})
        except ModelFileError as error:
            found.append(FoundModel(str(path), "a file that cannot be read", "", False, str(error), 0))
            continue
        if kind.variant is not None or kind.name in ENCODERS:
            found.append(_describe(path, kind))
        else:
            others[kind.label] += 1
    return found, others


def weight_bytes(info: CheckpointInfo) -> int:
    """Bytes of a frozen base on the GPU: bf16, whatever a safetensors file holds; GGUF files as they are."""
    return info.num_bytes if info.weights.upper() in QUANTS else 2 * info.num_params


def _candidates(folder: Path) -> Iterator[Path]:
    yield from (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in _SUFFIXES and path.is_file())


def _describe(path: Path, kind: FileKind) -> FoundModel:
    if kind.variant is None:
        return FoundModel(str(path), kind.label, "", False, "", 0)
    try:
        info = inspect(path)
    except ModelFileError as error:
        return FoundModel(str(path), kind.label, "", False, str(error), 0)
    expert = hints_expert(path)
    label = f"{kind.label} ({expert} noise expert, as its name says)" if expert else kind.label
    size = SIZES.get(info.config.dim, "")
    return FoundModel(str(path), label, size, True, "", weight_bytes(info))
