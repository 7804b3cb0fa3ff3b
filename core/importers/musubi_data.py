"""What becomes of the dataset options of musubi-tuner."""

import posixpath

from .answers import Answer, Context, Rule, SetupOption, changed, either, mapped, not_needed, not_supported
from .common import (
    need_number,
)
from .declared import choice_of, exists, frames, number, truth
from .sizes import size_of
from .tables import VARIANTS, can_have_several

_MOST_FRAMES = 129  # of frame_extraction full, where max_frames is not given (dataset/config_utils.py)
_WHOLE = "Full takes the whole clip here, of whatever length: cut longer clips."


def _is_video(context: Context, dataset: int | None) -> bool:
    return any(context.has(key, dataset) for key in ("video_directory", "video_jsonl_file"))


def _resolution(_context: Context, given: SetupOption) -> Answer:
    (width, height), why = size_of(given.value)
    return either(why, dataset__width=width, dataset__height=height)


def _folder(context: Context, given: SetupOption) -> Answer:
    path = str(given.value)
    if given.key == "image_directory" and not context.has("target_frames", given.dataset):
        return mapped(dataset__folder=path, dataset__num_frames=1)
    return mapped(dataset__folder=path)


def _list_file(_context: Context, given: SetupOption) -> Answer:
    """A list of files and captions: the folder is that of the list."""
    path = str(given.value).replace("\\", "/")
    if exists("dataset.metadata_file") and (source := choice_of("dataset.caption_source", "metadata")):
        return changed(
            "the files that it names must lie in its folder, or below.",
            dataset__folder=posixpath.dirname(path) or ".",
            dataset__caption_source=source,
            dataset__metadata_file=path,
        )
    return not_supported(
        "a dataset is a folder here: put the files of the list into one, each with its caption in a text file of the same name."
    )


def _list(_context: Context, given: SetupOption) -> Answer:
    """The lines of a list of files: the folder, where they have one."""
    if len(given.value) != 1 or not given.value[0]:
        return not_supported("its files lie in several folders: put them into one, with their captions.")
    if choice_of("dataset.caption_source", "metadata"):
        return changed("the list must lie in that folder.", dataset__folder=given.value[0])
    return changed("each file needs its caption in a text file of the same name.", dataset__folder=given.value[0])


def _buckets(context: Context, given: SetupOption) -> Answer:
    # dataset/image_video_dataset.py: the video dataset's caching always makes buckets, whatever this says.
    if given.dataset is not None and _is_video(context, given.dataset):
        return changed("musubi-tuner sorts clips into buckets whatever it says.", dataset__aspect_buckets=True)
    return mapped(dataset__aspect_buckets=truth(given.value))


def _frames(context: Context, given: SetupOption) -> Answer:
    """target_frames: each clip once for each of them, and clips that are shorter are dropped without a word."""
    values = given.value if isinstance(given.value, list) else [given.value]
    counts = [need_number(value, is_whole=True) for value in values]
    if str(context.get("frame_extraction", "head", given.dataset)) == "full":
        return not_needed("frame_extraction full takes the whole clip.")
    kept = list(dict.fromkeys(frames(count) for count in counts))
    why = "Wan takes 4n+1 frames." if kept != counts else ""
    short = {"short_clips": "skip"}
    if len(kept) == 1:
        return either(why, dataset__num_frames=kept[0], dataset__short_clips="skip")
    if can_have_several():
        variants = [{"num_frames": count, **short} for count in kept]
        return Answer("changed", {VARIANTS: variants}, f"it is a dataset for each number of frames. {why}".strip())
    most = max(kept)
    return changed(
        f"a dataset has one number of frames here: the most are taken, {most}.",
        dataset__num_frames=most,
        dataset__short_clips="skip",
    )


def _extraction(context: Context, given: SetupOption) -> Answer:
    word = str(given.value)
    if word == "uniform":
        count = need_number(context.get("frame_sample", 1, given.dataset), is_whole=True)
        if count <= 1:  # dataset/datasources.py: uniform with one sample is head
            return changed("uniform with one window is the first frames.", dataset__frame_sampling="head")
        why = "a window between the first and the last may start a frame later: starts are rounded here, not cut."
        return changed(why, dataset__frame_sampling="uniform")
    if word == "full" and not context.has("max_frames", given.dataset) and not context.has("max_frames"):
        why = f"musubi-tuner takes {_MOST_FRAMES} frames of a longer clip. {_WHOLE}"
        return changed(why, dataset__frame_sampling="full")
    found = choice_of("dataset.frame_sampling", word)
    return not_supported(f"there is no {word} here.") if found is None else mapped(dataset__frame_sampling=found)


def _stride(context: Context, given: SetupOption) -> Answer:
    if context.get("frame_extraction", "head", given.dataset) != "slide":
        return not_needed("frame_extraction is not slide.")
    return mapped(dataset__slide_stride=need_number(given.value, is_whole=True))


def _sample(context: Context, given: SetupOption) -> Answer:
    if context.get("frame_extraction", "head", given.dataset) != "uniform":
        return not_needed("frame_extraction is not uniform.")
    return mapped(dataset__windows_per_clip=need_number(given.value, is_whole=True))


def _fps(context: Context, _given: SetupOption) -> Answer:
    return changed(
        f"the rate of each clip is read from it, and brought to {context.facts.get('fps', 16):g} frames a second so that motion"
        " keeps its speed; each frame is the one that is nearest in time, which may be the one beside musubi-tuner's."
    )


def _max_frames(context: Context, given: SetupOption) -> Answer:
    if context.get("frame_extraction", "head", given.dataset) != "full":
        return not_needed("frame_extraction is not full.")
    return not_supported(_WHOLE)


def _batch_size(context: Context, given: SetupOption) -> Answer:
    """batch_size is a dataset's there, and the run's here."""
    found = need_number(given.value, is_whole=True)
    sizes = {item.value for item in context.given if item.key == "batch_size" and item.file}
    if len(sizes) > 1 and given.value != max(sizes, key=lambda size: number(size) or 0):
        return not_supported("all datasets of a run have one batch_size here: the largest is taken.")
    return mapped(loop__batch_size=found)


DATASET_RULES: dict[str, Rule] = {
    "resolution": _resolution,
    "image_directory": _folder,
    "video_directory": _folder,
    "image_jsonl_file": _list_file,
    "video_jsonl_file": _list_file,
    "list": _list,
    "enable_bucket": _buckets,
    "target_frames": _frames,
    "frame_extraction": _extraction,
    "frame_stride": _stride,
    "frame_sample": _sample,
    "max_frames": _max_frames,
    "source_fps": _fps,
    "batch_size": _batch_size,
}
