"""What the command line adds to an error of the core: which option, or which line of the recipe, mends it."""

from ..errors import CLIP_VISION, CONDITION_ON, START_AGAIN, TOKENIZER, TWO_LORAS

TRAINS = ("run", "train")  # commands that go on where they were
ADVICE = {
    START_AGAIN: "The same command starts it again, from its last checkpoint if there is one.",
    CONDITION_ON: "In a recipe that is the line conditioning.",
    CLIP_VISION: "In a recipe that is models.clip_vision; `wantrain preview` takes it by --clip-vision.",
    TOKENIZER: "`wantrain download tokenizer --to FOLDER` fetches it. In a recipe it is models.tokenizer; `wantrain preview` "
    "takes it by --tokenizer.",
    TWO_LORAS: "`wantrain split FILE --out FOLDER` does that.",
}


def advice_of(command: str) -> dict[str, str]:
    """What is added to the errors of a command: those that train go on from a checkpoint, others begin anew."""
    return ADVICE if command in TRAINS else {about: text for about, text in ADVICE.items() if about != START_AGAIN}
