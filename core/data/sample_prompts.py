"""The prompts of previews, as a person writes them: lines, a JSON library, or a JSON list."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from ..errors import ConfigError
from ..paths import shown
from ..prompts import fill_trigger, has_trigger
from ..safe_json import parse_json
from ..serial import from_dict
from ..settings.previews import SamplePromptOptions
from ..settings.samples import MOST_PROMPTS, SamplePrompt

# musubi-tuner's names at the end of a line (docs/sampling_during_training.md), and what they are here.
FLAGS = {
    "w": "width", "h": "height", "f": "frames", "d": "seed", "s": "steps", "l": "cfg", "fs": "shift", "n": "negative",
}  # fmt: skip
_FLAG = re.compile(r"(?:^|\s)--([a-z]+)(?=\s|$)")
_LIST = re.compile(r"\[\s*[\"{]")  # and not [trigger]
_WHOLE = ("width", "height", "frames", "seed", "steps")


def read_prompts(options: SamplePromptOptions, trigger_word: str = "") -> tuple[SamplePrompt, ...]:
    """The prompts, in order, with the trigger word in place of [trigger]; () for none.

    ConfigError, with the line or the nickname, for what is no prompt, and for [trigger] without a trigger word.
    """
    text = options.prompts.strip()
    if not text:
        if options.negative.strip():
            raise ConfigError(
                "sample_negative is for sample_prompts, which are empty: write a prompt, or leave it empty."
            )
        return ()
    found = list(_library(text) if text.startswith("{") else _list(text) if _LIST.match(text) else _lines(text))
    if len(found) > MOST_PROMPTS:
        raise ConfigError(
            f"sample_prompts has {len(found)} prompts, more than {MOST_PROMPTS}: previews would never end."
        )
    shared = options.negative.strip() or None
    named = [replace(one, negative=shared if one.negative is None else one.negative) for one in found]
    return tuple(_with_trigger(one, trigger_word) for one in named)


def texts_of(prompts: Sequence[SamplePrompt]) -> list[str]:
    """Everything of them that has to be encoded; the empty text always is."""
    return list(dict.fromkeys(text for one in prompts for text in (one.prompt, one.negative) if text))


def prompts_text(prompts: Sequence[Mapping[str, Any]]) -> str:
    """What `read_prompts` reads for entries with "prompt" and what else they have: lines where that is enough."""
    plain = [str(one["prompt"]) for one in prompts if set(one) == {"prompt"} and _is_plain(str(one["prompt"]))]
    if len(plain) == len(prompts):
        return "\n".join(plain)
    library: dict[str, Any] = {}
    for number, one in enumerate(prompts, start=1):
        entry = {name: value for name, value in one.items() if name != "name"}
        library[str(one.get("name", number))] = entry["prompt"] if set(entry) == {"prompt"} else entry
    return json.dumps(library, ensure_ascii=False, indent=1)


def line_of(text: str, where: str) -> dict[str, Any]:
    """A line as an entry: what stands before the first flag of musubi-tuner's, and what each flag says.

    ConfigError, which begins with `where`, for a flag that is none, or whose value is no number.
    """
    marks = list(_FLAG.finditer(text))
    entry: dict[str, Any] = {"prompt": text[: marks[0].start()].strip() if marks else text.strip()}
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    for mark, end in zip(marks, ends, strict=False):  # of no marks there is an end
        name, value = FLAGS.get(mark[1]), text[mark.end() : end].strip()
        if name is None:
            known = " ".join(f"--{flag}" for flag in FLAGS)
            raise ConfigError(f"{where} has --{mark[1]}, which is not known: a line can end with {known}.")
        entry[name] = value if name == "negative" else _number(name, value, where)
    return entry


def _is_plain(text: str) -> bool:
    begins_otherwise = text.lstrip().startswith(("{", "#")) or _LIST.match(text.lstrip())
    return bool(text.strip()) and "\n" not in text and not begins_otherwise and not _FLAG.search(text)


def _lines(text: str) -> Iterator[SamplePrompt]:
    number = 0
    for at, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        number += 1
        where = f"line {at} of sample_prompts"
        yield from_dict(SamplePrompt, {"name": str(number), **line_of(line, where)}, where)


def _library(text: str) -> Iterator[SamplePrompt]:
    data = _json(text)
    if not isinstance(data, dict) or not data:
        raise ConfigError(
            'sample_prompts must be lines, a list ["prompt", ...], or a table {"nickname": "prompt", ...}.'
        )
    for name, entry in cast(dict[str, Any], data).items():
        yield _entry(name, entry, f"sample_prompts.{shown(name)}")


def _list(text: str) -> Iterator[SamplePrompt]:
    for number, entry in enumerate(cast(list[Any], _json(text)), start=1):
        yield _entry(str(number), entry, f"prompt {number} of sample_prompts")


def _entry(name: str, entry: Any, where: str) -> SamplePrompt:
    table = {"prompt": entry} if isinstance(entry, str) else entry
    if not isinstance(table, dict):
        raise ConfigError(f'{where} must be a prompt, or a table such as {{"prompt": "...", "seed": 7}}.')
    return from_dict(SamplePrompt, {"name": name, **cast(dict[str, Any], table)}, where)


def _json(text: str) -> Any:
    try:
        return parse_json(text.encode("utf-8", "surrogatepass"), unique=True)
    except ValueError as error:
        raise ConfigError(
            f"sample_prompts begins like JSON, but is not valid JSON ({error}): correct it, or write a prompt on each line."
        ) from error


def _number(name: str, text: str, where: str) -> int | float:
    try:
        return int(text) if name in _WHOLE else float(text)
    except ValueError:
        kind = "a whole number" if name in _WHOLE else "a number"
        raise ConfigError(f"{where}: {name} must be {kind}, got '{shown(text, 40)}'.") from None


def _with_trigger(prompt: SamplePrompt, trigger_word: str) -> SamplePrompt:
    texts = (prompt.prompt, prompt.negative or "")
    if any(map(has_trigger, texts)) and not trigger_word.strip():
        raise ConfigError(
            f"the sample prompt {shown(prompt.name)} contains [trigger], but no trigger word is set: set trigger_word of the"
            " dataset, or write the word itself."
        )
    filled = fill_trigger(prompt.prompt, trigger_word)
    negative = None if prompt.negative is None else fill_trigger(prompt.negative, trigger_word)
    return replace(prompt, prompt=filled, negative=negative)
