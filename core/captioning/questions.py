"""What a model is asked, and what is made of its answer.

By kind of LoRA, as AI-Toolkit's guide to Wan 2.2 has it: a character's caption has the trigger word and rich words for clothes,
light and framing; a style's speaks of the look rather than of objects; a motion's always names the movement.
"""

import re

from ..paths import can_be_shown
from ..settings.captioning import CaptioningOptions, LoraKind

_THING = {False: "picture", True: "video"}
_FRAMES = "The pictures are frames of one video, in order. "
_MOVEMENT = " Say what moves, in which direction and how fast, and what the camera does."
_ASKED: dict[LoraKind, str] = {
    "general": "Describe this {thing} in one paragraph: the subject, what it does, the place, the light, the colours and how"
    " it is framed.",
    "character": "Describe this {thing} in one paragraph. Say in two or three words what kind of person or figure is seen,"
    " then the clothes, the pose, the expression, how near the camera is, the light and the place. Do not describe the face,"
    " the hair or the body: they are always the same.",
    "style": "Describe the look of this {thing} in one paragraph. Begin with the medium and the style, then colours,"
    " contrast, light, texture and lens. Say in a few words at the end what is seen; do not list objects.",
    "motion": "Describe the movement in this {thing} in one paragraph. Begin with the movement of the camera or the subject,"
    " its direction and speed, from the first frame to the last. Say in a few words at the end who or what is seen, and"
    " where.",
}
_RULES = " Write plain sentences about what is seen, without an introduction, lists or guesses."

_THOUGHT = re.compile(r"<think>.*?(?:</think>|$)", re.DOTALL)
_LABEL = re.compile(r"^(?:caption|description|answer)\s*:\s*", re.IGNORECASE)
_PAIRS = {'"': '"', "“": "”", "'": "'", "「": "」"}
_ENDS = re.compile(r"[.!?](?=\s)|[.!?]$|[\u3002\uff01\uff1f]")  # and the full stops of Chinese and Japanese


def question_for(options: CaptioningOptions, *, is_clip: bool) -> str:
    """The question for a picture or a clip."""
    said = " ".join(options.must_say.split())
    if options.question.strip():
        asked = options.question.strip()
    else:
        movement = _MOVEMENT if is_clip and options.kind in ("general", "character") else ""
        asked = _ASKED[options.kind].format(thing=_THING[is_clip]) + movement + _RULES
    wanted = f" Use exactly these words: {said}." if said else ""
    return f"{_FRAMES if is_clip else ''}{asked}{wanted}"


def caption_of(answer: str, options: CaptioningOptions, *, was_cut: bool = False) -> str:
    """The caption in a model's answer, with `must_say` in it; "" for an answer that says nothing.

    `was_cut`: the model had more to say; then the caption ends at its last whole sentence, if it has one.
    """
    text = _LABEL.sub("", " ".join(_THOUGHT.sub("", answer).split())).strip("*# ")
    text = "".join(filter(can_be_shown, text))
    if len(text) > 1 and _PAIRS.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    if was_cut and (ends := list(_ENDS.finditer(text))):
        text = text[: ends[-1].end()]
    said = " ".join(options.must_say.split())
    if not text or not said or said.casefold() in text.casefold():
        return text
    return f"{said}, {text}"
