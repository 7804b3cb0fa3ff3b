"""Encoding what is not in the store yet. Shapes: S tokens, D width."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import Any

import torch

from ..disk import check_room, free_bytes
from ..errors import DatasetError, ModelFileError, RunError
from ..facts import TEXT_TOKENS
from ..settings.dataset import Conditioning
from ..settings.samples import SamplePrompt
from ..shortage import is_out_of_memory
from ..words import counted
from .ahead import AHEAD, WriteBehind, read_ahead
from .encodings import Encodings
from .join import frame_rates
from .sample_prompts import texts_of
from .store import Store, text_key
from .types import (
    Dataset,
    LatentCache,
    LatentEntry,
    Note,
    TextCache,
    TextEncoder,
    TextEntry,
    VideoEncoder,
    VisionEncoder,
)
from .watch import Interrupt

OnItem = Callable[[int, int, str], None]  # items done, items in all, name of the last one

CAPTIONS_AT_ONCE = 16  # given to the encoder together; between them progress is told


def cache_latents(
    dataset: Dataset,
    encoder: VideoEncoder,
    store: Store,
    *,
    conditioning: Conditioning = "none",
    vision: VisionEncoder | None = None,
    on_item: OnItem | None = None,
    ahead: int = AHEAD,
    check: Callable[[], object] | None = None,
) -> tuple[LatentCache, list[Note]]:
    """Latents of every sample on disk; only what is absent or damaged is encoded.

    With a `conditioning` the latents of the known frames are kept too, and with `vision` their CLIP features: what an
    image-to-video model is given. Such a model has nothing to learn from single pictures, which are skipped with a note.
    `on_item` is called after each sample and may raise to abort: what is done is kept; `check` may do so too, several times
    a second while a file is read, on the caller's thread. A file that fails to decode is
    skipped with a note, or refused with options.bad_files "refuse" (DatasetError). With the Wan 2.2 VAE, sides are cut
    to multiples of 32. Raises ModelFileError if the VAE gives another shape than its latent format says, or values that
    are not finite.

    The encoder works on the caller's thread; up to `ahead` samples that follow are read beside it, and what it made is
    written beside it, which changes nothing but the time. 0: one after the other. A disk that refuses may be told one
    sample late. A size that memory is too small for is encoded in tiles, under keys of its own and with a note; RunError
    if these do not fit either.
    """
    entries: list[LatentEntry] = []
    notes: list[Note] = []
    total = len(dataset.samples)
    interrupt = Interrupt(check)
    encodings = Encodings(encoder, conditioning, vision, store, interrupt)
    encodings.check_given(dataset)
    notes.extend(_check_room(dataset, encodings))
    coming = read_ahead(
        dataset.samples, encodings.prepare, encodings.num_bytes, ahead=ahead, at_once=encodings.prepare_known
    )
    with WriteBehind(beside=ahead > 0) as write, closing(coming), interrupt:
        for done, (listed, prepared) in enumerate(coming, start=1):
            try:
                entry, told = encodings.entry(interrupt.result(prepared), write)
                entries.append(entry)
                notes.extend(told)
            except DatasetError as error:
                if dataset.options_of(listed).bad_files == "refuse":
                    raise
                notes.append(Note(name=listed.name, action="skipped", reason=str(error)))
            if on_item is not None:
                on_item(done, total, listed.name)
    store.remember_checked()
    if not any(not entry.held_out for entry in entries):
        why = f"; the first: {notes[0]}" if notes else ""
        raise DatasetError(f"No sample of {dataset.folder} is left to train on{why}")
    fps, *more_fps = frame_rates(dataset)
    cache = LatentCache(
        entries=tuple(entries),
        encoder=encoder.identity,
        latent_format=encoder.latent_format,
        fps=fps,
        trigger_word=dataset.trigger_words,
        conditioning=conditioning,
        more_fps=tuple(more_fps),
    )
    return cache, notes


def _check_room(dataset: Dataset, encodings: Encodings) -> list[Note]:
    """RunError if what is not in the store yet can't fit on its disk; a note where it takes more than half of the rest."""
    root = encodings.store.root
    free = free_bytes(root)
    if free is None or _sum_bytes(dataset, encodings, absent_only=False) <= free / 2:
        return []  # without a look at each file
    needed = _sum_bytes(dataset, encodings, absent_only=True)
    what = f"the latents of {counted(len(dataset.samples), 'sample')}"
    warning = check_room(root, needed, what, "use fewer or smaller samples")
    return [Note(name=str(root), action="note", reason=warning)] if warning else []


def _sum_bytes(dataset: Dataset, encodings: Encodings, *, absent_only: bool) -> int:
    sizes: dict[str, int] = {}  # equal samples have one file
    for sample in dataset.samples:
        sizes |= encodings.stored_bytes(sample, absent_only=absent_only)
    return sum(sizes.values())


