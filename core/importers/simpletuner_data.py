"""What becomes of the dataset options of SimpleTuner."""

import math

from ..errors import ConfigError
from .answers import Answer, Context, Rule, SetupOption, changed, either, mapped, not_needed, not_supported
from .common import (
    NOT_DELETED,
    is_off,
    need_number,
    repeats,
)
from .declared import by_declaration, choice_of, declared, exists, number, side, truth


def _resolution(context: Context, given: SetupOption) -> Answer:
    """documentation/DATALOADER.md: pixel_area is the side of a square, area is megapixels, pixel is the shorter side."""
    found = float(need_number(given.value))
    kind = str(context.get("resolution_type", "pixel_area", given.dataset))
    if kind == "area":
        edge, why = math.sqrt(found * 1e6), f"{found:g} megapixels are a square of that side."
    elif kind == "pixel":
        edge, why = found, "it is the shorter side there; here the area counts, of a square of that side."
    else:
        edge, why = found, ""
    if not 16 <= edge <= 16_384:
        raise ConfigError(f"{given.shown} is no size for resolution_type {kind}.")
    pixels = side(edge)
    if pixels != edge and not why:
        why = f"sides are multiples of 16, so it is {pixels}."
    return either(why, dataset__width=pixels, dataset__height=pixels)


def _resolution_type(_context: Context, given: SetupOption) -> Answer:
    known = ("pixel", "area", "pixel_area")
    return (
        not_needed("resolution is read by it.")
        if given.value in known
        else not_supported("there is no such kind of size.")
    )


def _crop(_context: Context, given: SetupOption) -> Answer:
    """Without a crop, and with one that keeps the aspect, files are sorted into buckets by their aspect ratio."""
    return mapped(dataset__aspect_buckets=not truth(given.value))


def _crop_aspect(context: Context, given: SetupOption) -> Answer:
    if not truth(context.get("crop", False, given.dataset)):
        return not_needed("crop is off.")
    if found := declared("simpletuner", "crop_aspect"):
        return (
            by_declaration("simpletuner", "crop_aspect", given.value)
            if len(found) == 1
            else not_needed("crop says it.")
        )
    if given.value == "square":
        return mapped(dataset__aspect_buckets=False)
    return changed("the aspect ratio of each file is kept.", dataset__aspect_buckets=True)


def _num_frames(_context: Context, given: SetupOption) -> Answer:
    """helpers/models/wan/model.py, adjust_video_frames: 8n+1, although Wan takes 4n+1."""
    found = need_number(given.value, is_whole=True)
    kept = _adjusted(found)
    return either("" if kept == found else f"SimpleTuner itself takes {kept} of them.", dataset__num_frames=kept)


