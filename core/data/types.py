"""The data that travels: what was asked of a folder, what was found, and where its encodings lie on disk.

All of it is frozen and small (paths, digests, numbers): no pixels, no tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch

from ..facts import LatentFormat
from ..limits import check_amount, check_texts
from ..serial import digest, to_dict
from ..settings.dataset import Conditioning, DatasetOptions
from ..settings.samples import SamplePrompt
from .class_word import with_class_word

Action = Literal["dropped", "skipped", "shortened", "padded", "cropped", "resampled", "note"]


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
    more_captions: tuple[str, ...] = ()  # further ones; each time one of all of them is drawn
    read_as: tuple[str, ...] = ()  # how its pixels are read, beyond plain decoding: see `reading.py`


@dataclass(frozen=True, kw_only=True)
class Mask:
    """Where the loss of a sample counts: white, 1; black, `least`."""

    file: MediaFile | None  # a picture, or a clip with as many frames as the sample's own; None: the alpha of that one
    inverted: bool = False  # black is 1
    least: float = 0.0

    @property
    def content_key(self) -> str:
        """Digest of what it makes of a sample's pixels."""
        of_file = [self.file.sha256, list(self.file.read_as)] if self.file else []
        return digest(["mask", of_file, self.inverted, self.least], 32)


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a model is given of a sample beside noise and caption."""

    first: MediaFile | None = None  # image-to-video: a picture in place of the clip's own first frame
    last: MediaFile | None = None  # and of its last
    control: MediaFile | None = (
        None  # what each frame is led by: depth, pose, edges; a clip with as many frames, or a picture
    )
    reference: MediaFile | None = None  # a picture of what is to be seen

    @property
    def content_key(self) -> str:
        """Digest of the pictures in place of frames."""
        files = (self.first, self.last)
        return digest(["given", *([file.sha256, list(file.read_as)] if file else [] for file in files)], 32)

    @property
    def paired(self) -> dict[str, MediaFile]:
        """What has latents of its own, by what it is."""
        found = {"control": self.control, "reference": self.reference}
        return {name: file for name, file in found.items() if file is not None}

    def paired_key(self, name: str) -> str:
        """Digest of one of them."""
        file = self.paired[name]
        return digest([name, file.sha256, list(file.read_as)], 32)


CENTER = (0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """What training makes of a sample, whatever its pixels are."""

    loss_weight: float = 1.0  # what its loss counts beside that of the others
    caption_dropout: float | None = None  # the chance that it is trained with the empty caption; None: that of the run
    is_regularization: bool = False  # shown to keep what the model knows, not to teach
    trigger: str = ""  # the word in whose place the class word stands
    class_word: str = ""  # a plain word for what the trigger names; "": none

    def class_captions(self, captions: Sequence[str]) -> tuple[str, ...]:
        """Each of a sample's captions with the class word in place of the trigger; () unless all of them have the trigger."""
        found = tuple(with_class_word(caption, self.trigger, self.class_word) for caption in captions)
        return found if all(found) else ()


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One training sample: which frames of which file, scaled and cropped to which bucket."""

    file: MediaFile
    frame_indices: tuple[int, ...]  # source frames in decoding order, after resampling; len is 4n+1
    width: int  # bucket size, multiples of 16
    height: int
    repeats: int = 1
    held_out: bool = False
    treatment: Treatment = Treatment()
    crop: tuple[float, float] = CENTER  # where the part that is kept lies: 0, 0 is top left, 1, 1 is bottom right
    follows_motion: bool = False  # in place of `crop`: where the clip moves most
    flip: str = ""  # "x": mirrored left to right, "y": upside down, "xy": both
    mask: Mask | None = None
    given: Given | None = None

    dataset: str = ""  # its dataset's name, where several are joined
    is_of_sizes: bool = False  # whether its file is used at several sizes

    @property
    def name(self) -> str:
        """File name, with the window of source frames if it is a clip, and what tells it from others of the file."""
        name = f"{self.dataset}/{self.file.name}" if self.dataset else self.file.name
        if self.file.kind != "image":
            name = f"{name}[{self.frame_indices[0]}:{self.frame_indices[-1] + 1}]"
        name = f"{name} at {self.width}x{self.height}" if self.is_of_sizes else name
        return f"{name} flipped {self.flip}" if self.flip else name

    @cached_property
    def content_key(self) -> str:
        """Digest of everything that decides the pixels of this sample.

        What version 0.1.0 had not is in it only where it is used, so that what was cached before stays valid.
        """
        first = [self.file.sha256, self.file.kind, list(self.frame_indices), self.width, self.height]
        crop = "motion" if self.follows_motion else list(self.crop)
        later = {
            "read_as": list(self.file.read_as),
            "crop": crop if crop != list(CENTER) else "",
            "flip": self.flip,
        }
        return digest(
            [*first, {name: value for name, value in later.items() if value}] if any(later.values()) else first, 32
        )

    @property
    def mask_keys(self) -> tuple[str, ...]:
        """The key of its mask; () where it has none."""
        return (self.mask.content_key,) if self.mask else ()

    @property
    def given_keys(self) -> tuple[str, ...]:
        """The keys of what is given with it; () where it has none."""
        if self.given is None:
            return ()
        return (self.given.content_key, *(self.given.paired_key(name) for name in self.given.paired))


def later_of(more_captions: tuple[str, ...], treatment: Treatment, *others: str) -> list[object]:
    """What digests hold of what version 0.1.0 had not: nothing, where there is none of it."""
    held = [list(more_captions), {} if treatment == Treatment() else to_dict(treatment), *others]
    return held if any(held) else []


@dataclass(frozen=True, kw_only=True)
class Note:
    """Something that happened to one file, told to the user. Nothing vanishes without one."""

    name: str
    action: Action
    reason: str
    dataset: str = ""  # the name of the file's dataset, where several are joined

    @property
    def where(self) -> str:
        """The file, with its dataset."""
        return f"{self.dataset}/{self.name}" if self.dataset else self.name

    def __str__(self) -> str:
        return f"{self.where}: {self.action}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class JoinedPart:
    """One of the datasets that are joined."""

    name: str  # that its samples and notes have as theirs
    folder: str
    options: DatasetOptions


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A scanned folder, or several of them joined (`core/data/join.py`)."""

    folder: str  # of several: a text that names them
    options: DatasetOptions  # of several: those of the first; `options_of` knows those of a sample
    samples: tuple[Sample, ...]
    notes: tuple[Note, ...]
    parts: tuple[JoinedPart, ...] = ()  # where several are joined

    def __post_init__(self) -> None:
        check_amount((sample.repeats for sample in self.samples), self.folder)
        words = (self.trigger_words, *(part.options.class_word for part in self.sources))
        check_texts("the dataset", words=words, captions=self.captions)

    @property
    def sources(self) -> tuple[JoinedPart, ...]:
        """The folders it is made of, one or several."""
        return self.parts or (JoinedPart(name="", folder=self.folder, options=self.options),)

    def options_of(self, sample: Sample) -> DatasetOptions:
        """The options that one of the samples was read with."""
        return next((part.options for part in self.parts if part.name == sample.dataset), self.options)

    @property
    def trigger_words(self) -> str:
        """The trigger words, each once, with commas between them."""
        return ", ".join(dict.fromkeys(filter(None, (part.options.trigger for part in self.sources))))

    @property
    def digest(self) -> str:
        """Digest of the content: pixels, captions, repeats; not of paths or names."""
        later = [later_of(s.file.more_captions, s.treatment, *s.mask_keys, *s.given_keys) for s in self.samples]
        first = [[s.content_key, s.file.caption, s.repeats, s.held_out] for s in self.samples]
        return digest([[*known, *more] for known, more in zip(first, later, strict=True)])

    @property
    def captions(self) -> tuple[str, ...]:
        """The distinct captions, in order of first use; with a class word also those that have it."""
        found: list[str] = []
        for sample in self.samples:
            own = (sample.file.caption, *sample.file.more_captions)
            found += [*own, *sample.treatment.class_captions(own)]
        return tuple(dict.fromkeys(found))

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
    more_captions: tuple[str, ...] = ()
    treatment: Treatment = Treatment()
    mask_path: str = ""  # key `mask`, [F, H, W] float32: what the error at each latent counts
    mask_key: str = ""
    control_path: str = ""  # key `latents`, of the control clip, same shape
    control_key: str = ""
    reference_path: str = ""  # key `latents`, of the reference picture, [C, 1, H, W]
    reference_key: str = ""

    @property
    def captions(self) -> tuple[str, ...]:
        """The first, then the further ones."""
        return (self.caption, *self.more_captions)

    @property
    def class_captions(self) -> tuple[str, ...]:
        """The same with the class word in place of the trigger; () where it has none."""
        return self.treatment.class_captions(self.captions)


