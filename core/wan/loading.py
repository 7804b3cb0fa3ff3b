"""From a Wan checkpoint on disk to a model in memory: the frozen transformer, read block by block."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, groupby, repeat
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO, Protocol

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ModelFileError, RunError
from ..pinned import HostBuffer
from .checkpoint import (
    BLOCK_NAME,
    CheckpointInfo,
    TensorSource,
    build_on_meta,
    collect,
    identity_of,
    read_scales,
    stays_stored,
)
from .config import WanConfig
from .gguf import QUANTS, dequantize, keep_quantized, open_header, read_stored
from .header import DTYPES, Read, TensorEntry, read_ahead, read_in_order
from .model import WanTransformer
from .quantized import column, convert, is_extra, scale_name

COMPUTE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# The linears that carry nearly all weights and FLOPs; everything else is kept in high precision.
_BLOCK_LINEAR = re.compile(r"blocks\.\d+\.(?:(?:self|cross)_attn\.(?:[qkvo]|[kv]_img)|ffn\.\d)\.(?:weight|bias)")

DeviceOf = Callable[[int | None], torch.device]  # of a block, by its index; None: of all that is outside the blocks


class Merged(Protocol):
    """Changes weights while they are read."""

    def changes(self, layer: str, /) -> bool:
        """Whether the weight of the layer with this official path is changed."""
        ...

    def __call__(self, layer: str, weight: Tensor, /) -> Tensor:
        """The changed weight, for one in float32 and of the same shape."""
        ...


class LinearFormat(Protocol):
    """Makes the layer that stands for one block linear: how the base is kept in memory is the caller's choice."""

    def __call__(
        self, name: str, weight: Tensor, scale: Tensor | None, *, dtype: torch.dtype, bias: nn.Parameter | None
    ) -> nn.Module | None:
        """The layer `name`, frozen, with the tensors of its state on the device of `weight`; None: a plain one.

        `weight` [out, in] is what the file stores, times `scale` [out or 1, 1] fp32 where there is one. `dtype` is that
        of the arithmetic. `bias` has no values yet: the layer carries it under the name `bias`, and is given them.
        """
        ...


def load_transformer(
    info: CheckpointInfo,
    *,
    dtype: torch.dtype,
    device: torch.device | str | DeviceOf,
    high_precision_dtype: torch.dtype = torch.float32,
    linear: LinearFormat | None = None,
    loaded: Callable[[int, nn.Module], None] | None = None,
    merged: Merged | None = None,
) -> WanTransformer:
    """The transformer of `info` on `device`, frozen and in eval mode.

    Block linears are in `dtype`, or what `linear` makes of them, computing in `dtype`; embeddings, norms, modulation
    and head in `high_precision_dtype`, or computing in it from weights that stay in the 16 bits of their file. Block linears
    that a GGUF file holds quantized stay so. Weights are read one after another, block by block, each while the one before it
    is brought to its place and into its format: the peak is about one tensor above the result on the devices, and two in main
    memory. `loaded(index, block)` is called when a block is whole, and may move its tensors elsewhere: then no more than one
    block is where they were. A block whose device is "meta" is made in its format, but not read. `merged` is added to the
    weights that it changes before they are brought into a format.
    Raises ModelFileError if the files have changed or cannot be read, ConfigError for a dtype that cannot compute.
    """
    source = _open(info, dtype, high_precision_dtype)
    params = {name: entry for name, entry in source.entries.items() if not is_extra(name)}
    model = build_on_meta(info.config)
    device_of = _everywhere(torch.device(device)) if isinstance(device, torch.device | str) else device
    # Under inference mode the weights could take part in no later backward.
    with torch.inference_mode(False), torch.no_grad():
        place = partial(
            _Placer, model, dtype=dtype, high_precision_dtype=high_precision_dtype, linear=linear, merged=merged
        )
        for index in _fill(model, source, params, device_of, place):
            if index is not None and loaded is not None:
                loaded(index, model.blocks[index])
    return model.eval()


def blank_transformer(
    config: WanConfig, *, dtype: torch.dtype, device: torch.device, linear: LinearFormat | None = None
) -> WanTransformer:
    """A transformer of these sizes as `load_transformer` makes it, of zeros, without a file."""
    model = build_on_meta(config)
    with torch.inference_mode(False), torch.no_grad():
        place = _Placer(model, device, dtype=dtype, high_precision_dtype=torch.float32, linear=linear)
        by_block = _by_block(params := dict(model.named_parameters()))
        for index, names in by_block.items():
            state: dict[str, Tensor] = {}
            for name in names:
                shape = tuple(params[name].shape)
                zeros = torch.zeros(
                    shape, dtype=dtype if _BLOCK_LINEAR.fullmatch(name) else torch.float32, device=device
                )
                state |= place(name, TensorEntry("F32", shape, 0, 0), zeros, None)
            _assign(model, index, state)
    return model.eval()


