"""How a folder becomes samples, and which frames an image-to-video model is given."""

import re
from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigError
from ..facts import FRAMES_PER_LATENT, longest_clip
from ..names import in_short
from ..prompts import has_trigger
from .option import DATASET, Options, Widget, option, options_of, without_effect

Conditioning = Literal["none", "first frame", "first and last frame"]

CONDITIONINGS: tuple[Conditioning, ...] = ("none", "first frame", "first and last frame")

CaptionSource = Literal["sidecar", "metadata", "filename", "trigger"]

FrameSampling = Literal["head", "chunk", "slide", "uniform", "full", "even"]

Crop = Literal["center", "top", "bottom", "left", "right", "random", "motion"]
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
        not_with={"frame_sampling": ("full",)},
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
    min_side: int = option(
        0,
        help="Files whose shorter side has fewer pixels are left out, and listed.",
        zero="no limit",
        most=100_000,
        born=2,
        in_key=False,
        widget=Widget(DATASET, "min_side", 40, most=16_384),
        simpletuner="minimum_image_size",
    )
    max_side: int = option(
        0,
        help="Files whose longer side has more pixels are left out, and listed.",
        zero="no limit",
        most=100_000,
        born=2,
        in_key=False,
        widget=Widget(DATASET, "max_side", 41, most=16_384),
    )
    min_megapixels: float = option(
        0.0,
        help="Files with fewer million pixels are left out, and listed.",
        more="1280x720 is 0.92.",
        zero="no limit",
        most=1000.0,
        born=2,
        in_key=False,
        widget=Widget(DATASET, "min_megapixels", 42, most=100.0, step=0.01),
    )
    max_megapixels: float = option(
        0.0,
        help="Files with more million pixels are left out, and listed.",
        zero="no limit",
        most=1000.0,
        born=2,
        in_key=False,
        widget=Widget(DATASET, "max_megapixels", 43, most=100.0, step=0.01),
    )
    min_frames: int = option(
        0,
        help="Clips with fewer frames are left out, and listed.",
        more="The frames in the file are counted, before fps resamples them.",
        zero="no limit",
        born=2,
        in_key=False,
        widget=Widget(DATASET, "min_frames", 44, most=100_000),
        simpletuner="video.min_frames",
    )
    max_frames: int = option(
        0,
        help="Clips with more frames are left out, and listed.",
        zero="no limit",
        born=2,
        in_key=False,
        widget=Widget(DATASET, "max_frames", 45, most=1_000_000),
        simpletuner="video.max_frames",
    )
    min_seconds: float = option(
        0.0,
        help="Shorter clips are left out, and listed.",
        zero="no limit",
        unit="seconds",
        born=2,
        in_key=False,
        widget=Widget(DATASET, "min_seconds", 46, most=86_400.0, step=0.1),
    )
    max_seconds: float = option(
        0.0,
        help="Longer clips are left out, and listed.",
        zero="no limit",
        unit="seconds",
        born=2,
        in_key=False,
        widget=Widget(DATASET, "max_seconds", 47, most=86_400.0, step=0.1),
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
    mask_folder: str = option(
        "",
        help="Folder with a mask for each file: a picture or a clip of the same name, white where the loss counts.",
        more="A path within the dataset folder, or a full path. Empty: none.",
        born=2,
        in_key=False,
        widget=Widget(DATASET, "mask_folder", 54),
        aitoolkit="datasets.mask_path",
        diffusion_pipe="mask_path",
    )
    mask_suffix: str = option(
        "",
        help="Ending of the masks that lie beside the files.",
        more="-masklabel: dog-masklabel.png is the mask of dog.mp4, as OneTrainer writes it. Such files are not trained on."
        " Empty: none.",
        born=2,
        in_key=False,
        widget=Widget(DATASET, "mask_suffix", 55),
    )
    alpha_mask: bool = option(
        False,
        help="What is transparent in a file does not count in the loss.",
        more="For files that have no other mask.",
        born=2,
        in_key=False,
        widget=Widget(DATASET, "alpha_mask", 56),
        aitoolkit="datasets.alpha_mask",
    )
    mask_least: float = option(
        0.0,
        help="What the loss counts where a mask is black.",
        more="0.1 lets a little of the background be learnt, which keeps it from falling apart.",
        most=1.0,
        born=2,
        in_key=False,
        widget=Widget(DATASET, "mask_least", 57, step=0.01),
        aitoolkit="datasets.mask_min_value",
    )
    mask_invert: bool = option(
        False,
        help="Masks are black where the loss counts.",
        born=2,
        in_key=False,
        widget=Widget(DATASET, "mask_invert", 58),
        aitoolkit="datasets.invert_mask",
    )
    control_clips: str = option(
        "",
        help="A folder with a control clip for each file: depth, pose or edges, frame by frame; or a picture.",
        more="A folder within the dataset folder; its files have the names of those that they belong to, and are not trained"
        " on. Their latents are cached with the others. For models that are given control clips: none of those can be trained"
        " yet, and the others refuse such a dataset.",
        born=2,
        in_key=False,
    )
    reference_pictures: str = option(
        "",
        help="The same for reference pictures: one of what is to be seen, for each file.",
        born=2,
        in_key=False,
    )
    first_frames: str = option(
        "",
        help="Image-to-video: a folder with a picture for each clip, given to the model as the first frame.",
        more="In place of the clip's own first frame. A folder within the dataset folder; its pictures have the clips' names,"
        " and are not trained on. Empty: the clip's own.",
        born=2,
        in_key=False,
        widget=Widget(DATASET, "first_frames", 60),
    )
    last_frames: str = option(
        "",
        help="The same for the last frame, with condition_on 'first and last frame'.",
        born=2,
        in_key=False,
        widget=Widget(DATASET, "last_frames", 61),
    )
    frames_file: str = option(
        "",
        help="Image-to-video: a .jsonl file in the dataset folder that names clips and the pictures given with them.",
        more='A line for each: {"file_name": "a.mp4", "first_frame": "start.png", "last_frame": "end.png"}. Clips that it does'
        " not name are given their own frames.",
        page='"control" and "reference" name a control clip and a reference picture.',
        born=2,
        in_key=False,
        widget=Widget(DATASET, "frames_file", 62),
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
    class_word: str = option(
        "",
        help="A plain word for what the trigger word names: person, dog. For output_preservation of the training.",
        more="Each caption is also encoded with it in place of the trigger word.",
        born=2,
        in_key=False,
        widget=Widget(DATASET, "class_word", 70),
        not_with={"regularization": (True,)},
        aitoolkit="train.diff_output_preservation_class",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_class_word(self)
        _check_ranges(self)
        _check_given(self)
        aspect_ratios(self.crop_aspects)
        if not re.fullmatch(r"[\w.-]{0,30}", self.mask_suffix):
            raise ConfigError(
                f"mask_suffix is '{in_short(self.mask_suffix)}': give what stands behind a file's name in that of its mask, "
                "such as -masklabel."
            )
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
        if self.makes_variants and not self.tag_separator.strip():
            raise ConfigError(
                "tag_separator is empty: give what stands between two tags of a caption, such as a comma."
            )
        if self.caption_source == "trigger" and not self.trigger.strip():
            why = "a regularization set has no trigger word" if self.regularization else "no trigger word is set"
            raise ConfigError(
                f"caption_source is 'trigger', but {why}: set trigger_word, or choose another caption_source."
            )

    @property
    def makes_variants(self) -> bool:
        """Whether further captions are made of each by changing its tags."""
        return self.shuffle_tags or self.tag_dropout > 0

    @property
    def trigger(self) -> str:
        """The trigger word that is put into captions; none in a regularization set."""
        return "" if self.regularization else self.trigger_word

    def warnings(self) -> list[str]:
        """Options that have no effect, one sentence each."""
        found = without_effect(self)
        if has_trigger(self.trigger):
            found.append(
                "trigger_word is itself [trigger], which stands for the trigger word in captions: give the word that will call "
                "the concept."
            )
        if self.flips != "add" and not (self.flip_x or self.flip_y):
            found.append("flips has no effect without flip_x or flip_y.")
        if not self.has_masks:
            names = [name for name in ("mask_least", "mask_invert") if getattr(self, name)]
            found += [f"{name} has no effect without mask_folder, mask_suffix or alpha_mask." for name in names]
        return [*found, *self._without_variants()]

    def _without_variants(self) -> list[str]:
        if self.makes_variants:
            return []
        defaults = {item.name: item.default for item in options_of(DatasetOptions)}
        names = ("keep_tags", "caption_variants", "tag_separator")
        changed = (name for name in names if getattr(self, name) != defaults[name])
        return [f"{name} has no effect without shuffle_tags or tag_dropout." for name in changed]

    @property
    def gives_frames(self) -> tuple[str, ...]:
        """The options that name pictures to give in place of the clips' own frames."""
        return tuple(name for name in ("first_frames", "last_frames", "frames_file") if getattr(self, name))

    @property
    def names_pairs(self) -> bool:
        """Whether control clips or reference pictures are looked for."""
        return bool(self.control_clips or self.reference_pictures or self.frames_file)

    @property
    def has_masks(self) -> bool:
        """Whether masks are looked for."""
        return bool(self.mask_folder or self.mask_suffix or self.alpha_mask)


def _check_class_word(options: DatasetOptions) -> None:
    trigger, word = (" ".join(text.split()) for text in (options.trigger_word, options.class_word))
    if not word or options.regularization:
        return
    if not trigger:
        raise ConfigError(
            f"class_word is '{in_short(word)}', but no trigger word is set, in whose place it would stand: set trigger_word."
        )
    if word == trigger:
        raise ConfigError(
            f"class_word is '{in_short(word)}', as the trigger word is: give a plain word for what that names, such as person."
        )


_RANGES = (
    ("min_side", "max_side"),
    ("min_megapixels", "max_megapixels"),
    ("min_frames", "max_frames"),
    ("min_seconds", "max_seconds"),
)


def _check_ranges(options: DatasetOptions) -> None:
    for low, high in _RANGES:
        least, most = getattr(options, low), getattr(options, high)
        if most and least > most:
            raise ConfigError(
                f"{low} is {least:g}, above {high}, which is {most:g}: no file would be left; lower the one or raise the other."
            )


def _check_given(options: DatasetOptions) -> None:
    """Pictures belong to the ends of a clip, so that windows in its middle can have none."""
    for name in options.gives_frames:
        if options.frame_sampling not in ("head", "full", "even"):
            raise ConfigError(
                f"{name} is set, but with frame_sampling {options.frame_sampling} a clip gives several samples, which one "
                "picture cannot all begin: choose head, full or even."
            )
        if options.crop == "motion":
            raise ConfigError(f"{name} is set, but crop motion cannot follow a picture: choose another crop.")
    for name in (*options.gives_frames, "control_clips", "reference_pictures"):
        path = getattr(options, name).replace("\\", "/")
        if path.startswith("/") or ":" in path or ".." in path.split("/"):
            raise ConfigError(
                f"{name} is '{in_short(path)}': give a name within the dataset folder, such as starts or frames.jsonl."
            )


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
        low = pixels // 16 * 16
        use = f"{low} or {low + 16}" if low > 0 else "16 or more"
        raise ConfigError(f"{name} is {pixels}, but Wan needs a multiple of 16: use {use}.")
