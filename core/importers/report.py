"""The report of an import: what became of every option, in words."""

from collections.abc import Sequence
from typing import Any

from ..paths import shown
from ..serial import to_dict
from ..words import counted
from .answers import FURTHER, OUTCOMES, PREVIEW, Outcome
from .setup import Imported, Line

_TITLES: dict[Outcome, str] = {
    "mapped": "The same here",
    "changed": "Done in another way",
    "not needed": "Not needed here",
    "not supported": "Not supported here",
}


def report(imported: Imported) -> str:
    """All of it, a line an option."""
    files = list(dict.fromkeys(line.given.file for line in imported.given))
    counts = ", ".join(
        f"{number} {outcome}" for outcome in OUTCOMES if (number := len(_of(imported.given, outcome)))
    )  # fmt: skip
    given = counted(len(imported.given), "option")
    lines = [f"{imported.trainer}, {imported.family.title}: {given} in {_and(list(map(shown, files)))} ({counts})."]
    lines += _section("To do before it can be trained", imported.to_fill)
    lines += _section("Notes", imported.notes)
    for outcome in reversed(OUTCOMES):
        found = _of(imported.given, outcome)
        lines += _section(f"{_TITLES[outcome]} ({len(found)})", _sentences(found, with_file=len(files) > 1))
    assumed = [line for line in imported.assumed if line.answer.outcome != "not needed"]
    lines += _section(
        f"What your files leave out, as {imported.trainer} takes it", _sentences(assumed, with_file=False)
    )
    return "\n".join(lines) + "\n"


def _sentences(lines: Sequence[Line], *, with_file: bool) -> list[str]:
    """A sentence an option; one for both experts where they say the same."""
    stages: dict[str, list[str]] = {}
    for line in lines:
        stages.setdefault(sentence(line, with_file=with_file), []).append(line.stage or "")
    return [
        f"{text} ({of[0]} noise)" if of[0] and len(set(of)) == 1 else text + (" (both experts)" if of[0] else "")
        for text, of in stages.items()
    ]


def sentence(line: Line, *, with_file: bool) -> str:
    """One option: where it is, its value, what it is here, and why."""
    given, answer = line.given, line.answer
    where = f"{shown(given.file)}: " if with_file and given.file else ""
    text = f"{where}{shown(given.name)} = {given.shown}"
    if answer.values:
        own = [f"{_place(place)} = {_value(value)}" for place, value in answer.values.items() if not _is_further(place)]
        number = len(answer.values) - len(own)
        more = [f"a note with {counted(number, 'further prompt')}"] if number else []
        text += "  ->  " + ", ".join([*own, *more])
    return f"{text}: {answer.why}" if answer.why else text


def _of(lines: tuple[Line, ...], outcome: Outcome) -> list[Line]:
    return [line for line in lines if line.answer.outcome == outcome]


def _is_further(place: str) -> bool:
    return place.startswith(FURTHER)


def _place(place: str) -> str:
    return f"Preview LoRA: {place.removeprefix(PREVIEW)}" if place.startswith(PREVIEW) else place


def _value(value: Any) -> str:
    plain = to_dict(value)
    return shown(str(plain).lower() if isinstance(plain, bool) else f"{plain}", 80)


def _section(title: str, lines: Any) -> list[str]:
    return ["", f"{title}:", *(f"  - {line}" for line in lines)] if lines else []


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "no file"
