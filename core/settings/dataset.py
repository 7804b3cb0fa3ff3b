"""How a folder becomes samples, and which frames an image-to-video model is given."""

import re
from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigError
from ..facts import FRAMES_PER_LATENT, longest_clip
from ..names import in_short
from .option import DATASET, Options, Widget, option, options_of, without_effect

Conditioning = Literal["none", "first frame", "first and last frame"]

CONDITIONINGS: tuple[Conditioning, ...] = ("none", "first frame", "first and last frame")

CaptionSource = Literal["sidecar", "metadata", "filename", "trigger"]

FrameSampling = Literal["head", "chunk", "slide", "uniform", "full", "even"]


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
        most=16_384,
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
        most=16_384,
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
        not_with={"caption_source": ("trigger",)},
        aitoolkit="datasets.default_caption",
    )
    caption_extension: str = option(
        ".txt",
        help="Ending of the caption files' names.",
        more="Such as .txt or .caption. Files that end in .json or .jsonl are read as such: a text, a list of texts, or the"
        " field caption.",
        page="Letters, digits, - and _.",
        in_key=False,
        widget=Widget(DATASET, "caption_extension", 13, is_required=True),
        only_with={"caption_source": ("sidecar",)},
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

    caption_source: CaptionSource = option(
        "sidecar",
        help="Where captions come from.",
        more="sidecar: a file of the same name with the ending caption_extension. metadata: one file for the whole folder, see"
        " metadata_file. filename: the name of each file, with spaces in place of _ and -. trigger: the trigger word alone is"
        " the caption of all; caption files are not read.",
        born=2,
        in_key=False,
        widget=Widget(DATASET, "caption_source", 30),
        simpletuner="caption_strategy",
    )
    metadata_file: str = option(
        "",
        help="The file with all captions, for caption_source metadata.",
        more="A JSONL, JSON or CSV file in the dataset's folder, that names each file and its caption or captions. Empty: it is"
        " found by its name, such as metadata.jsonl or captions.json.",
        page="JSONL: a line for each file, with file_name (also image_path, video_path, file or path) and caption (also"
        " captions, text or prompt). CSV: the same as columns, named in the first line. JSON: a list of such entries, or a"
        " table of names with captions. Names are relative to the file. A file that several entries name has several"
        " captions, and one of them is drawn at each step.",
        born=2,
        in_key=False,
        widget=Widget(DATASET, "metadata_file", 31),
        only_with={"caption_source": ("metadata",)},
        musubi="image_jsonl_file",
    )
    caption_lines: Literal["join", "separate"] = option(
        "join",
        help="What several lines in a caption's text are.",
        more="join: one caption. separate: each line is a caption of its own, and one of them is drawn at each step.",
        born=2,
        in_key=False,
        widget=Widget(DATASET, "caption_lines", 32),
        only_with={"caption_source": ("sidecar", "metadata")},
    )
    shuffle_tags: bool = option(
        False,
        help="For captions that are lists of tags: also train with the tags in other orders.",
        more="As caption_variants further captions, one of all of which is drawn at each step.",
        born=2,
        in_key=False,
        widget=Widget(DATASET, "shuffle_tags", 33),
        aitoolkit="datasets.shuffle_tokens",
    )
    tag_dropout: float = option(
        0.0,
        help="For captions that are lists of tags: the chance that a tag is left out of a further caption.",
        more="0.1 leaves out every tenth. caption_variants says how many such captions are made; the caption as it is"
        " written stays beside them.",
        most=1.0,
        zero="off",
        born=2,
        in_key=False,
        widget=Widget(DATASET, "tag_dropout", 34, step=0.05),
        aitoolkit="datasets.token_dropout_rate",
    )
    keep_tags: int = option(
        0,
        help="So many tags at the start of each caption keep their place, and are never left out.",
        more="A trigger word that is put in front comes before them, and always stays.",
        most=1000,
        unit="tags",
        born=2,
        in_key=False,
        widget=Widget(DATASET, "keep_tags", 35),
        aitoolkit="datasets.keep_tokens",
    )
    caption_variants: int = option(
        8,
        help="How many further captions are made of each by shuffle_tags and tag_dropout.",
        more="They are encoded once, with the others.",
        least=1,
        most=1000,
        born=2,
        in_key=False,
        widget=Widget(DATASET, "caption_variants", 36, most=100),
        diffusion_pipe="cache_shuffle_num",
    )
    tag_separator: str = option(
        ",",
        help="What stands between two tags.",
        born=2,
        in_key=False,
        widget=Widget(DATASET, "tag_separator", 37),
        diffusion_pipe="cache_shuffle_delimiter",
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
        if not re.fullmatch(r"\.?[\w-]{1,30}", self.caption_extension):
            raise ConfigError(
                f"caption_extension is '{in_short(self.caption_extension)}': give the ending of the caption files' names, such "
                "as .txt."
            )
        if self.makes_variants and not self.tag_separator.strip():
            raise ConfigError(
                "tag_separator is empty: give what stands between two tags of a caption, such as a comma."
            )
        if self.caption_source == "trigger" and not self.trigger_word.strip():
            raise ConfigError("caption_source is 'trigger', but no trigger word is set: set trigger_word.")

    @property
    def makes_variants(self) -> bool:
        """Whether further captions are made of each by changing its tags."""
        return self.shuffle_tags or self.tag_dropout > 0

    def warnings(self) -> list[str]:
        """Options that have no effect, one sentence each."""
        found = without_effect(self)
        if not self.makes_variants:
            defaults = {item.name: item.default for item in options_of(DatasetOptions)}
            for name in ("keep_tags", "caption_variants", "tag_separator"):
                if getattr(self, name) != defaults[name]:
                    found.append(f"{name} has no effect without shuffle_tags or tag_dropout.")
        return found


def _check_side(name: str, pixels: int) -> None:
    if pixels < 16 or pixels % 16:
        raise ConfigError(
            f"{name} is {pixels}, but Wan needs a multiple of 16: use {max(16, pixels // 16 * 16)}"
            f" or {max(16, (pixels // 16 + 1) * 16)}."
        )
