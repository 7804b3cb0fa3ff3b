"""The data that travels: what was asked of a folder, what was found, and where its encodings lie on disk.

All of it is frozen and small (paths, digests, numbers): no pixels, no tensors.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from ..errors import ConfigError
from ..limits import check_amount, check_texts
from ..names import in_short
from ..serial import digest
from .conditioning import Conditioning

FrameSampling = Literal["head", "chunk", "slide", "uniform", "full", "even"]
Action = Literal["dropped", "skipped", "shortened", "padded", "cropped", "resampled", "note"]

# Upper limits of options: far above what can be trained on, and below what a machine chokes on while it counts.
MAX_OPTIONS = {
    "width": 16384,
    "height": 16384,
    "num_frames": 10_001,
    "windows_per_clip": 100_000,
    "slide_stride": 2**31,
    "repeats": 1_000_000,
}

LATENT_CHANNELS = {"wan2.1": 16, "wan2.2": 48}


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """How a folder becomes samples. All sizes in pixels, all frame counts after resampling to `fps`."""

    width: int = 832  # width and height give the pixel area; with buckets the aspect follows each file
    height: int = 480
    num_frames: int = 33  # frames of a sample taken from a clip; 4n+1
    fps: float = 16.0  # frames are resampled to this rate so that motion keeps its speed
    frame_sampling: FrameSampling = "head"
    windows_per_clip: int = 4  # "uniform": number of windows, evenly placed
    slide_stride: int = 16  # "slide": frames between the starts of two windows
    aspect_buckets: bool = True  # off: everything is scaled and centre-cropped to width x height
    upscale: bool = True  # off: files smaller than the bucket keep their size (rounded down to 16)
    repeats: int = 1
    trigger_word: str = ""  # replaces [trigger] in captions; put in front where neither is present
    default_caption: str = ""  # for files without a caption file
    caption_extension: str = ".txt"
    bad_files: Literal["skip", "refuse"] = "skip"  # unreadable or truncated files
    short_clips: Literal["shorten", "skip", "refuse"] = "shorten"  # clips with fewer frames than num_frames
    held_out: int = 0  # number of samples kept out of training for the validation loss

    def __post_init__(self) -> None:
        for name, limit in MAX_OPTIONS.items():
            if getattr(self, name) > limit:
                raise ConfigError(f"{name} is {getattr(self, name)}, and {limit} is the limit: use less.")
        for name in ("width", "height"):
            _check_side(name, getattr(self, name))
        if self.num_frames < 1 or self.num_frames % 4 != 1:
            low = max(1, (self.num_frames - 1) // 4 * 4 + 1)
            raise ConfigError(
                f"num_frames is {self.num_frames}, but Wan needs 4n+1 frames (1, 5, 9, ..., 33, 81): "
                f"use {low} or {low + 4}."
            )
        if not 1.0 <= self.fps <= 240.0:
            raise ConfigError(
                f"fps is {self.fps}; it must lie between 1 and 240 (Wan 2.1 and A14B were trained at 16)."
            )
        for name in ("windows_per_clip", "slide_stride", "repeats"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not re.fullmatch(r"\.?[\w-]{1,30}", self.caption_extension):
            raise ConfigError(
                f"caption_extension is '{in_short(self.caption_extension)}': give the ending of the caption files' names, such "
                "as .txt."
            )
        if self.held_out < 0:
            raise ConfigError(f"held_out must be 0 or more, got {self.held_out}.")


def _check_side(name: str, pixels: int) -> None:
    if pixels < 16 or pixels % 16:
        raise ConfigError(
            f"{name} is {pixels}, but Wan needs a multiple of 16: use {max(16, pixels // 16 * 16)}"
            f" or {max(16, (pixels // 16 + 1) * 16)}."
        )


@dataclass(frozen=True, kw_only=True)
class MediaFile:
    """One readable image or clip, as probed."""

    path: str  # absolute
    name: str  # relative to the dataset folder, with forward slashes
    sha256: str  # of the file's bytes
    kind: Literal["image", "video"]
    width: int  # as displayed, after rotation
    height: int
    num_frames: int  # frames really there; 1 for an image
    fps: float  # true mean rate; 0 for an image
    caption: str  # with the trigger word put in


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One training sample: which frames of which file, scaled and cropped to which bucket."""

    file: MediaFile
    frame_indices: tuple[int, ...]  # source frames in decoding order, after resampling; len is 4n+1
    width: int  # bucket size, multiples of 16
    height: int
    repeats: int = 1
    held_out: bool = False

    @property
    def name(self) -> str:
        """File name, and the window of source frames if it is a clip."""
        if self.file.kind == "image":
            return self.file.name
        return f"{self.file.name}[{self.frame_indices[0]}:{self.frame_indices[-1] + 1}]"

    @property
    def content_key(self) -> str:
        """Digest of everything that decides the pixels of this sample."""
        return digest([self.file.sha256, self.file.kind, list(self.frame_indices), self.width, self.height], 32)


