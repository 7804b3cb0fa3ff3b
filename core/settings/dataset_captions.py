"""Of a dataset: where captions come from, and what is made of them."""

import re
from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigError
from ..names import in_short
from .option import DATASET, Options, Widget, option

CaptionSource = Literal["sidecar", "metadata", "filename", "trigger"]

_AS_THE_RUN = ((-1.0, None), (-1, None))  # a prompt may hold either


@dataclass(frozen=True, kw_only=True)
class CaptionOptions(Options, group="dataset"):
    """Where captions come from, the trigger word, and the further captions that are made of each."""

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

    @property
    def makes_variants(self) -> bool:
        """Whether further captions are made of each by changing its tags."""
        return self.shuffle_tags or self.tag_dropout > 0


def check_captions(options: CaptionOptions) -> None:
    """ConfigError for an ending or a separator that can't be one."""
    if not re.fullmatch(r"\.?[\w-]{1,30}", options.caption_extension):
        raise ConfigError(
            f"caption_extension is '{in_short(options.caption_extension)}': give the ending of the caption files' names, such "
            "as .txt."
        )
    if options.makes_variants and not options.tag_separator.strip():
        raise ConfigError("tag_separator is empty: give what stands between two tags of a caption, such as a comma.")
