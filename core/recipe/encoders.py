"""Encoders that are loaded when there is something to encode: their identities are remembered between runs."""

import gc
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from ..disk import write_atomic
from ..encoders.text import Umt5TextEncoder, load_text_encoder
from ..encoders.tokenizer import TOKENIZER_FILE, TOKENIZER_PLACES
from ..encoders.vae import WanVideoEncoder, default_dtype, load_video_encoder
from ..encoders.vision import HOST_DTYPE, ClipVisionEncoder, load_vision_encoder
from ..facts import LatentFormat
from ..gpu_limit import limit
from ..launch.worker import device_lock
from ..locks import FileLock
from ..wan.files import find_files

_VERSION = 1  # raise when core/encoders/identity.py gives another identity for the same file

T = TypeVar("T", WanVideoEncoder, Umt5TextEncoder, ClipVisionEncoder)
Say = Callable[[str], None]


class NotEncodedError(Exception):
    """Something is not in the cache, and encoders may not be loaded here."""


class Turn:
    """The right to use a GPU, taken when an encoder is loaded onto it, and given back by `release`."""

    def __init__(self, device: torch.device, wait: Callable[[FileLock, torch.device], None] | None):
        self.device = device
        self._wait = wait  # None: no encoder may be loaded
        self._lock: FileLock | None = None

    def take(self) -> None:
        """Wait until no run trains on the GPU; the CPU is shared. NotEncodedError if encoders may not be loaded."""
        if self._wait is None:
            raise NotEncodedError
        if self._lock is None and self.device.type == "cuda":
            self._lock = device_lock(self.device)
            self._wait(self._lock, self.device)
            limit(self.device)

    def release(self) -> None:
        """Let others have it."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


@dataclass
class _Remembered(Generic[T]):
    """An encoder by its path. `facts` (its identity and so on) come from the index as long as its files are the same."""

    path: Path
    turn: Turn
    index_path: Path
    say: Say
    load: Callable[[], T]
    read_facts: Callable[[T], dict[str, Any]]
    mode: str  # what else decides the identity
    _encoder: T | None = field(default=None, init=False)

    @property
    def facts(self) -> dict[str, Any]:
        """Identity and what else is known without the weights."""
        known = _read_index(self.index_path).get(self._key)
        if known and known["files"] == _stamps(self.path):
            return known["facts"]
        return self.read_facts(self.encoder)

    @property
    def encoder(self) -> T:
        """The encoder itself; loads it."""
        if self._encoder is None:
            self.turn.take()
            self.say(f"loading {self.path.name} on {self.turn.device}")
            stamps = _stamps(self.path)
            self._encoder = self.load()
            index = _read_index(self.index_path)
            index[self._key] = {"files": stamps, "facts": self.read_facts(self._encoder)}
            text = json.dumps(index, indent=1)
            write_atomic(self.index_path, lambda file: file.write(text.encode()))
        return self._encoder

    @property
    def _key(self) -> str:
        return f"{self.path} {self.mode} {_VERSION}"

    def unload(self) -> None:
        """Free its memory, if it was loaded."""
        if self._encoder is None:
            return
        self._encoder = None
        gc.collect()
        if self.turn.device.type == "cuda":
            torch.cuda.empty_cache()


class LazyVideoEncoder:
    """A Wan VAE as `core.data.types.VideoEncoder`."""

    def __init__(self, path: Path, turn: Turn, index_path: Path, say: Say):
        dtype = default_dtype(turn.device)
        self._remembered: _Remembered[WanVideoEncoder] = _Remembered(
            path,
            turn,
            index_path,
            say,
            load=lambda: load_video_encoder(path, turn.device, dtype),
            read_facts=lambda vae: {"identity": vae.identity, "latent_format": vae.latent_format},
            mode=str(dtype),
        )
        facts = self._remembered.facts
        self.identity: str = facts["identity"]
        self.latent_format: LatentFormat = facts["latent_format"]

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """[F, H, W, 3], uint8 or 0..1, to latents [C, f, h, w] float32 on the CPU."""
        return self._remembered.encoder.encode(frames)

    def unload(self) -> None:
        """Free its memory."""
        self._remembered.unload()


class LazyVisionEncoder:
    """A CLIP vision model as `core.data.types.VisionEncoder`."""

    def __init__(self, path: Path, turn: Turn, index_path: Path, say: Say):
        self._remembered: _Remembered[ClipVisionEncoder] = _Remembered(
            path,
            turn,
            index_path,
            say,
            load=lambda: load_vision_encoder(path, turn.device),
            read_facts=lambda encoder: {"identity": encoder.identity},
            mode=str(HOST_DTYPE),
        )
        self.identity: str = self._remembered.facts["identity"]

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """[H, W, 3] uint8 to [257, 1280] float32 on the CPU."""
        return self._remembered.encoder.encode(image)

    def unload(self) -> None:
        """Free its memory."""
        self._remembered.unload()


class LazyTextEncoder:
    """A umT5 encoder as `core.data.types.TextEncoder`."""

    def __init__(self, path: Path, turn: Turn, index_path: Path, say: Say, tokenizer: Path | None = None):
        self._remembered: _Remembered[Umt5TextEncoder] = _Remembered(
            path,
            turn,
            index_path,
            say,
            load=lambda: load_text_encoder(path, turn.device, tokenizer=tokenizer),
            read_facts=lambda encoder: {"identity": encoder.identity, "dim": encoder.dim},
            mode="float32" if tokenizer is None else f"float32 {_stamps(tokenizer)}",
        )
        facts = self._remembered.facts
        self.identity: str = facts["identity"]
        self.dim: int = facts["dim"]

    def encode(self, caption: str) -> tuple[torch.Tensor, bool]:
        """Caption to ([num_tokens, dim] float32 on the CPU, was_cut)."""
        return self._remembered.encoder.encode(caption)

    def encode_batch(self, captions: Sequence[str]) -> list[tuple[torch.Tensor, bool]]:
        """As `encode` for each, several at once."""
        return self._remembered.encoder.encode_batch(captions)

    def unload(self) -> None:
        """Free its memory."""
        self._remembered.unload()


def _read_index(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _stamps(path: Path) -> list[list[Any]]:
    """Name, size and time of every file of the weights, and of a tokenizer beside them."""
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file()]
    else:
        files = list(find_files(path)) if ".safetensors" in path.name else [path]
    folder = path if path.is_dir() else path.parent
    beside = [folder / place / TOKENIZER_FILE for place in TOKENIZER_PLACES]
    files += [file for file in beside if file.is_file()]
    stats = [(file, file.stat()) for file in sorted(set(files))]
    return [[str(file), stat.st_size, stat.st_mtime_ns] for file, stat in stats]