def _adjusted(frames: int) -> int:
    return max(1, (frames - 1) // 8 * 8 + 1)


def _bucket_strategy(context: Context, given: SetupOption) -> Answer:
    """helpers/data_backend/factory.py: num_frames is 5 seconds where it is not given, and min_frames must not be below it.

    So its guide's "buckets of several lengths without num_frames" never come to be.
    """
    if given.value != "resolution_frames":
        return not_needed("buckets have as many aspect ratios as your files have.")
    own = [item for item in context.given if item.key == "video.num_frames" and item.dataset == given.dataset]
    if not own:
        return not_needed("the dataset holds pictures.")
    if any(item.file for item in own):
        return not_needed("with num_frames all clips are of one length, there and here.")
    kept = _adjusted(need_number(own[0].value, is_whole=True))
    return changed(
        f"without num_frames, SimpleTuner takes the first 5 seconds of each clip, whatever its guide says, and refuses a "
        f"min_frames below that: so it is {kept} frames here. For clips in their own lengths, set frame_sampling to full.",
        dataset__num_frames=kept,
    )


def _frame_interval(context: Context, given: SetupOption) -> Answer:
    if context.get("video.bucket_strategy", "aspect_ratio", given.dataset) != "resolution_frames":
        return not_needed("bucket_strategy is not resolution_frames.")
    return not_needed("lengths are rounded down to 4n+1, which Wan takes.")


def _min_frames(context: Context, given: SetupOption) -> Answer:
    """At num_frames, as SimpleTuner wants it: shorter clips are left out. Below, they are cut to what they have."""
    wanted = number(context.get("video.num_frames", 125, given.dataset)) or 0
    if need_number(given.value) >= wanted:
        return mapped(dataset__short_clips="skip")
    if declared("simpletuner", given.key):
        return by_declaration("simpletuner", given.key, given.value)
    return changed("shorter clips are taken too.", dataset__short_clips="shorten")


def _repeats(_context: Context, given: SetupOption) -> Answer:
    return repeats(given.value, add=1)


def _disabled(_context: Context, given: SetupOption) -> Answer:
    off = truth(given.value)
    if exists("dataset.enabled"):
        return mapped(dataset__enabled=not off)
    return not_supported("a dataset can't be switched off here: leave it out.") if off else not_needed("it is on.")


def _captions(context: Context, given: SetupOption) -> Answer:
    word = str(given.value)
    if word == "textfile":
        return mapped(dataset__caption_extension=".txt")
    if word == "instanceprompt":
        return _whole_caption(str(context.get("instance_prompt", "", given.dataset)))
    words = {"csv": ("metadata",), "parquet": ("metadata",)}
    found = choice_of("dataset.caption_source", word, *words.get(word, ()))
    return (
        not_supported(f"captions can't come from {word} here.")
        if found is None
        else mapped(dataset__caption_source=found)
    )


def _whole_caption(text: str) -> Answer:
    """One caption for all files, whatever lies beside them."""
    if choice_of("dataset.caption_source", "trigger"):
        return mapped(dataset__caption_source="trigger", dataset__trigger_word=text)
    return changed(
        "text files beside the pictures and clips would go first: there must be none.", dataset__default_caption=text
    )


def _instance_prompt(context: Context, given: SetupOption) -> Answer:
    """A whole caption, or what stands before each; a trigger word is put where none is."""
    text = str(given.value or "")
    if str(context.get("caption_strategy", "", given.dataset)) == "instanceprompt":
        return _whole_caption(text)
    if truth(context.get("only_instance_prompt", False, given.dataset)):
        return _whole_caption(text)
    if truth(context.get("prepend_instance_prompt", False, given.dataset)):
        return changed("it is put in front of captions that lack it.", dataset__trigger_word=text)
    return not_needed("it is neither put in front of captions, nor in their place.")


def _prepend(_context: Context, given: SetupOption) -> Answer:
    return not_needed("instance_prompt is read by it.") if truth(given.value) else not_needed("it is off.")


def _dropout(context: Context, given: SetupOption) -> Answer:
    """Of the whole run in config.json, of one dataset in its list."""
    found = float(need_number(given.value))
    if given.dataset is None:
        return mapped(loop__caption_dropout=found)
    if exists("dataset.drop_captions"):
        return mapped(dataset__drop_captions=found)
    same = number(context.get(given.key)) == found
    return not_needed("it is that of the run.") if same else not_supported("all datasets drop captions alike here.")


def _batch_size(_context: Context, given: SetupOption) -> Answer:
    if given.dataset is not None:
        return not_supported("all datasets of a run have one batch_size here.")
    return mapped(loop__batch_size=need_number(given.value, is_whole=True))


def _bad_files(_context: Context, given: SetupOption) -> Answer:
    if truth(given.value):
        return changed(f"they are left out and listed. {NOT_DELETED}", dataset__bad_files="skip")
    return mapped(dataset__bad_files="skip")


def _least_size(context: Context, given: SetupOption) -> Answer:
    """A limit of the shorter side with resolution_type pixel, else of the area: of a square, or in megapixels."""
    if is_off(given.value):
        return not_needed("it is off.")
    found = float(need_number(given.value))
    kind = str(context.get("resolution_type", "pixel_area", given.dataset))
    if kind == "pixel" and exists("dataset.min_side"):
        return mapped(dataset__min_side=int(found))
    if exists("dataset.min_megapixels"):
        if kind == "area":
            return mapped(dataset__min_megapixels=found)
        return changed("it is the side of a square, whose area counts.", dataset__min_megapixels=found * found / 1e6)
    return not_supported("files of every size are taken here.")


def _most_size(context: Context, given: SetupOption) -> Answer:
    """With target_downsample_size no file is left out for it, but scaled down."""
    if is_off(given.value) or not is_off(context.get("target_downsample_size", None, given.dataset)):
        return not_needed("larger files are scaled down to the size of their bucket.")
    return not_supported("larger files are taken, and scaled down.")


def _type(_context: Context, given: SetupOption) -> Answer:
    if given.value == "local":
        return not_needed("a dataset is a folder on this machine.")
    return not_supported("a dataset is a folder on this machine: download it first.")


def _is_regularisation(_context: Context, given: SetupOption) -> Answer:
    """helpers/training/trainer.py: with a LoRA the target of such a set is what the model says without it."""
    if not truth(given.value):
        return mapped(dataset__regularization=False)
    return mapped(dataset__regularization=True, regularizers__prior_preservation=True)


def _probability(context: Context, _given: SetupOption) -> Answer:
    """helpers/data_backend/factory.py, get_backend_weight: how often a batch is of this set, beside the others'."""
    if len({item.dataset for item in context.given} - {None}) < 2:
        return not_needed("there is one dataset.")
    return not_supported(
        "how often a dataset's turn comes is its number of samples times dataset.repeats here: set that."
    )


DATASET_RULES: dict[str, Rule] = {
    "resolution": _resolution,
    "resolution_type": _resolution_type,
    "crop": _crop,
    "crop_aspect": _crop_aspect,
    "video.num_frames": _num_frames,
    "video.bucket_strategy": _bucket_strategy,
    "video.frame_interval": _frame_interval,
    "video.min_frames": _min_frames,
    "repeats": _repeats,
    "caption_dropout_probability": _dropout,
    "train_batch_size": _batch_size,
    "disabled": _disabled,
    "disable": _disabled,
    "caption_strategy": _captions,
    "instance_prompt": _instance_prompt,
    "prepend_instance_prompt": _prepend,
    "only_instance_prompt": _prepend,
    "delete_problematic_images": _bad_files,
    "minimum_image_size": _least_size,
    "maximum_image_size": _most_size,
    "type": _type,
    "is_regularisation_data": _is_regularisation,
    "probability": _probability,
}
