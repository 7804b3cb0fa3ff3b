"""How a folder becomes samples, and which frames an image-to-video model is given."""

import re
from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigError
from ..facts import FRAMES_PER_LATENT, longest_clip
from ..names import in_short
from .option import DATASET, Options, Widget, option, without_effect

Conditioning = Literal["none", "first frame", "first and last frame"]

CONDITIONINGS: tuple[Conditioning, ...] = ("none", "first frame", "first and last frame")

FrameSampling = Literal["head", "chunk", "slide", "uniform", "full", "even"]

_MOST_PIXELS = 16_384  # of a side
_AS_THE_RUN = ((-1.0, None), (-1, None))  # a prompt may hold either
_SIZE = re.compile(r"(\d{1,6})(?:\s*[xX]\s*(\d{1,6}))?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class DatasetOptions(Options, group="dataset"):
    """How a folder becomes samples. All sizes in pixels, all frame counts after resampling to `fps`.

    The key of a run holds none of them: it holds the content that they lead to.
    """

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
    repeats: int = option(
        1,
        help="How often each sample is used in one epoch.",
        more="Of use when several datasets are joined.",
        least=1,
        most=1_000_000,
        in_key=False,
        widget=Widget(DATASET, "repeats", 11, is_required=True, most=10_000),
        musubi="num_repeats",
        aitoolkit="datasets.num_repeats",
        simpletuner="repeats",
        diffusion_pipe="num_repeats",
    )
    trigger_word: str = option(
        "",
        help="A rare word that will call the concept.",
        more="It replaces [trigger] in captions, and is put in front of captions that have neither.",
        in_key=False,
        widget=Widget(DATASET, "trigger_word", 4, advanced=False, is_required=True),
        not_with={"regularization": (True,)},
        aitoolkit="trigger_word",
        simpletuner="instance_prompt",
        diffusion_pipe="caption_prefix",
    )
    default_caption: str = option(
        "",
        help="Caption of files that have no text file.",
        more="Empty: they get the trigger word as their caption, or are left out and listed where there is none.",
        in_key=False,
        widget=Widget(DATASET, "default_caption", 12, is_required=True, multiline=True),
        aitoolkit="datasets.default_caption",
    )
    caption_extension: str = option(
        ".txt",
        help="Ending of the caption files' names.",
        page="Letters, digits, - and _.",
        in_key=False,
        widget=Widget(DATASET, "caption_extension", 13, is_required=True),
        musubi="caption_extension",
        aitoolkit="datasets.caption_ext",
    )
    bad_files: Literal["skip", "refuse"] = option(
        "skip",
        help="Files that are damaged or cut short.",
        more="skip: leave them out and list them. refuse: stop with the file's name.",
        in_key=False,
        widget=Widget(DATASET, "bad_files", 14, is_required=True),
        simpletuner="delete_problematic_images",
    )
    short_clips: Literal["shorten", "skip", "refuse"] = option(
        "shorten",
        help="Clips that have fewer frames than num_frames.",
        more="shorten: use as many as there are (4n+1). skip: leave them out and list them. refuse: stop with the clip's name.",
        in_key=False,
        widget=Widget(DATASET, "short_clips", 15, is_required=True),
    )
    held_out: int = option(
        0,
        help="Samples that are not trained on, but measured meanwhile: the validation loss.",
        zero="none",
        unit="samples",
        in_key=False,
        widget=Widget(DATASET, "held_out", 16, is_required=True, most=1000),
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
    loss_weight: float = option(
        1.0,
        help="What the loss of these samples counts beside that of other datasets: 0.5 is half.",
        more="Half the weight is half the gradient, where repeats decide how often a sample is seen.",
        above=0.0,
        most=1000.0,
        born=2,
        in_key=False,
        widget=Widget(DATASET, "loss_weight", 21, least=0.01, most=100.0, step=0.05, round=0.001),
        aitoolkit="datasets.loss_multiplier",
    )
    regularization: bool = option(
        False,
        help="Whether these files show what the model knows already, so that it keeps it.",
        more="They are trained plainly beside the concept: no trigger word is put into their captions. Give the set a"
        " loss_weight, or repeats, to balance it.",
        born=2,
        in_key=False,
        widget=Widget(DATASET, "regularization", 22),
        aitoolkit="datasets.is_reg",
        simpletuner="is_regularisation_data",
    )
    drop_captions: float | None = option(
        None,
        help="Probability that a sample of this dataset is trained with an empty caption.",
        more="-1: auto, as caption_dropout of the training says.",
        most=1.0,
        born=2,
        in_key=False,
        widget=Widget(DATASET, "drop_captions", 23, least=-1.0, most=1.0, step=0.05, round=0.001, values=_AS_THE_RUN),
        aitoolkit="datasets.caption_dropout_rate",
        simpletuner="caption_dropout_probability",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("width", "height"):
            _check_side(name, getattr(self, name))
        if self.num_frames < 1 or self.num_frames != longest_clip(self.num_frames):
            low = longest_clip(self.num_frames)
            raise ConfigError(
                f"num_frames is {self.num_frames}, but Wan needs 4n+1 frames (1, 5, 9, ..., 33, 81): "
                f"use {low} or {low + FRAMES_PER_LATENT}."
            )
        sizes_of(self)
        if not re.fullmatch(r"\.?[\w-]{1,30}", self.caption_extension):
            raise ConfigError(
                f"caption_extension is '{in_short(self.caption_extension)}': give the ending of the caption files' names, such "
                "as .txt."
            )

    @property
    def trigger(self) -> str:
        """The trigger word that is put into captions; none in a regularization set."""
        return "" if self.regularization else self.trigger_word

    def warnings(self) -> list[str]:
        """Options that have no effect, one sentence each."""
        return without_effect(self)


def sizes_of(options: DatasetOptions) -> tuple[tuple[int, int], ...]:
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
        raise ConfigError(
            f"{name} is {pixels}, but Wan needs a multiple of 16: use {max(16, pixels // 16 * 16)}"
            f" or {max(16, (pixels // 16 + 1) * 16)}."
        )
