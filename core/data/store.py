"""A content-addressed store of safetensors files: written once, whole or not at all, checked when read."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from ..disk import write_atomic
from ..errors import RunError
from ..serial import digest
from .stamps import Stamps, file_stamp
from .types import Sample

_PIXELS_VERSION = 1  # raise when read_frames gives other pixels for the same sample
_MASKS_VERSION = 1  # raise when read_mask gives others
_CHECKSUM, _KEY = "body_sha256", "key"
_CHECKED = "checked.json"  # stamps of files that were compared with their checksums


class DamagedEntryError(ValueError):
    """A cached file that is not what was written; the message is a clause that says why."""


def latent_key(sample: Sample, encoder_identity: str, mode: str = "full") -> str:
    """Key of a sample's latents: its pixels, the VAE, and what was made with them ("full": the posterior mean)."""
    return _key("latents", _PIXELS_VERSION, sample.content_key, encoder_identity, mode)


def vision_key(sample: Sample, conditioning: str, encoder_identity: str) -> str:
    """Key of the CLIP vision features of a sample's known frames."""
    held = (sample.content_key, conditioning, encoder_identity, *sample.given_keys[:1])
    return _key("vision", _PIXELS_VERSION, *held)


def mask_key(sample: Sample, latent_format: str) -> str:
    """Key of a sample's mask in latents: its pixels, since those are cut and flipped with them, and the mask's own."""
    return digest(["mask", _MASKS_VERSION, sample.content_key, *sample.mask_keys, latent_format], 32)


def text_key(caption: str, encoder_identity: str) -> str:
    """Key of a caption's embedding: the text and the text encoder."""
    return _key("text", 1, caption, encoder_identity)


@lru_cache(2**16)
def _key(*parts: str | int) -> str:
    """One digest is asked for several times on the way of a sample."""
    return digest(parts, 32)


@dataclass(frozen=True)
class Stored:
    """What a file of the store holds, without its tensors' values."""

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]


class Store:
    """Files `root/kind/ke/key.safetensors`. Any number of processes may read and write the same keys at once."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._checked = Stamps(self.root, _CHECKED)

    def look(self, kind: str, key: str) -> Stored | None:
        """What is stored under `key`; None if the file is absent, cut off, or does not match its checksum.

        A file is compared with its checksum once: `remember_checked` keeps that for the processes that follow, and only its
        header is read again until it changes. Training compares it once more when it reads it.
        """
        path, name = self.path(kind, key), _name(kind, key)
        try:
            stamp = file_stamp(path)
            if self._checked.has(name, stamp):
                with path.open("rb") as file:
                    size = int.from_bytes(file.read(8), "little")
                    return _stored(json.loads(file.read(min(size, stamp[0]))))
            data = self._read(kind, key)
            if data is None:
                return None
            decode_entry(data, key, needs_checksum=True)
            self._checked.put(name, stamp)
            return _stored(_split(data)[0])
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error.strerror or error}.") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    def is_checked(self, kind: str, key: str) -> bool:
        """Whether the file is there, and `look` would read its header alone."""
        try:
            return self._checked.has(_name(kind, key), file_stamp(self.path(kind, key)))
        except OSError:
            return False

    def remember_checked(self) -> None:
        """Keep on disk which files have been compared with their checksums. RunError if the disk refuses."""
        self._checked.save()

    def path(self, kind: str, key: str) -> Path:
        """Where the tensors of `key` lie, or would lie."""
        return self.root / _name(kind, key)

    def load(self, kind: str, key: str) -> dict[str, torch.Tensor] | None:
        """Tensors on the CPU, or None if the file is absent, cut off, or does not match its checksum.

        The file is read, not mapped: a mapped file could not be replaced on Windows while its tensors live.
        """
        data = self._read(kind, key)
        try:
            return None if data is None else decode_entry(data, key, needs_checksum=True)
        except DamagedEntryError:
            return None

    def metadata(self, kind: str, key: str) -> dict[str, str] | None:
        """The metadata given to `save`, or None if the file is absent or has no readable header."""
        data = self._read(kind, key)
        try:
            return None if data is None else {**_split(data)[0].get("__metadata__", {})}
        except (ValueError, AttributeError, TypeError):
            return None

    def has(self, kind: str, key: str) -> bool:
        """True if the file is there and as long as its header says. Reads the header only."""
        try:
            with self.path(kind, key).open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                size = os.fstat(file.fileno()).st_size
                if length > size:
                    return False
                header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            return size == 8 + length + max(ends, default=0)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def save(
        self, kind: str, key: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
    ) -> None:
        """Write the tensors under `key`, replacing what is there. Afterwards the whole file is there, or nothing new.

        Raises RunError if the disk is full or cannot be written.
        """
        plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
        _, body = _split(safetensors.torch.save(plain))
        told = {**(metadata or {}), _KEY: key, _CHECKSUM: hashlib.sha256(body).hexdigest()}
        data = safetensors.torch.save(plain, metadata=told)
        write_atomic(
            self.path(kind, key),
            lambda file: file.write(data),
            kept="what was cached so far is kept",
            is_same=lambda: self.load(kind, key) is not None,
        )

    def _read(self, kind: str, key: str) -> bytes | None:
        try:
            return self.path(kind, key).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunError(f"{self.path(kind, key)} cannot be read: {error.strerror or error}.") from error


def _name(kind: str, key: str) -> str:
    """A file's name relative to the store."""
    return f"{kind}/{key[:2]}/{key}.safetensors"


def read_entry(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a cached file on the CPU, compared with their checksum if there is one, as earlier versions wrote none.

    OSError if it can't be read, DamagedEntryError if it is not what was written.
    """
    return decode_entry(path.read_bytes(), path.stem)


def decode_entry(data: bytes, key: str, *, needs_checksum: bool = False) -> dict[str, torch.Tensor]:
    """The tensors in the file of `key`. DamagedEntryError if it is not what was written."""
    try:
        header, body = _split(data)
        told = header.get("__metadata__", {})
        if (needs_checksum or _CHECKSUM in told) and told.get(_CHECKSUM) != hashlib.sha256(body).hexdigest():
            raise DamagedEntryError("its content has another checksum than what was written")
        if told.get(_KEY, key) != key:
            raise DamagedEntryError("it is the file of another entry")
        return safetensors.torch.load(data)
    except (SafetensorError, ValueError, AttributeError, TypeError, KeyError, RecursionError) as error:
        if isinstance(error, DamagedEntryError):
            raise
        raise DamagedEntryError(f"it can't be decoded: {error}") from error


def _stored(header: dict[str, Any]) -> Stored:
    """What a header says."""
    shapes = {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    return Stored(shapes, header.get("__metadata__", {}))


def _split(data: bytes) -> tuple[dict[str, Any], memoryview]:
    """Header and body of a safetensors file: 8 bytes of length, JSON, tensors. ValueError if there is no header."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 + length:
        raise ValueError("cut off within the header")
    header = json.loads(data[8 : 8 + length])
    return header, memoryview(data)[8 + length :]
