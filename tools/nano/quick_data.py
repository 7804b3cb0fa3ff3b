"""The training set of a pair of concepts, drawn and encoded without files of clips between: latents and texts in a store."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...core.data.store import Store
from ...core.serial import digest, to_dict
from ...core.settings.job import CaptionText, DataSpec, TrainSample
from . import world
from .pairs import Pair, Shown

Encode = Callable[[Sequence[world.Scene]], Tensor]  # scenes -> latents [N, C, F, H, W]
EncodeText = Callable[[Sequence[str]], list[Tensor]]  # captions -> [S, D] each


def pair_data(
    pair: Pair,
    *,
    clips: int,
    others: int,
    seed: int,
    folder: Path,
    encode: Encode,
    encode_text: EncodeText,
    models: str,
) -> DataSpec:
    """The samples, whose latents and texts lie below `folder`; what is there is used again. `models`: says which encoders."""
    store = Store(folder.absolute())
    shown = pair.shown(clips, others, seed)
    latents = _stored(store, "latents", [digest([to_dict(one.scene), models], 32) for one in shown],
                      lambda places: list(encode([shown[place].scene for place in places])))  # fmt: skip
    captions = list(dict.fromkeys(["", *(text for one in shown for text in (one.caption, one.class_caption))]))
    keys = [digest(["caption", caption, models], 32) for caption in captions]
    found = _stored(store, "context", keys, lambda places: encode_text([captions[place] for place in places]))
    texts = {
        caption: CaptionText(path=str(store.path("context", key)), key=key)
        for caption, key in zip(captions, keys, strict=True)
    }
    samples = tuple(
        _sample(one, texts, path=str(store.path("latents", key)), key=key, shape=shape)
        for one, (key, shape) in zip(shown, latents, strict=True)
    )
    empty = texts[""]
    return DataSpec(
        samples=samples, empty_text_path=empty.path, empty_text_key=empty.key, text_dim=found[0][1][-1], fps=world.FPS
    )


def _sample(one: Shown, texts: dict[str, CaptionText], *, path: str, key: str, shape: tuple[int, ...]) -> TrainSample:
    channels, frames, height, width = shape
    text = texts[one.caption]
    return TrainSample(
        name=one.name,
        latents_path=path,
        latents_key=key,
        shape=(channels, frames, height, width),
        text_path=text.path,
        text_key=text.key,
        caption=one.caption,
        held_out=one.held_out,
        is_regularization=one.is_known,
        class_texts=(texts[one.class_caption],) if one.class_caption else (),
    )


def _stored(
    store: Store, kind: str, keys: Sequence[str], make: Callable[[list[int]], list[Tensor]]
) -> list[tuple[str, tuple[int, ...]]]:
    """Keys and shapes of tensors; those that are not in the store are made, all at once, and put there."""
    found = [store.look(kind, key) for key in keys]
    absent = [place for place, stored in enumerate(found) if stored is None]
    if absent:
        for place, tensor in zip(absent, make(absent), strict=True):
            store.save(kind, keys[place], {kind: tensor.to(torch.float32)})
        found = [store.look(kind, key) for key in keys]
    return [(key, stored.shapes[kind]) for key, stored in zip(keys, found, strict=True) if stored is not None]
