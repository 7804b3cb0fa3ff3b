"""Help pages in other languages: web/docs/NODE/LANGUAGE.md, which ComfyUI shows in place of web/docs/NODE.md.

In the pack's folder:

    python -m tools.help_pages LANGUAGE [NODE ...]   what is still to be translated, as JSON
    python -m tools.help_pages LANGUAGE FILE.json    takes {id: translation} of such texts into locales/LANGUAGE/help.json

An English page is cut into units: a heading, a paragraph, an item of a list, a cell of a table. help.json has the translation
of each by its English text: a text that was edited is shown in English until it is translated anew. Tooltips, and what buttons
say, come from the language's other files. `python -m tools.documents` writes the pages.
"""

import json
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .locales import LOCALES, PACK, checksum, flat, languages, read, translated, write

DOCS = PACK / "web" / "docs"
MOST = 0.75  # share of a page's units that must be translated for the page to be written
Texts = dict[str, str]
_MADE = "<!-- Made from {page} and locales/{language}/help.json by: python -m tools.documents -->"
_CELLS = re.compile(r"(?<!\\)\|")
_ITEM = re.compile(r" *(?:-|\d+\.) ")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"`[^`]+`")
_NAMES = re.compile(r"(?:[a-z]\w*[_\d]\w*|`[^`]+`|[\d.,%▲▼\s])*")  # not a word to translate
_COMFYUI = ("Run",)  # ComfyUI's own button, which has a name of its own in each language
_OF_NAMES = ("Input", "Output", "Optimizer", "Trouble")  # heads of columns of names that are shown in English


class Unit(str):
    """A text of a page that is translated as a whole, in one line."""

    __slots__ = ()


Line = list[str]  # of parts, each a Unit or Markdown that stays as it is


def cut(page: str, tooltips: Iterable[str] = ()) -> list[Line]:
    """The lines of a page in their units. `tooltips`: a cell that begins with one of them is two units."""
    lines: list[Line] = []
    heads: list[str] = []
    is_code = is_open = False  # in a block of code; in a paragraph or item that goes on
    for line in page.splitlines():
        if line.startswith("```") or is_code:
            is_code ^= line.startswith("```")
            lines.append([line])
        elif line.startswith("<!--"):
            continue
        elif line.startswith("|"):
            cells = [cell.strip() for cell in _CELLS.split(line)[1:-1]]
            is_head = not lines or not lines[-1] or lines[-1][0] != "|"
            heads = cells if is_head else heads
            lines.append(["|", *(part for cell in zip(heads, cells, strict=True) for part in _cell(*cell, tooltips))])
        elif heading := re.match(r"#+ ", line):
            lines.append([heading[0], Unit(line[heading.end() :])])
        elif item := _ITEM.match(line):
            lines.append([item[0], Unit(line[item.end() :])])
        elif line.strip() and is_open:
            lines[-1][-1] = Unit(f"{lines[-1][-1]} {line.strip()}")
        else:
            lines.append([Unit(line)] if line.strip() else [])
        is_open = bool(lines[-1]) and isinstance(lines[-1][-1], Unit) and not line.startswith("#")
    return lines


def _cell(head: str, text: str, tooltips: Iterable[str]) -> Iterator[str]:
    """Parts of a cell of a table, with the bar after it."""
    begins = max((tip for tip in tooltips if text.startswith(f"{tip} ")), key=len, default="")
    yield " "
    if _NAMES.fullmatch(text) or re.fullmatch(r"[-:]+", text) or (head in _OF_NAMES and text != head):
        yield text
    elif begins:
        yield from (Unit(begins), " ", Unit(text[len(begins) + 1 :]))
    else:
        yield Unit(text)
    yield " |"


def units(lines: Iterable[Line]) -> list[Unit]:
    """Of a page, each once."""
    return list(dict.fromkeys(part for line in lines for part in line if isinstance(part, Unit)))


def pages(docs: Path = DOCS, locales: Path = LOCALES) -> dict[str, list[Line]]:
    """The English page of each node, cut."""
    paths = sorted(docs.glob("*.md"))
    return {path.stem: cut_page(path.stem, path.read_text(encoding="utf-8"), locales) for path in paths}


def cut_page(node: str, text: str, locales: Path = LOCALES) -> list[Line]:
    """The page of a node, where the node's tooltips are units of their own."""
    english = read(locales / "english.json")
    tips = [tip.replace("|", "\\|") for path, tip in english.items() if path.startswith(f"{node}/inputs/")]
    return cut(text, tips)