def cache_text(
    captions: Iterable[str],
    encoder: TextEncoder,
    store: Store,
    *,
    prompts: Sequence[SamplePrompt] = (),
    on_item: OnItem | None = None,
) -> tuple[TextCache, list[Note]]:
    """Embeddings of the distinct captions, and of the empty one, on disk; only what is absent or damaged is encoded.

    `prompts`: of previews, which are encoded too.

    Captions are encoded several at once, and written beside the encoding of the next. `on_item` is called after each and
    may raise to abort: what is done is kept. A caption longer than 512 tokens is cut, with a note. Raises ModelFileError if
    the text encoder gives another shape than it says, or values that are not finite, and RunError if it runs out of memory
    with a single caption.
    """
    distinct = tuple(dict.fromkeys([*captions, "", *texts_of(prompts)]))
    entries: list[TextEntry] = []
    notes: list[Note] = []
    with WriteBehind(beside=True) as write:
        for start in range(0, len(distinct), CAPTIONS_AT_ONCE):
            for entry, was_cut in _encode_captions(distinct[start : start + CAPTIONS_AT_ONCE], encoder, store, write):
                entries.append(entry)
                if was_cut:
                    reason = f"the caption is longer than {TEXT_TOKENS} tokens; what comes after them is not used"
                    notes.append(Note(name=_short(entry.caption), action="cropped", reason=reason))
                if on_item is not None:
                    on_item(len(entries), len(distinct), _short(entry.caption))
    store.remember_checked()
    cache = TextCache(entries=tuple(entries), encoder=encoder.identity, dim=encoder.dim, prompts=tuple(prompts))
    return cache, notes


def _encode_captions(
    captions: tuple[str, ...], encoder: TextEncoder, store: Store, write: WriteBehind
) -> list[tuple[TextEntry, bool]]:
    """Entries of captions, in order, each with whether it was cut; what is absent is encoded together and written."""
    found = {caption: _stored_text(caption, encoder, store) for caption in captions}
    absent = [caption for caption, stored in found.items() if stored is None]
    made: list[tuple[str, torch.Tensor, bool]] = []
    for caption, (context, was_cut) in zip(absent, _encode_batch(absent, encoder), strict=True):
        problem = _text_problem(context, encoder)
        if problem:
            raise ModelFileError(
                f"The text encoder cannot be used: for the caption {_short(caption)} it gave {problem}."
            )
        context = context.detach().to("cpu", torch.float32)  # [S, D]
        made.append((caption, context, was_cut))
        found[caption] = context.shape[0], was_cut
    write(_save_texts, made, encoder.identity, store)
    entries = []
    for caption, stored in found.items():
        assert stored is not None
        key = text_key(caption, encoder.identity)
        path = str(store.path("text", key))
        entries.append((TextEntry(path=path, key=key, caption=caption, num_tokens=stored[0]), stored[1]))
    return entries


def _save_texts(made: list[tuple[str, torch.Tensor, bool]], identity: str, store: Store) -> None:
    """Write captions' contexts, each with whether the caption was cut."""
    for caption, context, was_cut in made:
        told = {"caption": caption, "encoder": identity, "was_cut": str(int(was_cut))}
        store.save("text", text_key(caption, identity), {"context": context}, told)


def _stored_text(caption: str, encoder: TextEncoder, store: Store) -> tuple[int, bool] | None:
    """Number of tokens of what the store has for a caption, and whether it was cut; None if it has nothing usable."""
    key = text_key(caption, encoder.identity)
    stored = store.look("text", key)
    shape = stored.shapes.get("context") if stored else None
    if stored is None or shape is None or _shape_problem(shape, encoder):
        return None
    return shape[0], stored.metadata.get("was_cut") == "1"


def _encode_batch(captions: list[str], encoder: TextEncoder) -> list[tuple[torch.Tensor, bool]]:
    if not captions:
        return []
    try:
        return encoder.encode_batch(captions)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(
            "The text encoder ran out of memory: close other programs that use the GPU, or use its fp8 file; what was cached "
            "so far is kept."
        ) from error


def _text_problem(context: Any, encoder: TextEncoder) -> str:
    """What is wrong with an embedding, as a clause; empty if nothing."""
    problem = _shape_problem(tuple(context.shape), encoder)
    if not problem and not torch.isfinite(context).all():
        return "values that are not finite"
    return problem


def _shape_problem(shape: tuple[int, ...], encoder: TextEncoder) -> str:
    if len(shape) != 2 or shape[1] != encoder.dim or not 1 <= shape[0] <= TEXT_TOKENS:
        return f"the shape {shape} instead of (1 to {TEXT_TOKENS}, {encoder.dim})"
    return ""


def _short(caption: str) -> str:
    return f'"{caption}"' if len(caption) <= 60 else f'"{caption[:57]}..."'
