"""A LoRA that a training starts from, brought to the rank and strength of the one that is trained.

Legend: r rank, in/out widths of the linear layer; down (A) [r, in], up (B) [out, r].
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ModelFileError
from ..paths import path_problem, shown
from ..settings.adapter import AdapterOptions
from ..wan.header import HeaderError
from ..wan.recovery import file_identity
from ..words import counted, some
from .formats import LoraFile, LoraModule, parse_modules, to_tensors
from .kind import ADAPTER_KINDS, LORA
from .merge import resize
from .other_files import read_adapter
from .setup import adapter_state, load_adapter
from .transfer import Shapes, transfer_report


def adapter_identity(path: str, option: str) -> str:
    """Digest of a file's content, "" for no file. ConfigError, with the name of the `option`, if it can't be read."""
    if not path:
        return ""
    problem = path_problem(path)
    if problem:
        raise ConfigError(
            f"{option} is {shown(path)}, which {problem}: give the path of a LoRA file, or leave it empty."
        )
    try:
        return file_identity(Path(path))
    except (HeaderError, ModelFileError, OSError) as error:
        raise ConfigError(
            f"{option} is {shown(path)}, which is no sound .safetensors file ({error}): copy it again."
        ) from error


def check_file(path: str, identity: str, option: str) -> None:
    """ConfigError if the file is not there any more, or not what it was when the run was made."""
    if path and adapter_identity(path, option) != identity:
        raise ConfigError(
            f"{option} is {shown(path)}, which is not the file that this run was made with (its content changed): restore it,"
            " or start a new run."
        )


def check_start_file(options: AdapterOptions, shapes: Shapes) -> None:
    """ConfigError or ModelFileError if a training with these options can't start from its file, on a model of `shapes`."""
    file = read_adapter(options.start_from)
    kind = LORA if isinstance(file, LoraFile) else file.kind
    wanted = LORA if ADAPTER_KINDS.get(options.kind).is_plain else options.kind  # plain ones have the files of LoRA
    if kind != wanted:
        raise ConfigError(
            f"start_from is {shown(options.start_from)}, a file of the kind {kind}, but the adapter is {options.kind}: choose"
            f" the adapter {kind}, or another file."
        )
    report = transfer_report(file, shapes)
    if not report.placed:
        raise ConfigError(
            f"start_from is {shown(options.start_from)}, of which nothing fits this model: choose another file."
        )


def start_from_file(model: nn.Module, options: AdapterOptions) -> list[str]:
    """Fill the adapter that `model` carries, which was not trained yet, from its file; what there is to say, a sentence each.

    ModelFileError if the file is of another kind, or of other sizes where these can't be changed.
    """
    file, fresh, name = read_adapter(options.start_from), adapter_state(model), Path(options.start_from).name
    if not isinstance(file, LoraFile):
        return _start_other(model, fresh, file.tensors(torch.float32), name)
    wanted, _ = parse_modules(fresh)
    both = [path for path in wanted if path in file.modules]
    if not both:
        raise ModelFileError(
            f"{name} holds none of the layers that are trained: choose another file, or other targets."
        )
    modules, lost = dict(wanted), 0.0
    for path in both:
        modules[path], error = _fitted(path, file, wanted[path])
        lost = max(lost, error)
    load_adapter(model, to_tensors(modules, torch.float32))
    said = [f"The training starts from {name}: {some(len(both), len(wanted), 'layer', 'has', 'have')} a part in it."]
    if (ranks := {file.modules[path].rank for path in both}) != {wanted[path].rank for path in both}:
        said.append(
            f"{name} has rank {'/'.join(map(str, sorted(ranks)))}, which was brought to that of this run; of the largest change"
            f" of a layer {100 * lost:.2g} % is lost."
        )
    if len(both) < len(file.modules):
        rest = len(file.modules) - len(both)
        are = "is" if rest == 1 else "are"
        said.append(f"{counted(rest, 'layer')} of {name} {are} not trained here, and {are} left out.")
    return said


def _start_other(model: nn.Module, fresh: Mapping[str, Tensor], tensors: dict[str, Tensor], name: str) -> list[str]:
    """Of the same sizes or not at all."""
    alphas = {key: value for key, value in fresh.items() if key.endswith(".alpha") and key not in tensors}
    load_adapter(model, {**tensors, **alphas})
    return [f"The training starts from {name}."]


def _fitted(path: str, file: LoraFile, wanted: LoraModule) -> tuple[LoraModule, float]:
    """The file's change of a layer with the rank and alpha of `wanted`; the share of it that is lost.

    Where the file's rank is lower, the other rows of A stay as they were drawn, beside zeros in B.
    """
    found, error = file.modules[path], 0.0
    if found.shape != wanted.shape:
        raise ModelFileError(
            f"{file.path} is for a model of another size: {path} is {found.shape} in it and {wanted.shape} here (out, in)."
        )
    if found.rank > wanted.rank:
        one = LoraFile(path=file.path, modules={path: found}, style=file.style, metadata={})
        cut, report = resize(one, rank=wanted.rank)
        found, error = cut[path], report.errors[path]
    down, up = wanted.down.clone(), torch.zeros_like(wanted.up)
    down[: found.rank] = found.down.float()
    up[:, : found.rank] = found.up.float() * (found.scale / wanted.scale)
    return LoraModule(down=down, up=up, alpha=wanted.alpha), error