def settled(language: Path) -> Texts:
    """What the language has from nodes and the page's scripts, by the English text."""
    english, made_from = read(language.parent / "english.json"), read(language / "made_from.json")
    of_nodes = {
        english[path]: text
        for path, text in flat(read(language / "nodeDefs.json")).items()
        if path in english and made_from.get(path) == checksum(english[path])
    }
    found = translated(language)["main"] | of_nodes
    return {source.replace("|", "\\|"): text.replace("|", "\\|") for source, text in found.items()}


def help_texts(language: Path) -> Texts:
    """Of help.json: English unit -> translation."""
    return read(language / "help.json")


def in_order(language: Path, cut_pages: Mapping[str, list[Line]]) -> list[tuple[str, Unit]]:
    """What help.json is for, as the pages have it, each unit once with its page."""
    known = settled(language)
    found: dict[Unit, str] = {}
    for node, lines in cut_pages.items():
        for unit in units(lines):
            if unit not in known:
                found.setdefault(unit, node)
    return [(node, unit) for unit, node in found.items()]


def render(lines: Iterable[Line], texts: Mapping[str, str]) -> str:
    """The page with the translations that there are; links to its own headings lead to them as they are called now."""
    lines = list(lines)
    done = [[texts.get(part, part) if isinstance(part, Unit) else part for part in line] for line in lines]
    for line in done:  # a tooltip and what follows it: no space after wide punctuation
        for index in range(2, len(line) - 1):
            if line[index] == " " and unicodedata.east_asian_width(line[index - 1][-1]) in "WF":
                line[index] = ""
    moved = {slug(old[1]): slug(new[1]) for old, new in zip(lines, done, strict=True) if old and old[0].startswith("#")}
    page = "\n".join("".join(line) for line in done) + "\n"
    return re.sub(r"\]\(#([^)\s]+)\)", lambda link: f"](#{moved.get(link[1], link[1])})", page)


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def page_in(language: str, node: str, lines: list[Line], texts: Mapping[str, str]) -> str | None:
    """The page in a language; None where too little of it is translated."""
    all_units = units(lines)
    if sum(unit in texts for unit in all_units) < MOST * len(all_units):
        return None
    return f"{_MADE.format(page=f'{node}.md', language=language)}\n{render(lines, texts)}"


def files(cut_pages: Mapping[str, list[Line]], pack: Path = PACK) -> dict[Path, str | None]:
    """help.json and the pages of all languages, and the text that each should have; None: it should not be there."""
    locales, docs = pack / "locales", pack / "web" / "docs"
    found: dict[Path, str | None] = dict.fromkeys(docs.glob("*/*.md"))
    for language in languages(locales):
        texts = help_texts(language)
        if texts:
            fresh = {unit: texts[unit] for _, unit in in_order(language, cut_pages) if unit in texts}
            found[language / "help.json"] = as_json(fresh)
        texts = texts | settled(language)
        for node, lines in cut_pages.items():
            found[docs / node / f"{language.name}.md"] = page_in(language.name, node, lines, texts)
    return found


def node_names(language: Path) -> Texts:
    """What nodes are called, as pages name them: without what stands in brackets behind it."""
    english, texts = read(language.parent / "english.json"), flat(read(language / "nodeDefs.json"))
    names = {english[path]: text for path, text in texts.items() if path.endswith("/display_name")}
    return {_short(source): _short(text) for source, text in names.items()}


def _short(name: str) -> str:
    return re.sub(r"\s*[(\uff08][^()\uff08\uff09]*[)\uff09]$", "", name)


def faults(unit: str, text: str, names: Mapping[str, str]) -> list[str]:
    """What a translation of a unit has not as the English text has it. `names`: of nodes, in its language."""
    found = []
    for what, pattern in (("code", _CODE), ("numbers", re.compile(r"\d+")), ("links", _LINK)):
        if (ours := sorted(pattern.findall(text))) != (theirs := sorted(pattern.findall(unit))):
            found.append(f"{what}: {theirs} became {ours}")
    plain, ours = (_CODE.sub("`", each) for each in (unit, text))
    for mark in ("**", "*", "|", "`"):
        count, now = ((each.replace("**", "") if mark == "*" else each).count(mark) for each in (plain, ours))
        if count != now:
            found.append(f"{mark} stands {count} times in the English text, and {now} times here")
    errors = re.match(r"(?:\*[^*]+\*(?:, | or )?)+(?= \([^)]*\):|:)", unit)
    quoted = re.findall(r"\*[^*]+\*", errors[0]) if errors else []
    found += [f"{error} is an error, which is shown in English" for error in quoted if error not in text]
    for name in re.findall(r"\*\*([^*]+)\*\*", plain):
        if name in names and f"**{names[name]}**" not in text:
            found.append(f"**{name}** is called **{names[name]}** in this language")
    if cut(text) != [[Unit(text)]] or text != text.strip():
        found.append("it must be one line of text, without what begins a list, heading or table")
    if not list(_dead_marks(plain)):
        found += [f"{part} is not shown as bold or italic: {why}" for part, why in _dead_marks(ours)]
    return found


