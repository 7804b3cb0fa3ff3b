"""Of a dataset: the size and the frames that samples are brought to."""

import re
from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigError
from ..facts import FRAMES_PER_LATENT, longest_clip
from ..names import in_short
from .option import DATASET, Options, Widget, option

FrameSampling = Literal["head", "chunk", "slide", "uniform", "full", "even"]

Crop = Literal["center", "top", "bottom", "left", "right", "random", "motion"]
_MOST_PIXELS = 16_384  # of a side
_SIZE = re.compile(r"(\d{1,6})(?:\s*[xX]\s*(\d{1,6}))?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class FrameOptions(Options, group="dataset"):
    """What part of a file becomes a sample, and at which size. In pixels; frames are counted after resampling to `fps`."""

    width: int = option(
        832,
        help="Width in pixels, a multiple of 16.",
        more="Width times height is the area that each sample is scaled to.",
        least=16,
        most=_MOST_PIXELS,
        in_key=False,
        widget=Widget(DATASET, "width", 1, advanced=False, is_required=True, most=4096, step=16),
        musubi="resolution",
        aitoolkit="datasets.resolution",
        simpletuner="resolution",
        diffusion_pipe="resolutions",
    )
    height: int = option(
        480,
        help="Height in pixels, a multiple of 16.",
        least=16,
        most=_MOST_PIXELS,
        in_key=False,
        widget=Widget(DATASET, "height", 2, advanced=False, is_required=True, most=4096, step=16),
        musubi="resolution",
        aitoolkit="datasets.resolution",
        simpletuner="resolution",
        diffusion_pipe="resolutions",
    )
    num_frames: int = option(
        33,
        help="Frames of a sample taken from a clip, 4n+1: 1, 5, ... 33, 81.",
        more="At 16 fps 33 frames are 2 seconds. Images are always 1 frame.",
        least=1,
        most=10_001,
        in_key=False,
        not_with={"frame_sampling": ("full",)},
        widget=Widget(DATASET, "num_frames", 3, advanced=False, is_required=True, most=1025, step=4),
        musubi="target_frames",
        aitoolkit="datasets.num_frames",
        simpletuner="video.num_frames",
        diffusion_pipe="frame_buckets",
    )
    fps: float = option(
        16.0,
        help="Frames per second after resampling.",
        more="Wan 2.1 and Wan 2.2 A14B work at 16: clips of other rates are resampled so that motion keeps its speed.",
        page="TI2V 5B works at 24: with another value, motion gets another speed.",
        least=1.0,
        most=240.0,
        hint=" (Wan 2.1 and A14B were trained at 16)",
        in_key=False,
        widget=Widget(DATASET, "fps", 8, is_required=True, step=0.1),
        aitoolkit="datasets.fps",
    )
    frame_sampling: FrameSampling = option(
        "head",
        help="Which frames of a clip are used.",
        more="head: the first num_frames. chunk: windows one after another. slide: overlapping windows, slide_stride apart."
        " uniform: windows_per_clip windows, evenly placed. full: the whole clip, cut to 4n+1. even: num_frames spread over the"
        " whole clip (changes its speed).",
        in_key=False,
        widget=Widget(DATASET, "frame_sampling", 5, is_required=True),
        musubi="frame_extraction",
        aitoolkit="datasets.shrink_video_to_frames",
        diffusion_pipe="video_clip_mode",
    )
    windows_per_clip: int = option(
        4,
        help="Number of windows a clip; for frame_sampling uniform.",
        least=1,
        most=100_000,
        in_key=False,
        widget=Widget(DATASET, "windows_per_clip", 6, is_required=True, most=1000),
        only_with={"frame_sampling": ("uniform",)},
        musubi="frame_sample",
    )
    slide_stride: int = option(
        16,
        help="Frames between the starts of two windows; for frame_sampling slide.",
        least=1,
        most=2**31,
        in_key=False,
        widget=Widget(DATASET, "slide_stride", 7, is_required=True, most=10_000),
        only_with={"frame_sampling": ("slide",)},
        musubi="frame_stride",
    )
    aspect_buckets: bool = option(
        True,
        help="Aspect ratio buckets: each file keeps its aspect ratio, at about width x height pixels.",
        more="Off: everything is scaled and cut to exactly width x height.",
        in_key=False,
        widget=Widget(DATASET, "aspect_buckets", 9, is_required=True),
        musubi="enable_bucket",
        simpletuner="crop",
        diffusion_pipe="enable_ar_bucket",
    )
    upscale: bool = option(
        True,
        help="Whether files with fewer pixels than width x height are scaled up.",
        more="Off: they keep their size (rounded down to multiples of 16).",
        in_key=False,
        widget=Widget(DATASET, "upscale", 10, is_required=True),
        musubi="!bucket_no_upscale",
    )
    more_sizes: str = option(
        "",
        help="The same files at these sizes too: 512, 768, 1024x576. Each gives samples of its own.",
        more="A number is a square area, and with aspect_buckets each file keeps its aspect ratio in each of them. An epoch"
        " becomes as many times longer as there are sizes.",
        born=2,
        in_key=False,
        widget=Widget(DATASET, "more_sizes", 20),
        aitoolkit="datasets.resolution",
        diffusion_pipe="resolutions",
    )
    crop: Crop = option(
        "center",
        help="Which part is kept where a file does not fit its size.",
        more="top, bottom, left and right keep that edge. random: a part drawn for each sample, always the same one."
        " motion: where a clip moves most; it is read twice for that.",
        born=2,
        in_key=False,
        widget=Widget(DATASET, "crop", 48),
        simpletuner="crop_style",
    )
    crop_aspects: str = option(
        "",
        help="Aspect ratios that files are cut to, such as 1:1, or 16:9, 1:1, 9:16.",
        more="Empty: each file keeps its own, as far as a size has it.",
        born=2,
        in_key=False,
        widget=Widget(DATASET, "crop_aspects", 49),
        only_with={"aspect_buckets": (True,)},
        diffusion_pipe="ar_buckets",
    )
    crop_aspect: Literal["closest", "random"] = option(
        "closest",
        help="Which of crop_aspects a file is cut to.",
        more="closest: the one that cuts off least. random: one drawn for each file, always the same one.",
        born=2,
        in_key=False,
        widget=Widget(DATASET, "crop_aspect", 50),
        not_with={"crop_aspects": ("",)},
        simpletuner="crop_aspect",
    )
    flip_x: bool = option(
        False,
        help="Samples are mirrored left to right, too.",
        more="Not for what has a left and a right: writing, a parting, a walk to the left.",
        born=2,
        in_key=False,
        widget=Widget(DATASET, "flip_x", 51),
        aitoolkit="datasets.flip_x",
    )
    flip_y: bool = option(
        False,
        help="Samples are turned upside down, too.",
        more="For patterns and views from above alone.",
        born=2,
        in_key=False,
        widget=Widget(DATASET, "flip_y", 52),
        aitoolkit="datasets.flip_y",
    )
    flips: Literal["add", "half"] = option(
        "add",
        help="How flipped samples are used.",
        more="add: beside the others, as further samples. half: each sample is flipped or not, by a draw that stays the same."
        " Held-out samples are never flipped.",
        born=2,
        in_key=False,
        widget=Widget(DATASET, "flips", 53),
    )


def check_frames(options: FrameOptions) -> None:
    """ConfigError for a size or a number of frames that no Wan model takes."""
    for name in ("width", "height"):
        _check_side(name, getattr(options, name))
    if options.num_frames < 1 or options.num_frames != longest_clip(options.num_frames):
        low = longest_clip(options.num_frames)
        raise ConfigError(
            f"num_frames is {options.num_frames}, but Wan needs 4n+1 frames (1, 5, 9, ..., 33, 81): "
            f"use {low} or {low + FRAMES_PER_LATENT}."
        )
    sizes_of(options)


def aspect_ratios(text: str) -> tuple[float, ...]:
    """Width by height of each aspect in a text such as "16:9, 1:1"; () for none. ConfigError for one that can't be used."""
    found: list[float] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if part == "square":
            found.append(1.0)
            continue
        match = re.fullmatch(r"(\d{1,5}(?:\.\d{1,6})?)(?:\s*[:x/]\s*(\d{1,5}(?:\.\d{1,6})?))?", part)
        low = float(match[2] or 1) if match else 0.0
        ratio = float(match[1]) / low if match and low else 0.0
        if not 0.25 <= ratio <= 4:
            raise ConfigError(
                f"crop_aspects has '{in_short(part)}': give width and height, such as 16:9, from 1:4 to 4:1, with commas "
                "between."
            )
        found.append(ratio)
    return tuple(found)


def sizes_of(options: FrameOptions) -> tuple[tuple[int, int], ...]:
    """(width, height) of each size that the files are used at, the first as `width` and `height` say; none twice.

    ConfigError for `more_sizes` that are none.
    """
    found = [(options.width, options.height)]
    for text in filter(None, (part.strip() for part in options.more_sizes.split(","))):
        size = _SIZE.fullmatch(text)
        if size is None:
            raise ConfigError(
                f"more_sizes has the entry '{in_short(text)}', which is no size: write numbers with commas between them, such "
                "as 512, 768, 1024x576."
            )
        width, height = int(size[1]), int(size[2] or size[1])
        for pixels in (width, height):
            _check_side(f"a side of more_sizes ({text})", pixels)
        found.append((width, height))
    return tuple(dict.fromkeys(found))


def _check_side(name: str, pixels: int) -> None:
    if pixels > _MOST_PIXELS:
        raise ConfigError(f"{name} is {pixels}, but {_MOST_PIXELS} are the most.")
    if pixels < 16 or pixels % 16:
        low = pixels // 16 * 16
        use = f"{low} or {low + 16}" if low > 0 else "16 or more"
        raise ConfigError(f"{name} is {pixels}, but Wan needs a multiple of 16: use {use}.")
