"""Captions that a vision-language model writes."""

import re
from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigError
from ..names import in_short
from .option import Options, Widget, option

CAPTION = "CaptionDataset"  # the node

LoraKind = Literal["general", "character", "style", "motion"]


@dataclass(frozen=True, kw_only=True)
class CaptioningOptions(Options, group="captioning"):
    """How a model is asked for captions. They decide text files, which the user can read and change: no run's key has them."""

    kind: LoraKind = option(
        "general",
        help="What the LoRA is to learn; the model is asked accordingly.",
        more="character: one person or figure; clothes, light and place are named, what is to be learned is not. style: the"
        " look is named first. motion: what moves, and how, is named first. general: all that is seen.",
        in_key=False,
        widget=Widget(CAPTION, "kind", 1, advanced=False, is_required=True),
    )
    must_say: str = option(
        "",
        help="Words that every caption holds: the trigger word, the name of the style, or the movement.",
        more="Such as 'zxq person', 'thick oil paint' or 'orbit 180 degrees around the subject'. They are put in front where"
        " the model leaves them out. [trigger] stands for the trigger word of the dataset.",
        in_key=False,
        widget=Widget(CAPTION, "must_say", 2, advanced=False, is_required=True),
    )
    question: str = option(
        "",
        help="What the model is asked, in your own words.",
        more="Empty: what suits the kind.",
        in_key=False,
        widget=Widget(CAPTION, "question", 3, is_required=True, multiline=True),
        aitoolkit="caption_prompt",
    )
    num_frames: int = option(
        8,
        help="Frames of a clip that the model sees, evenly spread over it.",
        more="More frames show movement better and take more memory.",
        least=1,
        most=64,
        in_key=False,
        widget=Widget(CAPTION, "num_frames", 4, is_required=True),
    )
    picture_size: int = option(
        512,
        help="Pictures are shown to the model with about this many pixels a side.",
        more="Larger shows more detail and takes more memory. None is scaled up.",
        least=64,
        most=4096,
        in_key=False,
        widget=Widget(CAPTION, "picture_size", 5, is_required=True, most=2048, step=32),
    )
    max_tokens: int = option(
        200,
        help="The most tokens of a caption.",
        more="A longer one ends at its last whole sentence. Wan reads 512.",
        least=8,
        most=512,
        unit="tokens",
        in_key=False,
        widget=Widget(CAPTION, "max_tokens", 6, is_required=True),
    )
    batch_size: int = option(
        1,
        help="Files that the model describes at once.",
        more="More is faster and takes more memory.",
        least=1,
        most=256,
        in_key=False,
        widget=Widget(CAPTION, "batch_size", 7, is_required=True, most=64),
    )
    redo: bool = option(
        False,
        help="Whether captions that a machine wrote here before are written anew.",
        more="Text that a person wrote or changed is never replaced.",
        in_key=False,
        widget=Widget(CAPTION, "redo", 8, is_required=True),
    )
    caption_extension: str = option(
        ".txt",
        help="Ending of the caption files' names, as the dataset has it.",
        in_key=False,
        widget=Widget(CAPTION, "caption_extension", 9, is_required=True),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"\.?[\w-]{1,30}", self.caption_extension):
            raise ConfigError(
                f"caption_extension is '{in_short(self.caption_extension)}': give the ending of the caption files' names, such "
                "as .txt."
            )