@dataclass(frozen=True, kw_only=True)
class LatentCache:
    """What CacheLatents hands on."""

    entries: tuple[LatentEntry, ...]
    encoder: str  # identity of the VAE
    latent_format: LatentFormat
    fps: float  # of the clips
    trigger_word: str = ""  # of several datasets: all of them, with commas
    conditioning: Conditioning = "none"
    more_fps: tuple[float, ...] = ()  # of the other clips, where joined datasets have several rates

    @property
    def digest(self) -> str:
        """Digest of the content, independent of where the files lie."""
        first = [[e.key, e.known_key, e.vision_key, e.caption, e.repeats, e.held_out] for e in self.entries]
        return digest(
            [
                [
                    *known,
                    *later_of(
                        e.more_captions, e.treatment, e.mask_key, *filter(None, (e.control_key, e.reference_key))
                    ),
                ]
                for known, e in zip(first, self.entries, strict=True)
            ]
        )

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
    prompts: tuple[SamplePrompt, ...] = ()  # of previews; their texts are among the entries

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
    """What the data needs of a Wan VAE. In ComfyUI that is the VAE of the graph, without ComfyUI diffusers' one."""

    identity: str  # digest of the weights; part of every cache key
    latent_format: LatentFormat

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """[F, H, W, 3], uint8 or float 0..1, to the normalised posterior mean, [C, f, h, w] float32: see `facts.latent_shape`.

        The result is on the CPU. The frames are encoded whole, never in tiles: where memory is too small for that, it
        raises an out-of-memory error, by which `core.shortage` knows to try tiles.
        """
        ...


class VisionEncoder(Protocol):
    """What the data needs of a CLIP vision model: ViT-H/14, as Wan 2.1 image-to-video wants it."""

    identity: str

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """[H, W, 3] uint8 to the hidden states before the last layer, [257, 1280] float32 on the CPU."""
        ...


class TextEncoder(Protocol):
    """What the data needs of a umT5 text encoder."""

    identity: str
    dim: int

    def encode(self, caption: str) -> tuple[torch.Tensor, bool]:
        """Caption to ([num_tokens <= 512, dim] float32 on the CPU, was_cut): no padding, no prompt weights."""
        ...

    def encode_batch(self, captions: Sequence[str]) -> list[tuple[torch.Tensor, bool]]:
        """As `encode` for each, within rounding, and in the same order; faster."""
        ...