def transformer_bytes(config: WanConfig, dtype: torch.dtype) -> int:
    """Of the weights that `transformer_parts` makes, at most: what a file holds in 16 bits outside of the linears stays so."""
    model = build_on_meta(config)
    sizes = ((name, p.numel()) for name, p in model.named_parameters())
    return sum(count * (dtype.itemsize if _BLOCK_LINEAR.fullmatch(name) else 4) for name, count in sizes)


def transformer_parts(
    info: CheckpointInfo, *, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[int | None, WanTransformer]]:
    """The transformer of `info`, part by part: (None, the model) with all but its blocks, then each block with its number.

    The blocks come in their order, and each is read while the one before it is in use. Who takes the parts moves a block away
    (`block.to("meta")`) when it is done with it: so that no more than one is there. Weights as `load_transformer` makes them.
    """
    source = _open(info, dtype, torch.float32)
    params = {name: entry for name, entry in source.entries.items() if not is_extra(name)}
    model = build_on_meta(info.config).eval()
    by_block = _by_block(params)
    in_order = {name: params[name] for index in (None, *range(info.config.num_layers)) for name in by_block[index]}
    place = partial(_Placer, model, dtype=dtype, high_precision_dtype=torch.float32, linear=None)
    for index in _fill(model, source, in_order, _everywhere(device), place):
        yield index, model


def _fill(
    model: WanTransformer,
    source: TensorSource,
    params: Mapping[str, TensorEntry],
    device_of: DeviceOf,
    placer: "Callable[[torch.device], _Placer]",
) -> Iterator[int | None]:
    """Bring the weights into `model`, part by part; the number of each block that is whole, None for all outside of them.

    The mode of autograd is left to the caller: one that is set here would last while the caller has a part.
    """
    scales = read_scales(source)
    by_block = _by_block(params)
    to_gpu = [name for index, of_block in by_block.items() if device_of(index).type == "cuda" for name in of_block]
    # Held here to the end: the thread that reads into it is done while the last tensor is still copied from it.
    staging = _staging(max((params[name].num_bytes for name in to_gpu), default=0))
    tensors = read_ahead(_read_by_block(source, by_block, device_of, staging))
    for index, of_block in groupby(tensors, key=itemgetter(0)):
        place = placer(device_of(index))
        state: dict[str, Tensor] = {}
        for _, name, stored in of_block:
            state |= place(name, params[name], stored, scales.get(scale_name(name, scales) or ""))
            del stored
        _assign(model, index, state)
        del state
        yield index


def _open(info: CheckpointInfo, *dtypes: torch.dtype) -> TensorSource:
    """The content of the files, which are as they were when they were inspected."""
    for wanted in dtypes:
        if wanted not in COMPUTE_DTYPES:
            raise ConfigError(f"The model cannot compute in {wanted}; use float32, bfloat16 or float16.")
    headers = tuple(open_header(file) for file in info.files)
    if identity_of(headers) != info.identity:
        raise ModelFileError(f"The model '{info.path}' has changed since it was chosen; choose it again.")
    return collect(headers)


def _everywhere(device: torch.device) -> DeviceOf:
    return lambda _: device


def _read_by_block(
    source: TensorSource,
    by_block: Mapping[int | None, Sequence[str]],
    device_of: DeviceOf,
    staging: Sequence[HostBuffer],
) -> Iterator[tuple[int | None, str, Tensor]]:
    """Block (None: outside of them), name and content of each tensor, block by block.

    On its way to a GPU a tensor is in one of the buffers of `staging`, that the one after the next is read into.
    """
    buffers = cycle(staging) if staging else repeat(None)
    reads: dict[str, Read] = {"cuda": partial(_read_into, buffers), "meta": _shape_of}
    for index, of_block in by_block.items():
        read = reads.get(device_of(index).type, read_stored)
        for name, stored in read_in_order(source.tensors, of_block, read):
            yield index, name, stored


def _staging(num_bytes: int) -> list[HostBuffer]:
    """Two buffers of pinned memory: one is read into while the other is copied from. None where there is none.

    Its pages are there already, and a GPU copies from it several times as fast as from ordinary memory. The pages must last as
    long as a copy from them: a GPU that finds none stops the process with "unspecified launch failure".
    """
    try:
        return [HostBuffer(num_bytes, pinned=True) for _ in range(2 if num_bytes else 0)]
    except RunError:  # the driver gives no pinned memory, or no more of it
        return []


