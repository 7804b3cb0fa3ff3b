"""How a folder becomes samples, and which frames an image-to-video model is given."""

import re
from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigError
from ..facts import FRAMES_PER_LATENT, longest_clip
from ..names import in_short

Conditioning = Literal["none", "first frame", "first and last frame"]

CONDITIONINGS: tuple[Conditioning, ...] = ("none", "first frame", "first and last frame")

FrameSampling = Literal["head", "chunk", "slide", "uniform", "full", "even"]

# Upper limits of options: far above what can be trained on, and below what a machine chokes on while it counts.
MAX_OPTIONS = {
    "width": 16384,
    "height": 16384,
    "num_frames": 10_001,
    "windows_per_clip": 100_000,
    "slide_stride": 2**31,
    "repeats": 1_000_000,
}


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """How a folder becomes samples. All sizes in pixels, all frame counts after resampling to `fps`."""

    width: int = 832  # width and height give the pixel area; with buckets the aspect follows each file
    height: int = 480
    num_frames: int = 33  # frames of a sample taken from a clip; 4n+1
    fps: float = 16.0  # frames are resampled to this rate so that motion keeps its speed
    frame_sampling: FrameSampling = "head"
    windows_per_clip: int = 4  # "uniform": number of windows, evenly placed
    slide_stride: int = 16  # "slide": frames between the starts of two windows
    aspect_buckets: bool = True  # off: everything is scaled and centre-cropped to width x height
    upscale: bool = True  # off: files smaller than the bucket keep their size (rounded down to 16)
    repeats: int = 1
    trigger_word: str = ""  # replaces [trigger] in captions; put in front where neither is present
    default_caption: str = ""  # for files without a caption file
    caption_extension: str = ".txt"
    bad_files: Literal["skip", "refuse"] = "skip"  # unreadable or truncated files
    short_clips: Literal["shorten", "skip", "refuse"] = "shorten"  # clips with fewer frames than num_frames
    held_out: int = 0  # number of samples kept out of training for the validation loss

    def __post_init__(self) -> None:
        for name, limit in MAX_OPTIONS.items():
            if getattr(self, name) > limit:
                raise ConfigError(f"{name} is {getattr(self, name)}, and {limit} is the limit: use less.")
        for name in ("width", "height"):
            _check_side(name, getattr(self, name))
        if self.num_frames < 1 or self.num_frames != longest_clip(self.num_frames):
            low = longest_clip(self.num_frames)
            raise ConfigError(
                f"num_frames is {self.num_frames}, but Wan needs 4n+1 frames (1, 5, 9, ..., 33, 81): "
                f"use {low} or {low + FRAMES_PER_LATENT}."
            )
        if not 1.0 <= self.fps <= 240.0:
            raise ConfigError(
                f"fps is {self.fps}; it must lie between 1 and 240 (Wan 2.1 and A14B were trained at 16)."
            )
        for name in ("windows_per_clip", "slide_stride", "repeats"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not re.fullmatch(r"\.?[\w-]{1,30}", self.caption_extension):
            raise ConfigError(
                f"caption_extension is '{in_short(self.caption_extension)}': give the ending of the caption files' names, such "
                "as .txt."
            )
        if self.held_out < 0:
            raise ConfigError(f"held_out must be 0 or more, got {self.held_out}.")


def _check_side(name: str, pixels: int) -> None:
    if pixels < 16 or pixels % 16:
        raise ConfigError(
            f"{name} is {pixels}, but Wan needs a multiple of 16: use {max(16, pixels // 16 * 16)}"
            f" or {max(16, (pixels // 16 + 1) * 16)}."
        )
