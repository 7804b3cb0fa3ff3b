"""Finds the files behind a path: one file, safetensors or GGUF, a shard index, one shard of a set, or a folder."""

import json
import re
from pathlib import Path

from ..errors import ModelFileError
from .gguf import is_gguf
from .identify import identify_bytes

INDEX_SUFFIX = ".safetensors.index.json"
_SHARD_PATTERN = re.compile(r"(.+)-(\d+)-of-(\d+)\.safetensors")


def find_files(path: Path) -> tuple[Path, ...]:
    """The files, in name order. Raises ModelFileError if one is missing, or if it is not clear which are meant."""
    if path.is_dir():
        return _files_of_folder(path)
    if not path.exists():
        raise ModelFileError(f"The model file '{path}' does not exist; check its name and folder.")
    if path.name.endswith(".index.json"):
        return _files_of_index(path)
    if _SHARD_PATTERN.fullmatch(path.name):
        return _files_of_shard(path)
    _refuse_other_formats(path)
    return (path,)


def _files_of_folder(folder: Path) -> tuple[Path, ...]:
    indexes = sorted(folder.glob("*" + INDEX_SUFFIX))
    if len(indexes) == 1:
        return _files_of_index(indexes[0])
    files = sorted(folder.glob("*.safetensors"))
    shard_sets = {match[1] for match in map(_SHARD_PATTERN.fullmatch, (file.name for file in files)) if match}
    if len(files) == 1 or (len(shard_sets) == 1 and all(_SHARD_PATTERN.fullmatch(file.name) for file in files)):
        return find_files(files[0])
    if files:
        raise ModelFileError(
            f"The folder '{folder}' holds several models ({files[0].name}, {files[1].name}, ...); name one file."
        )
    if (folder / "transformer").is_dir():
        raise ModelFileError(
            f"The folder '{folder}' is a whole diffusers pipeline; name its subfolder 'transformer' (Wan 2.2: the high "
            "noise expert) or 'transformer_2' (the low noise expert)."
        )
    raise ModelFileError(f"The folder '{folder}' holds no .safetensors file; name the folder or file of the model.")


def _files_of_index(index: Path) -> tuple[Path, ...]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted({str(name) for name in weight_map.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(
            f"The shard index '{index}' is damaged: it has no weight_map; download it again."
        ) from error
    if not names:
        raise ModelFileError(f"The shard index '{index}' names no files; download it again.")
    # Only the name: an index may not lead out of its folder.
    return _existing(index.parent, [Path(name).name for name in names])


def _files_of_shard(shard: Path) -> tuple[Path, ...]:
    match = _SHARD_PATTERN.fullmatch(shard.name)
    assert match is not None
    stem, number, count = match.groups()
    width = len(number)
    names = [f"{stem}-{i:0{width}d}-of-{count}.safetensors" for i in range(1, int(count) + 1)]
    return _existing(shard.parent, names)


def _existing(folder: Path, names: list[str]) -> tuple[Path, ...]:
    files = tuple(folder / name for name in names)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelFileError(
            f"{len(missing)} of the {len(files)} parts of the model in '{folder}' are missing, the first is "
            f"'{missing[0]}'; download them too."
        )
    for file in files:
        _refuse_other_formats(file)
    return files


def read_first_bytes(path: Path) -> bytes:
    """Enough of a file to tell its format; ModelFileError if it cannot be read."""
    try:
        with path.open("rb") as stream:
            return stream.read(32)
    except OSError as error:
        raise ModelFileError(
            f"The model file '{path}' cannot be read ({error.strerror}); check its permissions."
        ) from error


def _refuse_other_formats(path: Path) -> None:
    first_bytes = read_first_bytes(path)
    kind = None if is_gguf(first_bytes) else identify_bytes(first_bytes, path.suffix)
    if kind is not None:
        raise ModelFileError(f"'{path}' is {kind.label}, {kind.advice}.")
