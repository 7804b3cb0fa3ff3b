"""What a node adds to an error of the core: what to connect or to press on this page."""

import contextlib
from collections.abc import Iterator

from ..core.errors import (
    ANOTHER_LORA,
    CLIP_VISION,
    CONDITION_ON,
    SAME_DATASET,
    START_AGAIN,
    TOKENIZER,
    TWO_LORAS,
    WanTrainError,
    advised,
)

ADVICE = {
    START_AGAIN: "Here: press Run.",
    CONDITION_ON: "Here: set condition_on of Cache Latents.",
    CLIP_VISION: "Here: Load CLIP Vision gives it to clip_vision of Cache Latents.",
    TOKENIZER: "Here: put spiece.model into ComfyUI's models/text_encoders.",
    SAME_DATASET: "Here: connect one Dataset from Folder to Cache Latents and to Cache T5.",
    ANOTHER_LORA: "Here: connect a LoRA to Merge Stages.",
    TWO_LORAS: "Here: choose the file in Split LoRA; it gives both LoRAs, and writes a file of each.",
}


@contextlib.contextmanager
def advising() -> Iterator[None]:
    """Errors of the core leave with the page's own words added to them."""
    try:
        yield
    except WanTrainError as error:
        error.args = (advised(error, ADVICE),)
        error.about = ""  # said once
        raise