@dataclass(frozen=True, kw_only=True)
class Note:
    """Something that happened to one file, told to the user. Nothing vanishes without one."""

    name: str
    action: Action
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.action}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A scanned folder."""

    folder: str
    options: DatasetOptions
    samples: tuple[Sample, ...]
    notes: tuple[Note, ...]

    def __post_init__(self) -> None:
        check_amount((sample.repeats for sample in self.samples), self.folder)
        check_texts("the dataset", words=(self.options.trigger_word,), captions=(s.file.caption for s in self.samples))

    @property
    def digest(self) -> str:
        """Digest of the content: pixels, captions, repeats; not of paths or names."""
        return digest([[s.content_key, s.file.caption, s.repeats, s.held_out] for s in self.samples])

    @property
    def captions(self) -> tuple[str, ...]:
        """The distinct captions, in order of first use."""
        return tuple(dict.fromkeys(s.file.caption for s in self.samples))

    def __repr__(self) -> str:
        return f"Dataset({self.folder!r}, {len(self.samples)} samples, {self.digest})"


@dataclass(frozen=True, kw_only=True)
class LatentEntry:
    """One sample's latents on disk: key `latents`, [C, F, H, W] float32, normalised as the DiT expects."""

    path: str
    key: str  # content key of pixels, encoder and mode
    name: str
    caption: str
    shape: tuple[int, int, int, int]  # C, F, H, W
    repeats: int = 1
    held_out: bool = False
    known_path: str = ""  # image-to-video: key `latents`, of the known frames with mid-grey elsewhere, same shape
    known_key: str = ""
    vision_path: str = ""  # Wan 2.1 image-to-video: key `features`, [257 for each known frame, 1280] float32
    vision_key: str = ""


@dataclass(frozen=True, kw_only=True)
class LatentCache:
    """What CacheLatents hands on."""

    entries: tuple[LatentEntry, ...]
    encoder: str  # identity of the VAE
    latent_format: Literal["wan2.1", "wan2.2"]
    fps: float
    trigger_word: str = ""
    conditioning: Conditioning = "none"

    @property
    def digest(self) -> str:
        """Digest of the content, independent of where the files lie."""
        return digest([[e.key, e.known_key, e.vision_key, e.caption, e.repeats, e.held_out] for e in self.entries])

    def __repr__(self) -> str:
        return f"LatentCache({len(self.entries)} samples, {self.latent_format}, {self.digest})"


@dataclass(frozen=True, kw_only=True)
class TextEntry:
    """One caption's embedding on disk: key `context`, [num_tokens, dim] float32, trimmed of padding."""

    path: str
    key: str
    caption: str
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class TextCache:
    """What CacheT5 hands on. Always holds the empty caption too, for caption dropout."""

    entries: tuple[TextEntry, ...]
    encoder: str  # identity of the text encoder
    dim: int

    @property
    def by_caption(self) -> dict[str, TextEntry]:
        """Caption to entry."""
        return {e.caption: e for e in self.entries}

    @property
    def digest(self) -> str:
        """Digest of the content, independent of where the files lie."""
        return digest(sorted(e.key for e in self.entries))

    def __repr__(self) -> str:
        return f"TextCache({len(self.entries)} captions, dim {self.dim}, {self.digest})"


class VideoEncoder(Protocol):
    """A Wan VAE behind a small door. In the graph it is the host's VAE, elsewhere diffusers'."""

    identity: str  # digest of the weights; part of every cache key
    latent_format: Literal["wan2.1", "wan2.2"]

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """[F, H, W, 3], uint8 or float 0..1, to the posterior mean, normalised, [C, (F-1)//4+1, H/8, W/8] float32.

        The result is on the CPU. It is that of the whole picture, never of tiles: where memory is too small the error of
        that (see `core.data.shortage`) is raised.
        """
        ...


class VisionEncoder(Protocol):
    """A CLIP vision model behind a small door: ViT-H/14, as Wan 2.1 image-to-video wants it."""

    identity: str

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """[H, W, 3] uint8 to the hidden states before the last layer, [257, 1280] float32 on the CPU."""
        ...


class TextEncoder(Protocol):
    """A umT5 encoder behind a small door."""

    identity: str
    dim: int

    def encode(self, caption: str) -> tuple[torch.Tensor, bool]:
        """Caption to ([num_tokens <= 512, dim] float32 on the CPU, was_cut): no padding, no prompt weights."""
        ...

    def encode_batch(self, captions: Sequence[str]) -> list[tuple[torch.Tensor, bool]]:
        """As `encode` for each, within rounding, and in the same order; faster."""
        ...