def _dead_marks(text: str) -> Iterator[tuple[str, str]]:
    """Marks that Markdown takes as plain asterisks, which is easily so between letters that have no spaces between them."""
    is_begin = True
    for mark in re.finditer(r"\*+", text):
        before, after = text[: mark.start()][-1:] or " ", text[mark.end() :][:1] or " "
        inner, outer = (after, before) if is_begin else (before, after)
        if inner.isspace():
            yield text[max(0, mark.start() - 8) : mark.end() + 8], "a space stands within the marks"
        elif _is_punctuation(inner) and not (outer.isspace() or _is_punctuation(outer)):
            yield (
                text[max(0, mark.start() - 8) : mark.end() + 8],
                "put the punctuation outside of the marks, or a space",
            )
        is_begin = not is_begin


def _is_punctuation(letter: str) -> bool:
    return unicodedata.category(letter)[0] in "PS"


def as_json(table: Any) -> str:
    """As it is kept in the repository."""
    return json.dumps(table, indent=2, ensure_ascii=False) + "\n"


def still_to_do(language: Path, nodes: Iterable[str], cut_pages: Mapping[str, list[Line]]) -> list[dict[str, Any]]:
    """What is not translated, of some pages or of all: id, page, text, and names in the language that it should use."""
    done, names = help_texts(language), node_names(language)
    known = settled(language) | names
    wanted = set(nodes)
    return [
        {"id": checksum(unit), "page": node, "text": unit}
        | ({"names": named} if (named := _named(unit, known)) else {})
        for node, unit in in_order(language, cut_pages)
        if unit not in done and (not wanted or node in wanted)
    ]


def _named(unit: str, known: Mapping[str, str]) -> Texts:
    words = re.findall(r"\*+([^*]+)\*+", unit)
    return {word: known[word] for word in words if word in known and word not in _COMFYUI}


def take(language: Path, given: Mapping[str, str], cut_pages: Mapping[str, list[Line]]) -> list[str]:
    """Put translations by id into help.json. Returns what is wrong, a line each; what is wrong is not taken."""
    wanted = {checksum(unit): unit for _, unit in in_order(language, cut_pages)}
    texts, names = help_texts(language), node_names(language)
    wrong = [f"{key}: no page has such a text" for key in given if key not in wanted]
    for key, unit in wanted.items():
        if key in given:
            found = faults(unit, given[key], names)
            wrong += [f"{key}: {fault}" for fault in found]
            texts |= {} if found else {unit: given[key]}
    write(language / "help.json", {unit: texts[unit] for unit in wanted.values() if unit in texts})
    return wrong


def main(arguments: list[str]) -> int:
    """Print what is to be translated, or take translations and write the pages; returns the exit status."""
    if not arguments or (language := LOCALES / arguments[0]) not in languages():
        print(f"Failed: name one of {', '.join(path.name for path in languages())}.", file=sys.stderr)
        return 1
    cut_pages = pages()
    if unknown := {name for name in arguments[1:] if not name.endswith(".json")} - set(cut_pages):
        print(f"Failed: no node has a help page of the name {', '.join(sorted(unknown))}.", file=sys.stderr)
        return 1
    if not arguments[1:] or not arguments[1].endswith(".json"):
        print(as_json(still_to_do(language, arguments[1:], cut_pages)), end="")
        return 0
    given = json.loads(Path(arguments[1]).read_text(encoding="utf-8"))
    wrong = take(language, given, cut_pages)
    put(files(cut_pages))
    left = len(still_to_do(language, (), cut_pages))
    print(*wrong, f"{len(given)} texts given, {left} still to be translated", sep="\n")
    return 1 if wrong else 0


def text_of(path: Path) -> str | None:
    """Of a file; None where there is none."""
    return path.read_text(encoding="utf-8") if path.is_file() else None


def put(wanted: Mapping[Path, str | None]) -> None:
    """Write files, and remove those that should not be there."""
    for path, text in wanted.items():
        if text is None:
            path.unlink(missing_ok=True)
        elif text_of(path) != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
