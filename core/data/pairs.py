"""Each sample's latents with its caption's embedding."""

from collections.abc import Mapping, Sequence

from ..errors import SAME_DATASET, ConfigError
from ..settings.job import CaptionText, DataSpec, PreviewPrompt, TrainSample
from .types import LatentCache, TextCache, TextEntry


def data_spec(latents: LatentCache, text: TextCache) -> DataSpec:
    """Pair each sample's latents with its caption's embedding."""
    by_caption = text.by_caption
    missing = [
        entry.name
        for entry in latents.entries
        if any(text not in by_caption for text in (*entry.captions, *entry.class_captions))
    ]
    if missing:
        raise ConfigError(
            f"the caption of {missing[0]} has no text embedding: cache latents and captions of the same dataset.",
            about=SAME_DATASET,
        )
    samples = tuple(
        TrainSample(
            name=entry.name,
            latents_path=entry.path,
            latents_key=entry.key,
            shape=entry.shape,
            text_path=by_caption[entry.caption].path,
            text_key=by_caption[entry.caption].key,
            caption=entry.caption,
            repeats=entry.repeats,
            held_out=entry.held_out,
            known_path=entry.known_path,
            known_key=entry.known_key,
            vision_path=entry.vision_path,
            vision_key=entry.vision_key,
            loss_weight=entry.treatment.loss_weight,
            caption_dropout=entry.treatment.caption_dropout,
            is_regularization=entry.treatment.is_regularization,
            more_texts=_texts(by_caption, entry.more_captions),
            class_texts=_texts(by_caption, entry.class_captions),
            mask_path=entry.mask_path,
            mask_key=entry.mask_key,
            control_path=entry.control_path,
            control_key=entry.control_key,
            reference_path=entry.reference_path,
            reference_key=entry.reference_key,
        )
        for entry in latents.entries
    )
    empty = by_caption[""]
    return DataSpec(
        samples=samples,
        empty_text_path=empty.path,
        empty_text_key=empty.key,
        text_dim=text.dim,
        conditioning=latents.conditioning,
        fps=latents.fps,
        more_fps=latents.more_fps,
        prompts=_prompts(text),
    )


def _prompts(text: TextCache) -> tuple[PreviewPrompt, ...]:
    by_caption = text.by_caption
    asked = text.prompts
    missing = [one.name for one in asked if one.prompt not in by_caption or (one.negative or "") not in by_caption]
    if missing:
        raise ConfigError(f"the sample prompt {missing[0]} has no text embedding: cache the captions again.")
    return tuple(
        PreviewPrompt(
            asked=one,
            text=_texts(by_caption, (one.prompt,))[0],
            negative=_texts(by_caption, (one.negative or "",))[0],
        )
        for one in asked
    )


def _texts(by_caption: Mapping[str, TextEntry], captions: Sequence[str]) -> tuple[CaptionText, ...]:
    entries = (by_caption[caption] for caption in captions)
    return tuple(CaptionText(path=entry.path, key=entry.key) for entry in entries)
