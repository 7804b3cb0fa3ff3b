"""Prompts, sizes and seeds of previews, as other trainers have them: for previews while training, and for Preview LoRA."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..data.sample_prompts import prompts_text, read_prompts
from ..errors import ConfigError
from ..settings.previews import SamplePromptOptions
from .answers import FURTHER, PREVIEW, Answer, Context, Rule, SetupOption, changed, not_needed
from .common import need_number
from .declared import frames, side

PROMPTS, NEGATIVE = "samples.prompts", "samples.negative"
_OF_PREVIEW = {"frames": "num_frames"}  # what Preview LoRA calls it


def prompts(entries: Sequence[Mapping[str, Any]]) -> Answer:
    """All prompts of a setup: for previews while training; the first for Preview LoRA, whose note has the others.

    `entries` as `prompts_text` has them. ConfigError for what is no prompt.
    """
    if not entries:
        return not_needed("there is none.")
    text = prompts_text(entries)
    read_prompts(SamplePromptOptions(prompts=text), "a word")
    first, *others = entries
    further = {f"{FURTHER}{one.get('name', number)}": one["prompt"] for number, one in enumerate(others, start=2)}
    return Answer("mapped", {PROMPTS: text, f"{PREVIEW}prompt": first["prompt"], **further})


def told_once(context: Context, given: SetupOption, keys: Sequence[str], answer: Answer) -> Answer:
    """`answer` for the first option of these keys, which says what all of them are; the others say no more than that."""
    first = next((item for item in context.given if item.key in keys and str(item.value or "").strip()), given)
    return answer if given is first else Answer("mapped")


def negative(has_prompts: bool, text: str) -> Answer:
    """The negative prompt of all."""
    if not text.strip():
        return not_needed("it is empty.")
    values = {f"{PREVIEW}negative_prompt": text}
    if not has_prompts:
        return Answer("changed", values, "it is for Preview LoRA in the workflow: there are no prompts for previews.")
    return Answer("mapped", {**values, NEGATIVE: text})


def size(name: str) -> Rule:
    """width, height or frames of previews."""

    def rule(context: Context, given: SetupOption) -> Answer:
        return sizes_of(context, **{name: need_number(given.value)})

    return rule


def sizes_of(context: Context, **wanted: float) -> Answer:
    """Sizes that the model has, and what was changed for it."""
    found = {name: nearest(context, name, value) for name, value in wanted.items()}
    values: dict[str, Any] = {f"previews.{name}": value for name, value in found.items()}
    values |= {PREVIEW + _OF_PREVIEW.get(name, name): value for name, value in found.items()}
    if found == wanted:
        return Answer("mapped", values)
    told = " x ".join(map(str, found.values()))
    return Answer(
        "changed", values, f"the model needs other sizes (multiples of 16 or 32, and 4n+1 frames), so it is {told}."
    )


def nearest(context: Context, name: str, value: float) -> int:
    """The size nearest to a wanted one."""
    if name == "frames":
        return frames(max(1, int(value)))
    return round(value / 32) * 32 or 32 if context.facts.get("family") == "ti2v-5b" else side(value)


def seed(_context: Context, given: SetupOption) -> Answer:
    """The seed of previews; a negative one asks for any there."""
    value = need_number(given.value, is_whole=True)
    if value < 0:
        return changed("a random seed there; 1 here, so that previews can be compared.", previews__seed=1)
    return Answer("mapped", {"previews.seed": value, f"{PREVIEW}seed": value})


def whole(value: Any, name: str) -> int:
    """A whole number of an entry; ConfigError else."""
    found = need_number(value, is_whole=True)
    if found < 0:
        raise ConfigError(f"{name} is {found}, and less than 0.")
    return found