def _read_into(buffers: Iterator[HostBuffer | None], stream: BinaryIO, entry: TensorEntry, path: Path) -> Tensor:
    buffer = next(buffers)
    return read_stored(stream, entry, path, None if buffer is None else buffer.bytes)


def _shape_of(stream: BinaryIO, entry: TensorEntry, path: Path) -> Tensor:  # noqa: ARG001
    """In the place of `read_stored`: the tensor without its content."""
    if entry.dtype in QUANTS:
        num_bytes = QUANTS[entry.dtype].num_bytes
        return torch.empty(entry.num_bytes // num_bytes, num_bytes, dtype=torch.uint8, device="meta")
    return torch.empty(entry.shape, dtype=DTYPES[entry.dtype], device="meta")


def _by_block(names: Iterable[str]) -> dict[int | None, list[str]]:
    """Names by the block they belong to; under None those outside. All in the order in which they come."""
    found: dict[int | None, list[str]] = {}
    for name in names:
        match = BLOCK_NAME.match(name)
        found.setdefault(int(match[1]) if match else None, []).append(name)
    return found


def _assign(model: WanTransformer, index: int | None, state: dict[str, Tensor]) -> None:
    """Make `state`, by the model's names, the frozen tensors of block `index`, or of all that is outside the blocks."""
    if index is None:
        for name, part in model.named_children():
            if name != "blocks":
                _load_frozen(part, f"{name}.", state)
    else:
        _load_frozen(model.blocks[index], f"blocks.{index}.", state)


def _load_frozen(part: nn.Module, prefix: str, state: Mapping[str, Tensor]) -> None:
    # Detached: of a buffer that is a view, compiled code would keep an alias for the backward, and not the buffer.
    own = {name.removeprefix(prefix): tensor.detach() for name, tensor in state.items() if name.startswith(prefix)}
    part.load_state_dict(own, strict=True, assign=True)
    part.requires_grad_(False)


@dataclass(frozen=True)
class _Placer:
    """Turns stored tensors into those of the model's state; replaces the layers that are not to be plain ones."""

    model: WanTransformer
    device: torch.device
    dtype: torch.dtype
    high_precision_dtype: torch.dtype
    linear: LinearFormat | None
    merged: Merged | None = None

    def __call__(self, name: str, entry: TensorEntry, stored: Tensor, scale: Tensor | None) -> dict[str, Tensor]:
        """The entries of the model's state that come from the tensor `name`, on the device."""
        in_block = _BLOCK_LINEAR.fullmatch(name) is not None
        dtype = self.dtype if in_block else self.high_precision_dtype
        layer_name = name.removesuffix(".weight") if in_block and name.endswith(".weight") else None
        path = name.removesuffix(".weight")
        if self.merged is not None and path != name and self.merged.changes(path):
            if entry.dtype in QUANTS:
                raise ConfigError(
                    f"'{name}' is quantized as {entry.dtype}, to which no LoRA can be added: use another file."
                )
            kept = stored.dtype if scale is None and stays_stored(self.model, name, entry) else None
            stored, scale = self.merged(path, convert(stored, scale, torch.float32, self.device)), None
            if kept is not None:
                return {name: stored.to(kept)}
        if entry.dtype in QUANTS:
            stored = stored.to(self.device)
            if layer_name is None:
                return {name: dequantize(stored, entry.dtype, entry.shape, dtype)}
            keep_quantized(self.model, layer_name, entry.dtype)
            return {name: stored}
        if scale is None and stays_stored(self.model, name, entry):
            return {name: stored.to(self.device)}
        if layer_name is None or self.linear is None:
            return {name: convert(stored, scale, dtype, self.device)}
        return self._format(layer_name, stored.to(self.device), scale, self.linear)

    def _format(self, name: str, weight: Tensor, scale: Tensor | None, linear: LinearFormat) -> dict[str, Tensor]:
        scale = None if scale is None else column(scale, self.device)
        plain = self.model.get_submodule(name)
        assert isinstance(plain, nn.Linear)
        layer = linear(name, weight, scale, dtype=self.dtype, bias=plain.bias)
        if layer is None:
            return {f"{name}.weight": convert(weight, scale, self.dtype, self.device)}
        self.model.set_submodule(name, layer)
        return {f"{name}.{key}": value for key, value in layer.state_dict().items() if key != "bias"}
