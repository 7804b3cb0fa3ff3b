"""What is made of a sample, and under which keys it is kept. Shapes: C channels, F H W latent frames, height, width."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ..errors import CLIP_VISION, CONDITION_ON, ConfigError, DatasetError, ModelFileError, RunError
from ..facts import CLIP_DIM, CLIP_TOKENS, LATENT_CHANNELS, PATCH, PIXELS_PER_LATENT, latent_shape
from ..settings.dataset import Conditioning
from ..shortage import is_out_of_memory
from ..words import counted
from .conditioning import hide_unknown, known_frames
from .decode import read_frames, read_given, read_mask, read_paired
from .store import Store, latent_key, mask_key, vision_key
from .tiles import TILE, encode_in_tiles
from .types import Dataset, LatentEntry, Note, Sample, VideoEncoder, VisionEncoder
from .watch import Interrupt

FLOAT32 = 4  # bytes of a number in the store

_WHOLE = "full"  # the mode of the sample's own latents; the known frames' mode is their conditioning

_PAIRED = ("control", "reference")  # modes of what goes with a sample, see `Given.paired`

_KNOWN = "known"  # the known frames themselves, [K, H, W, 3]

Write = Callable[..., None]  # Store.save and its arguments, to be called now or soon


@dataclass(frozen=True, kw_only=True)
class PreparedSample:
    """A sample whose turn may come: what the store has of it, and pixels for what it has not."""

    sample: Sample
    notes: tuple[Note, ...]
    keys: dict[str, str]  # mode to the key of the latents in the store
    has_features: bool
    pixels: dict[str, torch.Tensor]  # mode to frames [F, H, W, 3], if anything is absent
    mask: torch.Tensor | None  # [F, H, W] of latents, if it is absent
    problem: DatasetError | None  # instead of pixels and mask


class Encodings:
    """Makes entries of samples: `prepare` on any thread, `entry` on the encoder's."""

    def __init__(
        self,
        encoder: VideoEncoder,
        conditioning: Conditioning,
        vision: VisionEncoder | None,
        store: Store,
        interrupt: Interrupt | None = None,
    ) -> None:
        self.encoder, self.vision, self.store = encoder, vision, store
        self._interrupt = interrupt  # asked while a file is read
        self.conditioning: Conditioning = conditioning
        self.known = known_frames(conditioning)
        # The Wan 2.2 VAE belongs to TI2V-5B, which is given its first frame in place of the first latent frame.
        self.encodes_known = bool(self.known) and encoder.latent_format == "wan2.1"
        if len(self.known) > 1 and not self.encodes_known:
            raise ConfigError(
                f"condition_on is '{conditioning}', but the VAE is that of Wan 2.2 TI2V-5B, which knows a first frame only: "
                "choose 'first frame'."
            )
        if vision is not None and not self.encodes_known:
            why = "the VAE is that of Wan 2.2 TI2V-5B, which takes none" if self.known else "condition_on is 'none'"
            raise ConfigError(
                f"a CLIP vision model is given, but {why}: leave it out, or, for Wan 2.1 image-to-video, choose its VAE and "
                "'first frame'.",
                about=CLIP_VISION,
            )
        self._modes = (_WHOLE, conditioning) if self.encodes_known else (_WHOLE,)
        self._made: dict[str, str] = {}  # key of whole pictures to the key of what was made; of equal files, once
        self._tiled: set[tuple[int, ...]] = set()  # (F, H, W) that memory is too small for

    def check_given(self, dataset: Dataset) -> None:
        """ConfigError for pictures that are named to be given, and would not be."""
        for sample in dataset.samples:
            given = sample.given
            if given is None or not (given.first or given.last):
                continue
            if self.encodes_known and (given.last is None or -1 in self.known):
                continue
            what = "last" if given.last and (given.first is None or self.encodes_known) else "first"
            if self.known and not self.encodes_known:
                why = "the VAE is that of Wan 2.2 TI2V-5B, which takes the clip's own first frame: leave them out"
            else:
                wanted = "'first frame' or 'first and last frame'" if what == "first" else "'first and last frame'"
                why = f"condition_on is '{self.conditioning}': leave them out, or, for image-to-video, choose {wanted}"
            raise ConfigError(
                f"the dataset names pictures for the {what} frame (of {sample.name}, for one), but {why}.",
                about=CONDITION_ON,
            )

    def num_bytes(self, sample: Sample) -> int:
        """Bytes that the pixels of a prepared sample take at most."""
        values = len(sample.frame_indices) * sample.height * sample.width * 3
        paired = values * len(sample.given.paired) if sample.given else 0
        return paired + (values * 5 if self.encodes_known else values)  # uint8, and the known frames in float32

    def stored_bytes(self, listed: Sample, *, absent_only: bool) -> dict[str, int]:
        """Bytes of what the store will have of a sample, about, by key; with `absent_only` of what it has not yet."""
        try:
            sample, _ = self._fit(listed)
        except DatasetError:
            return {}  # it is skipped
        if self.known and len(sample.frame_indices) == 1:
            return {}
        found = {}
        for mode in self._modes_of(sample):
            size = FLOAT32 * math.prod(self._shape(sample, mode))
            keys = (self._key(sample, mode, in_tiles=in_tiles) for in_tiles in (False, True))
            if not (absent_only and any(self.store.has("latents", key) for key in keys)):
                found[self._key(sample, mode)] = size
        if self.vision is not None:
            key = self._vision_key(sample)
            if not (absent_only and self.store.has("vision", key)):
                found[key] = FLOAT32 * CLIP_TOKENS * CLIP_DIM * len(self.known)
        if sample.mask is not None:
            key = self._mask_key(sample)
            if not (absent_only and self.store.has("masks", key)):
                found[key] = FLOAT32 * math.prod(self._shape(sample)[1:])
        return found

    def prepare_known(self, listed: Sample) -> PreparedSample | None:
        """As `prepare`, for a sample of which all is in the store and was checked before: then it costs next to nothing."""
        try:
            sample, _ = self._fit(listed)
        except DatasetError:
            return None
        keys = [("latents", self._key(sample, mode)) for mode in self._modes_of(sample)]
        keys += [("vision", self._vision_key(sample))] if self.vision is not None else []
        keys += [("masks", self._mask_key(sample))] if sample.mask else []
        if (self.known and len(sample.frame_indices) == 1) or not all(self.store.is_checked(*key) for key in keys):
            return None
        return self.prepare(listed)

    def prepare(self, listed: Sample) -> PreparedSample:
        """What is in the store, and the pixels if that is not all. DatasetError for a sample that cannot be used."""
        sample, notes = self._fit(listed)
        if self.known and len(sample.frame_indices) == 1:
            raise DatasetError(
                f"{sample.file.path} is a single picture: an image-to-video model learns from clips only; train pictures "
                "with a text-to-video model, or set condition_on to 'none'."
            )
        modes = self._modes_of(sample)
        keys = {mode: key for mode in modes if (key := self._stored_key(sample, mode))}
        has_features = self.vision is None or self._has_features(self._vision_key(sample))
        pixels, mask, problem = {}, None, None
        if sample.mask is not None and not self._has_mask(sample):
            try:
                mask = read_mask(sample, self.encoder.latent_format, self._interrupt)
            except DatasetError as error:
                problem = error
        if problem is None and (len(keys) < len(modes) or not has_features):
            try:
                frames = read_frames(sample, self._interrupt)  # [F, H, W, 3]
                pixels[_WHOLE] = frames
                given = read_given(sample, frames, self._interrupt)
                if self.vision is not None:
                    pixels[_KNOWN] = given[list(self.known)]
                if self.encodes_known and self.conditioning not in keys:
                    pixels[self.conditioning] = hide_unknown(given, self.conditioning)
                for name in sample.given.paired if sample.given else ():
                    if name not in keys:
                        pixels[name] = read_paired(sample, name, self._interrupt)
            except DatasetError as error:
                problem = error  # which is none if an equal file turns out to have been encoded by then
        return PreparedSample(
            sample=sample,
            notes=notes,
            keys=keys,
            has_features=has_features,
            pixels=pixels,
            mask=mask,
            problem=problem,
        )

    def entry(self, prepared: PreparedSample, write: Write) -> tuple[LatentEntry, list[Note]]:
        """The sample's entry, and what there is to say of it; encodes what is not in the store."""
        sample = prepared.sample
        keys = {mode: self._latents(prepared, mode, write) for mode in self._modes_of(sample)}
        features_key = self._features(prepared, write) if self.vision else ""
        known_key = keys.get(self.conditioning, "") if self.encodes_known else ""
        own_mask_key = self._mask(prepared, write) if sample.mask else ""
        entry = LatentEntry(
            path=str(self.store.path("latents", keys[_WHOLE])),
            key=keys[_WHOLE],
            name=sample.name,
            caption=sample.file.caption,
            shape=self._shape(sample),
            repeats=sample.repeats,
            held_out=sample.held_out,
            known_path=str(self.store.path("latents", known_key)) if known_key else "",
            known_key=known_key,
            vision_path=str(self.store.path("vision", features_key)) if features_key else "",
            vision_key=features_key,
            more_captions=sample.file.more_captions,
            treatment=sample.treatment,
            mask_path=str(self.store.path("masks", own_mask_key)) if own_mask_key else "",
            mask_key=own_mask_key,
            **self._paired_fields(keys),
        )
        in_tiles = [key for mode, key in keys.items() if key != self._key(sample, mode)]
        return entry, [*prepared.notes, *([self._tiled_note(sample, in_tiles)] if in_tiles else [])]

    def _modes_of(self, sample: Sample) -> tuple[str, ...]:
        """What of a sample has latents."""
        return (*self._modes, *(sample.given.paired if sample.given else ()))

    def _paired_fields(self, keys: Mapping[str, str]) -> dict[str, str]:
        """Where the latents lie of what goes with a sample, for its entry."""
        found = {f"{name}_key": keys[name] for name in _PAIRED if name in keys}
        return found | {f"{name}_path": str(self.store.path("latents", keys[name])) for name in _PAIRED if name in keys}

    def _fit(self, sample: Sample) -> tuple[Sample, tuple[Note, ...]]:
        """The sample in a size that the encoder's model can patch, and a note if that cuts something off."""
        latent_format = self.encoder.latent_format
        step = PATCH * PIXELS_PER_LATENT[latent_format]
        width, height = sample.width // step * step, sample.height // step * step
        if not width or not height:
            raise DatasetError(
                f"{sample.file.path} cannot be used: {sample.width}x{sample.height} is smaller than {step} pixels on a "
                f"side, the least for the {latent_format} VAE; use a larger file or allow upscaling."
            )
        if (width, height) == (sample.width, sample.height):
            return sample, ()
        reason = f"{sample.width}x{sample.height} becomes {width}x{height}: {latent_format} needs multiples of {step}"
        note = Note(name=sample.name, action="cropped", reason=reason)
        return dataclasses.replace(sample, width=width, height=height), (note,)

    def _shape(self, sample: Sample, mode: str = _WHOLE) -> tuple[int, int, int, int]:
        """(C, F, H, W) that the latents have to have."""
        channels = LATENT_CHANNELS[self.encoder.latent_format]
        num_frames = 1 if mode == "reference" else len(sample.frame_indices)
        return latent_shape(channels, num_frames, sample.height, sample.width)

    def _key(self, sample: Sample, mode: str, *, in_tiles: bool = False) -> str:
        if sample.given and mode in _PAIRED:
            mode = f"{mode} {sample.given.paired_key(mode)}"
        elif mode != _WHOLE and sample.given:
            mode = f"{mode}, given {sample.given.content_key}"
        mode = f"{mode}, tiles of {TILE}" if in_tiles else mode
        return latent_key(sample, self.encoder.identity, mode)

    def _vision_key(self, sample: Sample) -> str:
        assert self.vision is not None
        return vision_key(sample, self.conditioning, self.vision.identity)

    def _mask_key(self, sample: Sample) -> str:
        return mask_key(sample, self.encoder.latent_format)

    def _has_mask(self, sample: Sample) -> bool:
        stored = self.store.look("masks", self._mask_key(sample))
        return stored is not None and stored.shapes.get("mask") == self._shape(sample)[1:]

    def _mask(self, prepared: PreparedSample, write: Write) -> str:
        """The key of the sample's mask in latents, which is kept unless it is there."""
        sample, key = prepared.sample, self._mask_key(prepared.sample)
        if prepared.mask is not None and key not in self._made:
            write(self.store.save, "masks", key, {"mask": prepared.mask}, {"name": sample.name})
            self._made[key] = key
        elif prepared.problem and key not in self._made and not self._has_mask(sample):
            raise prepared.problem
        return key

    def _stored_key(self, sample: Sample, mode: str) -> str:
        """The key under which the store has the latents, of the whole picture before those of tiles; "" if it has none."""
        for in_tiles in (False, True):
            key = self._key(sample, mode, in_tiles=in_tiles)
            stored = self.store.look("latents", key)
            if stored and stored.shapes.get("latents") == self._shape(sample, mode):
                return key
        return ""

    def _has_features(self, key: str) -> bool:
        stored = self.store.look("vision", key)
        return stored is not None and "features" in stored.shapes

    def _latents(self, prepared: PreparedSample, mode: str, write: Write) -> str:
        """The key of the sample's latents in this mode, which are encoded unless they are there."""
        sample, whole_key = prepared.sample, self._key(prepared.sample, mode)
        found = prepared.keys.get(mode) or self._made.get(whole_key)
        if found:
            return found
        if prepared.problem:
            raise prepared.problem
        latents, in_tiles = self._encode(sample, prepared.pixels[mode])
        shape = self._shape(sample, mode)
        if tuple(latents.shape) != shape:
            raise ModelFileError(
                f"The VAE does not fit: for {sample.name} it gave latents of the shape {tuple(latents.shape)}, but "
                f"{self.encoder.latent_format} latents are {shape}: choose the VAE that belongs to the model."
            )
        latents = latents.detach().to("cpu", torch.float32)
        if not torch.isfinite(latents).all():
            raise ModelFileError(
                f"The VAE gave values that are not finite for {sample.name}: run it in bf16 or fp32, or check its file."
            )
        key = self._key(sample, mode, in_tiles=in_tiles)
        told = {"name": sample.name, "encoder": self.encoder.identity}
        write(self.store.save, "latents", key, {"latents": latents}, told | ({"tile": str(TILE)} if in_tiles else {}))
        self._made[whole_key] = key
        return key

    def _encode(self, sample: Sample, frames: torch.Tensor) -> tuple[torch.Tensor, bool]:
        """Latents [C, F, H, W], and whether they are of tiles: where this size has run out of memory."""
        size = tuple(frames.shape[:3])
        try:
            if size not in self._tiled:
                return self.encoder.encode(frames), False
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if max(size[1:]) <= TILE:
                raise _no_memory(sample, size, "") from error
            self._tiled.add(size)
        try:
            return encode_in_tiles(self.encoder.encode, frames, PIXELS_PER_LATENT[self.encoder.latent_format]), True
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise _no_memory(sample, size, f", even in tiles of {TILE} pixels") from error

    def _tiled_note(self, sample: Sample, keys: list[str]) -> Note:
        paths = " and ".join(str(self.store.path("latents", key)) for key in keys)
        reason = (
            f"memory was too small for {counted(len(sample.frame_indices), 'frame')} of {sample.width}x{sample.height}: "
            f"encoded in tiles of {TILE} pixels, whose latents differ a little from those of the whole picture; to encode it "
            f"whole, free memory and delete {paths}"
        )
        return Note(name=sample.name, action="note", reason=reason)

    def _features(self, prepared: PreparedSample, write: Write) -> str:
        """The key of the CLIP features of the known frames, which are encoded unless they are there."""
        assert self.vision is not None
        sample, key = prepared.sample, self._vision_key(prepared.sample)
        if prepared.has_features or key in self._made:
            return key
        if prepared.problem:
            raise prepared.problem
        features = torch.cat([self.vision.encode(frame) for frame in prepared.pixels[_KNOWN]])  # [257 n, 1280]
        features = features.detach().to("cpu", torch.float32)
        expected = (CLIP_TOKENS * len(self.known), CLIP_DIM)
        if tuple(features.shape) != expected:
            raise ModelFileError(
                f"The CLIP vision model does not fit: for {sample.name} it gave features of the shape "
                f"{tuple(features.shape)}, but Wan 2.1 needs {expected}: load clip_vision_h.safetensors."
            )
        if not torch.isfinite(features).all():
            raise ModelFileError(f"The CLIP vision model gave values that are not finite for {sample.name}.")
        told = {"name": sample.name, "encoder": self.vision.identity}
        write(self.store.save, "vision", key, {"features": features}, told)
        self._made[key] = key
        return key


def _no_memory(sample: Sample, size: tuple[int, ...], tried: str) -> RunError:
    num_frames, height, width = size
    return RunError(
        f"The VAE ran out of memory for {sample.name}, {counted(num_frames, 'frame')} of {width}x{height}{tried}: close "
        "other programs that use the GPU, or use fewer frames; what was cached so far is kept."
    )
