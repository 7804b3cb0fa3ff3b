"""Encoding what is not in the store yet. Shapes: C channels, F H W latent frames, height, width, S tokens, D width."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch

from ..errors import DatasetError, ModelFileError
from .decode import read_frames
from .store import Store, latent_key, text_key
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
)

OnItem = Callable[[int, int, str], None]  # items done, items in all, name of the last one

_SPATIAL = {"wan2.1": 8, "wan2.2": 16}
# The transformer takes patches of 2x2 latents: the Wan 2.2 VAE's stride of 16 makes that 32 pixels.
_SIDE_STEP = {"wan2.1": 16, "wan2.2": 32}
_MAX_TOKENS = 512


def cache_latents(
    dataset: Dataset, encoder: VideoEncoder, store: Store, *, on_item: OnItem | None = None
) -> tuple[LatentCache, list[Note]]:
    """Latents of every sample on disk; only what is absent or damaged is encoded.

    `on_item` is called after each sample and may raise to abort: what is done is kept. A file that fails to decode is
    skipped with a note, or refused with options.bad_files "refuse" (DatasetError). With the Wan 2.2 VAE, sides are cut
    to multiples of 32. Raises ModelFileError if the VAE gives another shape than its latent format says, or values that
    are not finite.
    """
    entries: list[LatentEntry] = []
    notes: list[Note] = []
    total = len(dataset.samples)
    for done, listed in enumerate(dataset.samples, start=1):
        try:
            sample, note = _fit(listed, encoder)
            key = latent_key(sample, encoder.identity)
            entries.append(_latent_entry(sample, key, _stored_shape(sample, key, encoder, store), store))
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


def _stored_shape(sample: Sample, key: str, encoder: VideoEncoder, store: Store) -> tuple[int, int, int, int]:
    """Encode the sample unless good latents are in the store already; (C, F, H, W) of the latents."""
    scale = _SPATIAL[encoder.latent_format]
    num_latent_frames = (len(sample.frame_indices) - 1) // 4 + 1
    expected = (
        LATENT_CHANNELS[encoder.latent_format],
        num_latent_frames,
        sample.height // scale,
        sample.width // scale,
    )
    tensors = store.load("latents", key)
    if tensors and "latents" in tensors and tuple(tensors["latents"].shape) == expected:
        return expected
    latents = encoder.encode(read_frames(sample))  # [C, F, H, W]
    if tuple(latents.shape) != expected:
        raise ModelFileError(
            f"The VAE does not fit: for {sample.name} it gave latents of the shape {tuple(latents.shape)}, but "
            f"{encoder.latent_format} latents are {expected}: choose the VAE that belongs to the model."
        )
    latents = latents.detach().to("cpu", torch.float32)
    if not torch.isfinite(latents).all():
        raise ModelFileError(
            f"The VAE gave values that are not finite for {sample.name}: run it in bf16 or fp32, or check its file."
        )
    store.save("latents", key, {"latents": latents}, {"name": sample.name, "encoder": encoder.identity})
    return expected


def _latent_entry(sample: Sample, key: str, shape: tuple[int, int, int, int], store: Store) -> LatentEntry:
    return LatentEntry(
        path=str(store.path("latents", key)),
        key=key,
        name=sample.name,
        caption=sample.file.caption,
        shape=shape,
        repeats=sample.repeats,
        held_out=sample.held_out,
    )


def _text_problem(context: Any, encoder: TextEncoder) -> str:
    """What is wrong with an embedding, as a clause; empty if nothing."""
    if context.ndim != 2 or context.shape[1] != encoder.dim or not 1 <= context.shape[0] <= _MAX_TOKENS:
        return f"the shape {tuple(context.shape)} instead of (1 to {_MAX_TOKENS}, {encoder.dim})"
    if not torch.isfinite(context).all():
        return "values that are not finite"
    return ""


def _short(caption: str) -> str:
    return f'"{caption}"' if len(caption) <= 60 else f'"{caption[:57]}..."'
