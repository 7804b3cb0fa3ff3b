"""Encoding what is not in the store yet. Shapes: C channels, F H W latent frames, height, width, S tokens, D width."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch

from ..errors import ConfigError, DatasetError, ModelFileError
from .conditioning import Conditioning, hide_unknown, known_frames
from .decode import read_frames
from .store import Store, latent_key, text_key, vision_key
from .types import (
    LATENT_CHANNELS,
    Dataset,
    LatentCache,
    LatentEntry,
    Note,
    Sample,
    TextCache,
    TextEncoder,
    TextEntry,
    VideoEncoder,
    VisionEncoder,
)

OnItem = Callable[[int, int, str], None]  # items done, items in all, name of the last one

_SPATIAL = {"wan2.1": 8, "wan2.2": 16}
# The transformer takes patches of 2x2 latents: the Wan 2.2 VAE's stride of 16 makes that 32 pixels.
_SIDE_STEP = {"wan2.1": 16, "wan2.2": 32}
_MAX_TOKENS = 512
VISION_TOKENS, VISION_DIM = 257, 1280  # of CLIP ViT-H/14, for each image


def cache_latents(
    dataset: Dataset,
    encoder: VideoEncoder,
    store: Store,
    *,
    conditioning: Conditioning = "none",
    vision: VisionEncoder | None = None,
    on_item: OnItem | None = None,
) -> tuple[LatentCache, list[Note]]:
    """Latents of every sample on disk; only what is absent or damaged is encoded.

    With a `conditioning` the latents of the known frames are kept too, and with `vision` their CLIP features: what an
    image-to-video model is given. Such a model has nothing to learn from single pictures, which are skipped with a note.
    `on_item` is called after each sample and may raise to abort: what is done is kept. A file that fails to decode is
    skipped with a note, or refused with options.bad_files "refuse" (DatasetError). With the Wan 2.2 VAE, sides are cut
    to multiples of 32. Raises ModelFileError if the VAE gives another shape than its latent format says, or values that
    are not finite.
    """
    entries: list[LatentEntry] = []
    notes: list[Note] = []
    total = len(dataset.samples)
    recipe = _Recipe(encoder, conditioning, vision, store)
    for done, listed in enumerate(dataset.samples, start=1):
        try:
            sample, note = _fit(listed, encoder)
            entries.append(recipe.entry(sample))
            notes.extend([note] if note else [])
        except DatasetError as error:
            if dataset.options.bad_files == "refuse":
                raise
            notes.append(Note(name=listed.name, action="skipped", reason=str(error)))
        if on_item is not None:
            on_item(done, total, listed.name)
    if not any(not entry.held_out for entry in entries):
        why = f"; the first: {notes[0]}" if notes else ""
        raise DatasetError(f"No sample of {dataset.folder} is left to train on{why}")
    cache = LatentCache(
        entries=tuple(entries),
        encoder=encoder.identity,
        latent_format=encoder.latent_format,
        fps=dataset.options.fps,
        trigger_word=dataset.options.trigger_word,
        conditioning=conditioning,
    )
    return cache, notes


def cache_text(
    captions: Iterable[str], encoder: TextEncoder, store: Store, *, on_item: OnItem | None = None
) -> tuple[TextCache, list[Note]]:
    """Embeddings of the distinct captions, and of the empty one, on disk; only what is absent or damaged is encoded.

    `on_item` is called after each caption and may raise to abort: what is done is kept. A caption longer than 512
    tokens is cut, with a note. Raises ModelFileError if the text encoder gives another shape than it says, or values
    that are not finite.
    """
    distinct = tuple(dict.fromkeys([*captions, ""]))
    entries: list[TextEntry] = []
    notes: list[Note] = []
    for done, caption in enumerate(distinct, start=1):
        key = text_key(caption, encoder.identity)
        tensors = store.load("text", key)
        metadata = store.metadata("text", key) or {}
        context = (tensors or {}).get("context")
        if context is None or _text_problem(context, encoder):
            context, was_cut = encoder.encode(caption)
            problem = _text_problem(context, encoder)
            if problem:
                raise ModelFileError(
                    f"The text encoder cannot be used: for the caption {_short(caption)} it gave {problem}."
                )
            context = context.detach().to("cpu", torch.float32)  # [S, D]
            metadata = {"caption": caption, "encoder": encoder.identity, "was_cut": str(int(was_cut))}
            store.save("text", key, {"context": context}, metadata)
        if metadata.get("was_cut") == "1":
            reason = f"the caption is longer than {_MAX_TOKENS} tokens; what comes after them is not used"
            notes.append(Note(name=_short(caption), action="cropped", reason=reason))
        path = str(store.path("text", key))
        entries.append(TextEntry(path=path, key=key, caption=caption, num_tokens=context.shape[0]))
        if on_item is not None:
            on_item(done, len(distinct), _short(caption))
    return TextCache(entries=tuple(entries), encoder=encoder.identity, dim=encoder.dim), notes


def _fit(sample: Sample, encoder: VideoEncoder) -> tuple[Sample, Note | None]:
    """The sample in a size that the encoder's model can patch, and a note if that cuts something off."""
    step = _SIDE_STEP[encoder.latent_format]
    width, height = sample.width // step * step, sample.height // step * step
    if not width or not height:
        raise DatasetError(
            f"{sample.file.path} cannot be used: {sample.width}x{sample.height} is smaller than {step} pixels on a "
            f"side, the least for the {encoder.latent_format} VAE; use a larger file or allow upscaling."
        )
    if (width, height) == (sample.width, sample.height):
        return sample, None
    reason = (
        f"{sample.width}x{sample.height} becomes {width}x{height}: {encoder.latent_format} needs multiples of {step}"
    )
    note = Note(name=sample.name, action="cropped", reason=reason)
    return dataclasses.replace(sample, width=width, height=height), note


