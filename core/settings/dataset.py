"""How a folder becomes samples, and which frames an image-to-video model is given.

The options are in `dataset_frames`, `dataset_files`, `dataset_captions` and `dataset_beside`; here is what they mean together.
"""

from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigError
from ..names import in_short
from ..prompts import has_trigger
from .dataset_beside import BesideOptions, check_beside
from .dataset_captions import CaptionOptions, check_captions
from .dataset_files import SelectionOptions, check_ranges
from .dataset_frames import FrameOptions, aspect_ratios, check_frames
from .option import options_of, without_effect

Conditioning = Literal["none", "first frame", "first and last frame"]

CONDITIONINGS: tuple[Conditioning, ...] = ("none", "first frame", "first and last frame")


@dataclass(frozen=True, kw_only=True)
class DatasetOptions(BesideOptions, CaptionOptions, SelectionOptions, FrameOptions, group="dataset"):
    """How a folder becomes samples.

    The key of a run holds none of them: it holds the content that they lead to.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_class_word(self)
        check_ranges(self)
        _check_given(self)
        aspect_ratios(self.crop_aspects)
        check_beside(self)
        check_frames(self)
        check_captions(self)
        if self.caption_source == "trigger" and not self.trigger.strip():
            why = "a regularization set has no trigger word" if self.regularization else "no trigger word is set"
            raise ConfigError(
                f"caption_source is 'trigger', but {why}: set trigger_word, or choose another caption_source."
            )

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
