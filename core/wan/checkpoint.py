"""What a Wan checkpoint on disk holds, read from the headers of its files. `loading` makes a model of it."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..errors import ConfigError, ModelFileError
from ..facts import Expert
from ..words import counted
from .config import TRAINABLE, WanConfig
from .detect import detect_config, read_overrides, stated_kind
from .files import find_files
from .gguf import open_header, read_stored
from .header import FileHeader, TensorEntry, content_digest, read_in_order
from .identify import WANTED, identify
from .keys import find_prefix, is_diffusers, is_unused, to_official
from .layers import StoredLinear
from .model import WanTransformer
from .quantized import (
    LAYER_FORMAT,
    LEGACY_SCALE,
    SCALE,
    Weights,
    check_layer_format,
    is_extra,
    stored_weights,
)

Layout = Literal["official", "comfy", "diffusers"]

BLOCK_NAME = re.compile(r"blocks\.(\d+)\.")

# "high" or "low" followed by "noise", or standing alone; not the first half of "low_vram" or "high_quality".
_EXPERT = re.compile(
    r"(high|low)[ _.-]?noise"
    r"|(?<![a-z])(high|low)(?![a-z])(?![ _.-]?(?:vram|mem|quality|res|rank|alpha|step|fps|motion|detail))"
)


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """What a checkpoint holds, read from the headers of its files."""

    path: Path  # as given: a file, an index, or a folder
    files: tuple[Path, ...]
    config: WanConfig
    layout: Layout
    weights: Weights
    num_bytes: int  # of the transformer on disk
    rest_bytes: int  # of what is outside of the blocks, as `load_transformer` keeps it
    num_params: int
    identity: str  # digest of the content: equal for equal files, wherever they lie


@dataclass(frozen=True)
class TensorSource:
    """All tensors of the transformer under their official names, each with the file it lies in."""

    tensors: dict[str, tuple[FileHeader, TensorEntry]]
    layout: Layout
    metadata: dict[str, str]

    @property
    def entries(self) -> dict[str, TensorEntry]:
        return {name: entry for name, (_, entry) in self.tensors.items()}


def inspect(path: Path) -> CheckpointInfo:
    """What the checkpoint at `path` is: a file, one shard or the index of a sharded set, or a folder of either.

    Reads headers, and for `identity` a few MB of samples. Raises ModelFileError if the file is missing or damaged, or
    if it is anything but a Wan transformer of a variant in `TRAINABLE`: then the message says what it is.
    """
    path = Path(path)
    files = find_files(path)
    headers = tuple(open_header(file) for file in files)
    kind = identify({name: entry.shape for header in headers for name, entry in header.entries.items()})
    if kind.variant is None or kind.variant not in TRAINABLE:
        raise ModelFileError(f"'{path}' is {kind.label}, {kind.advice}.")
    source = collect(headers)
    stated = stated_kind(path, source.metadata)
    if stated is not None:
        raise ModelFileError(
            f"'{path}' is a Wan model of the kind '{stated}', as its header says, which cannot be trained yet; {WANTED}."
        )
    entries = source.entries
    weights = stored_weights(path, entries, source.metadata)
    sidecar = files[0].parent / "config.json" if source.layout == "diffusers" else None
    overrides = read_overrides(path, source.metadata, sidecar)
    params = {name: entry for name, entry in entries.items() if not is_extra(name)}
    config = detect_config(path, {name: entry.shape for name, entry in params.items()}, kind.variant, overrides)
    try:
        model = build_on_meta(config)
    except ConfigError as error:
        raise ModelFileError(f"The model file '{path}' cannot be used: {error}") from error
    _check_params(path, params, model)
    return CheckpointInfo(
        path=path,
        files=files,
        config=config,
        layout=source.layout,
        weights=weights,
        num_bytes=sum(entry.num_bytes for entry in entries.values()),
        rest_bytes=sum(_kept_bytes(model, name, entry) for name, entry in params.items() if not BLOCK_NAME.match(name)),
        num_params=sum(entry.num_params for entry in params.values()),
        identity=identity_of(headers),
    )


def stays_stored(model: WanTransformer, name: str, entry: TensorEntry) -> bool:
    """Whether it is the weight, in 16 bits, of a layer that converts it at each use."""
    layer, _, kind = name.rpartition(".")
    return kind == "weight" and entry.dtype in ("F16", "BF16") and isinstance(model.get_submodule(layer), StoredLinear)


def _kept_bytes(model: WanTransformer, name: str, entry: TensorEntry) -> int:
    """Of a tensor outside of the blocks: what is not kept as it is stored becomes fp32."""
    return entry.num_params * (2 if stays_stored(model, name, entry) else 4)


def hints_expert(path: Path) -> Expert | None:
    """Which Wan 2.2 expert the name of a file, or of the folder of a shard, claims to be; None if it claims neither.

    The weights cannot tell: high, low and Wan 2.1 have the same keys and shapes.
    """
    path = Path(path)
    for name in (path.name, path.parent.name):
        if name == "transformer_2":  # diffusers keeps the low noise expert there
            return "low"
        found = {match[1] or match[2] for match in _EXPERT.finditer(name.lower())}
        if found:
            return None if len(found) > 1 else ("high" if "high" in found else "low")
    return None


def collect(headers: tuple[FileHeader, ...]) -> TensorSource:
    """Merge the files; behind a prefix, other models in the same file (VAE, text encoder) are left out."""
    prefix = find_prefix(name for header in headers for name in header.entries)
    found = {
        name.removeprefix(prefix): (header, entry)
        for header in headers
        for name, entry in header.entries.items()
        if name.startswith(prefix)
    }
    metadata = {key: value for header in headers for key, value in header.metadata.items()}
    if is_diffusers(found):
        tensors = {to_official(name): value for name, value in found.items() if not is_unused(name)}
        return TensorSource(tensors, "diffusers", metadata)
    return TensorSource(found, "comfy" if prefix else "official", metadata)


def identity_of(headers: tuple[FileHeader, ...]) -> str:
    """Digest of all files; the order of their names has no part in it."""
    digests = sorted(content_digest(header) for header in headers)
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()[:32]


def build_on_meta(config: WanConfig) -> WanTransformer:
    with torch.device("meta"):
        return WanTransformer(config)


def _check_params(path: Path, params: Mapping[str, TensorEntry], model: WanTransformer) -> None:
    """Raises ModelFileError unless the file has exactly the weights of the model, in their shapes."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing = [name for name in expected if name not in params]
    if missing:
        raise ModelFileError(
            f"The model file '{path}' is incomplete: {counted(len(missing), 'weight is', 'weights are')} missing, "
            f"such as {_names(missing)}; download it again."
        )
    unexpected = [name for name in params if name not in expected]
    if unexpected:
        raise ModelFileError(
            f"The model file '{path}' is not a plain Wan model: it has "
            f"{counted(len(unexpected), 'unknown weight')}, such as {_names(unexpected)}; use the original model file."
        )
    for name, shape in expected.items():
        if params[name].shape != shape:
            raise ModelFileError(
                f"The model file '{path}' contradicts itself: '{name}' has the shape {list(params[name].shape)}, but "
                f"{list(shape)} is expected from its other weights; download it again."
            )


def _names(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:3])


def read_scales(source: TensorSource) -> dict[str, Tensor]:
    """Weight scales by name; on the way, the formats that layers state are checked."""
    wanted = [name for name in source.tensors if name.endswith((SCALE, LEGACY_SCALE, LAYER_FORMAT))]
    scales = {}
    for name, stored in read_in_order(source.tensors, wanted, read_stored):
        if name.endswith(LAYER_FORMAT):
            check_layer_format(source.tensors[name][0].path, name, stored)
        else:
            scales[name] = stored
    return scales