class _Recipe:
    """What is made of a sample, and where it is kept."""

    def __init__(
        self, encoder: VideoEncoder, conditioning: Conditioning, vision: VisionEncoder | None, store: Store
    ) -> None:
        self.encoder, self.vision, self.store = encoder, vision, store
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
                f"a CLIP vision model is connected, but {why}: disconnect it, or, for Wan 2.1 image-to-video, choose its VAE "
                "and 'first frame'."
            )

    def entry(self, sample: Sample) -> LatentEntry:
        """The sample's entry; encodes what is not in the store."""
        if self.known and len(sample.frame_indices) == 1:
            raise DatasetError(
                f"{sample.file.path} is a single picture: an image-to-video model learns from clips only; train pictures "
                "with a text-to-video model, or set condition_on to 'none'."
            )
        key = latent_key(sample, self.encoder.identity)
        known_key = latent_key(sample, self.encoder.identity, self.conditioning) if self.encodes_known else ""
        vision_id = self.vision.identity if self.vision else ""
        features_key = vision_key(sample, self.conditioning, vision_id) if self.vision else ""
        shape = self._shape(sample)
        absent = [name for name in (key, known_key) if name and not self._has_latents(name, shape)]
        features_absent = bool(features_key) and not self._has_features(features_key)
        if absent or features_absent:
            frames = read_frames(sample)  # [F, H, W, 3]
            for name in absent:
                self._save_latents(
                    sample, name, frames if name == key else hide_unknown(frames, self.conditioning), shape
                )
            if features_absent:
                self._save_features(sample, features_key, frames)
        return LatentEntry(
            path=str(self.store.path("latents", key)),
            key=key,
            name=sample.name,
            caption=sample.file.caption,
            shape=shape,
            repeats=sample.repeats,
            held_out=sample.held_out,
            known_path=str(self.store.path("latents", known_key)) if known_key else "",
            known_key=known_key,
            vision_path=str(self.store.path("vision", features_key)) if features_key else "",
            vision_key=features_key,
        )

    def _shape(self, sample: Sample) -> tuple[int, int, int, int]:
        """(C, F, H, W) that the latents have to have."""
        latent_format = self.encoder.latent_format
        scale = _SPATIAL[latent_format]
        num_latent_frames = (len(sample.frame_indices) - 1) // 4 + 1
        return (LATENT_CHANNELS[latent_format], num_latent_frames, sample.height // scale, sample.width // scale)

    def _has_latents(self, key: str, shape: tuple[int, int, int, int]) -> bool:
        tensors = self.store.load("latents", key)
        return bool(tensors) and "latents" in tensors and tuple(tensors["latents"].shape) == shape

    def _has_features(self, key: str) -> bool:
        tensors = self.store.load("vision", key)
        return bool(tensors) and "features" in tensors

    def _save_latents(self, sample: Sample, key: str, frames: torch.Tensor, shape: tuple[int, int, int, int]) -> None:
        latents = self.encoder.encode(frames)  # [C, F, H, W]
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
        self.store.save("latents", key, {"latents": latents}, {"name": sample.name, "encoder": self.encoder.identity})

    def _save_features(self, sample: Sample, key: str, frames: torch.Tensor) -> None:
        assert self.vision is not None
        features = torch.cat([self.vision.encode(frames[index]) for index in self.known])  # [257 n, 1280]
        features = features.detach().to("cpu", torch.float32)
        expected = (VISION_TOKENS * len(self.known), VISION_DIM)
        if tuple(features.shape) != expected:
            raise ModelFileError(
                f"The CLIP vision model does not fit: for {sample.name} it gave features of the shape "
                f"{tuple(features.shape)}, but Wan 2.1 needs {expected}: load clip_vision_h.safetensors."
            )
        if not torch.isfinite(features).all():
            raise ModelFileError(f"The CLIP vision model gave values that are not finite for {sample.name}.")
        self.store.save("vision", key, {"features": features}, {"name": sample.name, "encoder": self.vision.identity})


def _text_problem(context: Any, encoder: TextEncoder) -> str:
    """What is wrong with an embedding, as a clause; empty if nothing."""
    if context.ndim != 2 or context.shape[1] != encoder.dim or not 1 <= context.shape[0] <= _MAX_TOKENS:
        return f"the shape {tuple(context.shape)} instead of (1 to {_MAX_TOKENS}, {encoder.dim})"
    if not torch.isfinite(context).all():
        return "values that are not finite"
    return ""


def _short(caption: str) -> str:
    return f'"{caption}"' if len(caption) <= 60 else f'"{caption[:57]}..."'
