"""Of a dataset: which files are used, and how much each of them counts."""

from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigError
from .option import DATASET, Options, Widget, option

_RANGES = (
    ("min_side", "max_side"),
    ("min_megapixels", "max_megapixels"),
    ("min_frames", "max_frames"),
    ("min_seconds", "max_seconds"),
)


@dataclass(frozen=True, kw_only=True)
class SelectionOptions(Options, group="dataset"):
    """Which files of a folder are used, how often, and how much their loss counts."""

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
        help="Samples that are not trained on, but measured meanwhile: the held-out loss.",
        zero="none",
        unit="samples",
        in_key=False,
        widget=Widget(DATASET, "held_out", 16, is_required=True, most=1000),
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
        " loss_weight, or repeats, to balance it. With prior_preservation the model learns what it predicts for them without"
        " the LoRA.",
        born=2,
        in_key=False,
        widget=Widget(DATASET, "regularization", 22),
        aitoolkit="datasets.is_reg",
        simpletuner="is_regularisation_data",
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


def check_ranges(options: SelectionOptions) -> None:
    """ConfigError for a least that is above its most."""
    for low, high in _RANGES:
        least, most = getattr(options, low), getattr(options, high)
        if most and least > most:
            raise ConfigError(
                f"{low} is {least:g}, above {high}, which is {most:g}: no file would be left; lower the one or raise the other."
            )
