"""Files of adapters that are no plain LoRA: LoKr, LoHa, DoRA and OFT, with the keys that ComfyUI loads.

Read in the dialects of LyCORIS, kohya, musubi-tuner, AI-Toolkit and ComfyUI; written with official names.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import HostOnlyError, ModelFileError, RunError
from ..safetensors_file import content_hashes, write_safetensors
from ..wan.header import HeaderError, read_header, read_in_order
from ..wan.limits import shown
from .formats import Expert, LoraFile, expert_of_metadata, expert_of_name, read_lora
from .keys import official_path, sort_key
from .peft_settings import METADATA
from .seen_by_host import other_notes
from .two_experts import expert_of_keys, keys_of

# What the keys of each kind end with; the first kind that has one of its own in a file is the file's.
_OWN = {
    "lokr": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"),
    "loha": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    "dora": ("dora_scale",),
    "oft": ("oft_blocks",),
}
_ENDS = {
    "alpha": "alpha",
    "lora_A.weight": "lora_A.weight",
    "lora_B.weight": "lora_B.weight",
    "lora_down.weight": "lora_A.weight",
    "lora_up.weight": "lora_B.weight",
    "rescale": "rescale",
    **{end: end for ends in _OWN.values() for end in ends},
}
_KEY = re.compile(rf"(?P<name>.+)\.(?P<end>{'|'.join(map(re.escape, _ENDS))})")
ALPHA = "alpha"
_INNER = ("lora_A.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")  # their rows are the rank


@dataclass(frozen=True, kw_only=True, eq=False)
class OtherModule:
    """The adapter of one linear layer [out, in]: its tensors by what their keys end with."""

    kind: str
    parts: dict[str, Tensor]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the layer; in is 0 for OFT, whose file does not tell it."""
        if self.kind == "oft":
            return self.parts["oft_blocks"].shape[:2].numel(), 0
        if self.kind == "dora":
            return self.parts["lora_B.weight"].shape[0], self.parts["lora_A.weight"].shape[1]
        if self.kind == "loha":
            return self.parts["hada_w1_a"].shape[0], self.parts["hada_w1_b"].shape[1]
        (p, m), (k, n) = (matrix.shape for matrix in self._kronecker())
        return p * k, m * n

    @property
    def rank(self) -> int:
        """Of the factors; of a LoKr without any, the smaller side of its second matrix; of OFT the size of a block."""
        if self.kind == "oft":
            return self.parts["oft_blocks"].shape[2]
        inner = next((self.parts[end] for end in _INNER if end in self.parts), None)
        return min(self._kronecker()[1].shape) if inner is None else inner.shape[0]

    @property
    def alpha(self) -> float:
        """The strength is alpha / rank; a file without it means the rank. Of OFT it is the constraint, and 0 none."""
        usual = 0.0 if self.kind == "oft" else float(self.rank)
        return float(self.parts[ALPHA]) if ALPHA in self.parts else usual

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether the layer may have this shape (out, in)."""
        out, width = self.shape
        return out == shape[0] and width in (0, shape[1])

    def share_at(self, strength: float) -> float:
        """What counts of `delta` at a loader's strength: ComfyUI takes that of OFT twice."""
        return strength * strength if self.kind == "oft" else strength

    def to(self, device: torch.device) -> "OtherModule":
        """In float32 on another device."""
        return OtherModule(
            kind=self.kind, parts={end: part.to(device, torch.float32) for end, part in self.parts.items()}
        )

    def delta(self, weight: Tensor) -> Tensor:
        """The change of the layer's weight [out, in], float32, as ComfyUI makes it; the weight counts for DoRA and OFT only."""
        if self.kind == "oft":
            return self._turned(weight.float()) - weight.float()
        if self.kind == "lokr":
            return torch.kron(*(matrix.float() for matrix in self._kronecker()))
        parts, scale = {end: part.float() for end, part in self.parts.items()}, self.alpha / self.rank
        if self.kind == "loha":
            return scale * (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
        both = weight.float() + scale * parts["lora_B.weight"] @ parts["lora_A.weight"]
        return both * (parts["dora_scale"] / both.norm(dim=0, keepdim=True)) - weight.float()

    def _turned(self, weight: Tensor) -> Tensor:
        """R^T W for a weight [out, in], as `kinds.oft` has it."""
        blocks, constraint = self.parts["oft_blocks"].float(), self.alpha
        q = blocks - blocks.transpose(1, 2)
        if constraint > 0:
            q = q * (constraint / (q.norm() + 1e-8)).clamp(max=1.0)
        eye = torch.eye(q.shape[1], device=q.device)
        rotation = (eye + q) @ torch.linalg.inv(eye - q)
        return (rotation.transpose(1, 2) @ weight.unflatten(0, blocks.shape[:2])).flatten(0, 1)

    def _kronecker(self) -> tuple[Tensor, Tensor]:
        """Both matrices of a LoKr, with its strength in one that is a product: loaders give a whole pair none."""
        found: list[Tensor] = []
        for name in ("lokr_w1", "lokr_w2"):
            if name in self.parts:
                found.append(self.parts[name])
            else:
                a, b = self.parts[f"{name}_a"], self.parts[f"{name}_b"]
                found.append(a @ b)
        inner = next((self.parts[end] for end in _INNER if end in self.parts), None)
        if inner is not None and ALPHA in self.parts:
            found[1] = found[1] * (float(self.parts[ALPHA]) / inner.shape[0])
        return found[0], found[1]

    def _check_blocks(self, where: str, alpha: Tensor) -> None:
        blocks = self.parts.get("oft_blocks", torch.empty(0))
        if "rescale" in self.parts:
            raise ModelFileError(
                f"{where} has OFT with a rescale, which ComfyUI's loader of files leaves out, so that it never looks as it was"
                " trained: train it again without rescale."
            )
        if blocks.ndim != 3 or blocks.shape[1] != blocks.shape[2] or len(self.parts) > 2 or alpha.numel() != 1:
            raise HostOnlyError(
                f"{where} has blocks of BOFT, or of another kind of OFT than LyCORIS's diag-oft, which alone is read here: load"
                " it with the host's own LoRA loader instead.",
            )

    def check(self, where: str) -> None:
        """ModelFileError if a tensor is missing, or they do not fit together."""
        alpha = self.parts.get(ALPHA, torch.ones(()))
        if self.kind == "oft":
            return self._check_blocks(where, alpha)
        bare = {end: part.to("meta") for end, part in self.parts.items() if end != ALPHA}
        shapes = OtherModule(kind=self.kind, parts=bare)  # sizes alone: the change is as large as the layer's weight
        try:
            is_whole = {part.ndim for part in bare.values()} == {2} and self.rank > 0 and alpha.numel() == 1
            is_whole = is_whole and shapes.delta(torch.zeros(1, 1, device="meta")).shape == self.shape
            is_whole = is_whole and (self.kind != "dora" or self.parts["dora_scale"].shape == (1, self.shape[1]))
        except (KeyError, RuntimeError, ValueError):
            is_whole = False
        if not is_whole:
            raise ModelFileError(
                f"{where} has weights of a {self.kind} adapter that lack a part, do not fit together, or are made in a way that"
                " can't be read here (Tucker factors, lengths of rows): load it with the host's own LoRA loader instead."
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class OtherFile:
    """Such a file in memory; `modules` by official path, in the model's order."""

    path: str
    kind: str
    modules: dict[str, OtherModule]
    metadata: dict[str, str]
    style: str = "official"
    notes: tuple[str, ...] = ()  # as of a LoraFile
    of_names: Expert | None = None

    @property
    def ranks(self) -> tuple[int, ...]:
        """The distinct ranks, ascending."""
        return tuple(sorted({module.rank for module in self.modules.values()}))

    @property
    def architecture(self) -> str:
        """What the metadata says it was trained on, or ""."""
        return self.metadata.get("modelspec.architecture", "").split("/")[0].lower()

    @property
    def expert(self) -> Expert | None:
        """Which expert it is for, as far as its tensors' names, the metadata or else the file name tell."""
        return self.of_names or expert_of_metadata(self.metadata) or expert_of_name(self.path)

    def tensors(self, dtype: torch.dtype, key_style: str = "official") -> dict[str, Tensor]:
        """As they go into a file; alpha stays float32."""
        return {
            _key(path, end, key_style): tensor.to(torch.float32 if end == ALPHA else dtype)
            for path, module in self.modules.items()
            for end, tensor in module.parts.items()
        }


def read_adapter(path: str | Path, half: Expert | None = None) -> "LoraFile | OtherFile":
    """A file of any kind of adapter that can be trained here, or one `half` of a file that holds two.

    ModelFileError for every other file.
    """
    return read_lora(path, half) if kind_of_file(Path(path)) is None else read_other(Path(path), half)


def kind_of_file(path: Path) -> str | None:
    """ "lokr", "loha", "dora" or "oft"; None for any other file, also one that can't be read."""
    try:
        return _kind_of(read_header(path).entries)
    except (HeaderError, ModelFileError, OSError):
        return None


def read_other(path: Path, half: Expert | None = None) -> OtherFile:
    """ModelFileError if the file is damaged, of another kind, or for another model, and for two adapters without `half`."""
    try:
        header = read_header(path)
        entries = {name: header.entries[name] for name in keys_of(header.entries, half, str(path))}
        tensors = dict(read_in_order({name: (header, entry) for name, entry in entries.items()}, entries))
    except (HeaderError, OSError) as error:
        raise ModelFileError(
            f"{path} is damaged or no .safetensors file ({error}): download or copy it again."
        ) from error
    kind = _kind_of(tensors)
    if kind is None:
        raise ModelFileError(f"{path} holds no LoKr, LoHa, DoRA or OFT: choose a file of such an adapter.")
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        parsed = _KEY.fullmatch(key)
        found = official_path(parsed["name"]) if parsed else None
        if parsed is None or found is None:
            raise ModelFileError(
                f"{path} has the key '{shown(key)}', which is none of a {kind} adapter on a Wan transformer: it was made for"
                " another model, or in a way that can't be read here."
            )
        if not (tensor.dtype.is_floating_point and bool(tensor.float().isfinite().all())):
            raise ModelFileError(f"{path} holds something else than finite numbers as '{shown(key)}': export it again.")
        module = parts.setdefault(found[0], {})
        if _ENDS[parsed["end"]] in module:
            raise ModelFileError(
                f"{path} holds {found[0]} twice, the second time as '{shown(key)}': save each adapter as a file of its own with"
                " the program that made it."
            )
        module[_ENDS[parsed["end"]]] = tensor
    modules = {name: OtherModule(kind=kind, parts=parts[name]) for name in sorted(parts, key=sort_key)}
    for name, module in modules.items():
        module.check(f"{path}, {name},")
    notes = other_notes(path, [match["name"] for key in tensors if (match := _KEY.fullmatch(key))])
    of_names = half or expert_of_keys(tensors)
    return OtherFile(
        path=str(path), kind=kind, modules=modules, metadata=header.metadata, notes=notes, of_names=of_names
    )


def _key(path: str, end: str, style: str) -> str:
    if style == "official":
        return f"diffusion_model.{path}.{end}"
    kohya = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}
    return f"lora_unet_{path.replace('.', '_')}.{kohya.get(end, end)}"


def read_state(path: Path, kind: str) -> dict[str, Tensor]:
    """The state of an adapter of `kind` in a file, float32. ModelFileError if it is of another kind, or none."""
    file = read_other(path)
    if file.kind != kind:
        raise ModelFileError(f"{path} is a {file.kind} adapter, and not {kind}: choose another file, or another kind.")
    return file.tensors(torch.float32)


def write_state(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], dtype: torch.dtype = torch.float32
) -> Path:
    """A state as a file that ComfyUI loads. RunError if a weight is not finite in `dtype`, or the disk refuses."""
    held = {
        key: (tensor if key.endswith(f".{ALPHA}") else tensor.to(dtype)).contiguous() for key, tensor in tensors.items()
    }
    for key, tensor in held.items():
        if not bool(tensor.isfinite().all()):
            raise RunError(
                f"{path} was not written, because '{key}' holds values that are not finite: go back to an earlier checkpoint"
                " and lower the learning rate."
            )
    metadata = {key: text for key, text in metadata.items() if key != METADATA}  # of the file that this was made of
    model_hash, legacy_hash = content_hashes(held, metadata)
    hashes = {
        "sshs_model_hash": model_hash,
        "sshs_legacy_hash": legacy_hash,
        "modelspec.hash_sha256": f"0x{model_hash}",
    }
    write_safetensors(path, held, {"format": "pt", **metadata, **hashes})
    return path


def _kind_of(keys: Mapping[str, object]) -> str | None:
    for kind, ends in _OWN.items():
        if any(key.endswith(tuple(f".{end}" for end in ends)) for key in keys):
            return kind
    return None
