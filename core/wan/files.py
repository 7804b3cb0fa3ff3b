"""Finds the files behind a path: one file, safetensors or GGUF, a shard index, one shard of a set, or a folder."""

import re
from pathlib import Path

from ..errors import ModelFileError
from .gguf import is_gguf
from .identify import identify_bytes
from .limits import MAX_SHARDS, file_size, read_json_file, shown, unreadable

INDEX_SUFFIX = ".safetensors.index.json"
_SHARD_PATTERN = re.compile(r"(.+)-([0-9]+)-of-([0-9]+)\.safetensors")


def find_files(path: Path) -> tuple[Path, ...]:
    """The files, in name order. Raises ModelFileError if one is missing, or if it is not clear which are meant."""
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:  # a name that is too long, a folder that may not be entered
        raise unreadable(path, error) from error
    if is_folder:
        return _files_of_folder(path)
    if not exists:
        raise ModelFileError(f"The model file '{path}' does not exist; check its name and folder.")
    file_size(path)
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
        weight_map = read_json_file(index)["weight_map"]
        names = {Path(name).name for name in weight_map.values()}
    except OSError as error:
        raise unreadable(index, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(
            f"The shard index '{index}' is damaged: it has no weight_map; download it again."
        ) from error
    if not names:
        raise ModelFileError(f"The shard index '{index}' names no files; download it again.")
    # Only names: an index may not lead out of its folder.
    return _existing(index.parent, sorted(names))


def _files_of_shard(shard: Path) -> tuple[Path, ...]:
    match = _SHARD_PATTERN.fullmatch(shard.name)
    assert match is not None
    stem, number, count = match.groups()
    if not 1 <= int(count) <= MAX_SHARDS:
        raise ModelFileError(
            f"'{shard}' says that it is one of {count} parts, and {MAX_SHARDS} are the limit; rename it."
        )
    width = len(number)
    names = [f"{stem}-{i:0{width}d}-of-{count}.safetensors" for i in range(1, int(count) + 1)]
    return _existing(shard.parent, names)


def _existing(folder: Path, names: list[str]) -> tuple[Path, ...]:
    if len(names) > MAX_SHARDS:
        raise ModelFileError(
            f"The model in '{folder}' is said to have {len(names)} parts, and {MAX_SHARDS} are the limit; download it again."
        )
    files = tuple(folder / name for name in names)
    missing = [shown(file.name) for file in files if not _is_file(file)]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise ModelFileError(
            f"{len(missing)} of the {len(files)} parts of the model in '{folder}' {are} missing, "
            f"the first is '{missing[0]}'; download them too."
        )
    for file in files:
        _refuse_other_formats(file)
    return files


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no disk can have
        return False


def read_first_bytes(path: Path) -> bytes:
    """Enough of a file to tell its format; ModelFileError if it cannot be read."""
    file_size(path)
    try:
        with path.open("rb") as stream:
            return stream.read(32)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error


def _refuse_other_formats(path: Path) -> None:
    first_bytes = read_first_bytes(path)
    kind = None if is_gguf(first_bytes) else identify_bytes(first_bytes, path.suffix)
    if kind is not None:
        raise ModelFileError(f"'{path}' is {kind.label}, {kind.advice}.")
