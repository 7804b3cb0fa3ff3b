"""Keeps the translations true: a text whose English has changed loses its translations.

In the pack's folder, with the Python of the tests and a ComfyUI (as for the tests): python -m tools.locales
It writes the texts to translate: those of nodes to locales/english.json, those of the page's scripts to
locales/english_page.json. From the files in locales/LANGUAGE it takes what was made from another English text: nodeDefs.json is
of nodes; main.json of what scripts and pages say, by the English text; commands.json and settings.json of what the scripts tell
ComfyUI. The English text is shown where there is no translation. Help pages: tools/help_pages.py; they are written anew.
"""

import importlib.util
import json
import os
import re
import sys
import zlib
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from .comfyui import find_host

PACK = Path(__file__).resolve().parent.parent
LOCALES = PACK / "locales"
PAGES = (PACK / "web", PACK / "core" / "look" / "page", PACK / "nodes" / "watch")
PAGE = "wanTrain"  # the part of main.json that web/words.js reads
Texts = dict[str, str]  # path of keys in ComfyUI's nodeDefs.json, joined by "/" -> text


def english_texts(infos: Sequence[Mapping[str, Any]]) -> Texts:
    """All texts that nodes show, of their ComfyUI descriptions (as in /object_info).

    Names of inputs are not among them: recipes, help pages and messages name them as they are.
    """
    found: Texts = {}
    for info in infos:
        node = info["name"]
        found[f"{node}/display_name"] = info["display_name"]
        found[f"{node}/description"] = info.get("description") or ""
        for group in info["input"].values():
            for name, (_, *options) in group.items():
                found[f"{node}/inputs/{name}/tooltip"] = (options[0].get("tooltip") if options else "") or ""
        tooltips = info.get("output_tooltips") or ()
        for index, tooltip in enumerate(tooltips):
            found[f"{node}/outputs/{index}/tooltip"] = tooltip or ""
    return {path: text for path, text in found.items() if text}


def flat(table: Mapping[str, Any], path: str = "") -> Texts:
    """The texts of a nodeDefs.json by their paths."""
    found: Texts = {}
    for name, value in table.items():
        here = f"{path}/{name}" if path else name
        found |= {here: value} if isinstance(value, str) else flat(value, here)
    return found


def nested(texts: Mapping[str, str]) -> dict[str, Any]:
    """The nodeDefs.json of texts by their paths."""
    table: dict[str, Any] = {}
    for path, text in texts.items():
        *groups, name = path.split("/")
        place = table
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = text
    return table


def read(path: Path) -> dict[str, Any]:
    """A JSON file; empty where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write(path: Path, table: Mapping[str, Any]) -> None:
    """As it is kept in the repository."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


def checksum(text: str) -> str:
    """Of an English text."""
    return f"{zlib.crc32(text.encode()):08x}"


def languages(folder: Path = LOCALES) -> list[Path]:
    """Folders of the languages."""
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def keep_true(english: Mapping[str, str], folder: Path = LOCALES) -> dict[str, list[str]]:
    """Write english.json, and take stale translations away. Returns what each language lacks.

    made_from.json of a language has a checksum of the English text that each translation was made from. One without is new.
    """
    lacking = {}
    for language in languages(folder):
        path = language / "nodeDefs.json"
        texts, made_from = flat(read(path)), read(language / "made_from.json")
        fresh = {
            name: texts[name]
            for name, text in english.items()
            if name in texts and made_from.get(name, checksum(text)) == checksum(text)
        }
        write(path, nested(fresh))
        write(language / "made_from.json", {name: checksum(english[name]) for name in fresh})
        lacking[language.name] = [name for name in english if name not in fresh]
    write(folder / "english.json", english)
    return lacking


_TEXT = r'"(?:[^"\\]|\\.)*"'  # in a script, as its formatter writes it
_TEXTS = rf"{_TEXT}(?:\s*\+\s*{_TEXT})*"
_CALL = re.compile(r"(?<![.\w])say\(\s*(?!\w+\) \{)")  # not of a method of this name, nor the head of one
_COUNTED = re.compile(r"(?<![.\w])sayCount\(\s*(?!one, )")
_COMMAND = re.compile(rf"id: ({_TEXT}),\s*label: ({_TEXTS}),")
_SETTING = re.compile(
    rf"id: [^\n]*?(\w+)\)?,\n(?:(?!\bid: ).)*?name:\s+({_TEXTS}),\s*tooltip:\s+({_TEXTS}),", re.DOTALL
)


def joined(literal: str) -> str:
    """The text of a script's string, or of several with + between them."""
    return "".join(json.loads(part) for part in re.findall(_TEXT, literal))


class _Marked(HTMLParser):
    """Texts of the elements of a page that are marked with `data-say`, and of the attributes that words.js translates."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: set[str] = set()
        self._is_marked = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        found = dict(attrs)
        self._is_marked = "data-say" in found
        if self._is_marked:
            self.texts |= {text for name in ("placeholder", "aria-label") if (text := found.get(name))}

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002
        self._is_marked = False

    def handle_data(self, data: str) -> None:
        if self._is_marked and data.strip():
            self.texts.add(data.strip())


def page_texts(folders: Sequence[Path] = PAGES) -> dict[str, Texts]:
    """All texts of the pages' scripts, for each file of a language; ValueError if `say` or `sayCount` is called without."""
    said: set[str] = set()
    commands: Texts = {}
    settings: Texts = {}
    for page in (page for folder in folders for page in sorted(folder.glob("*.html"))):
        marked = _Marked()
        marked.feed(page.read_text(encoding="utf-8"))
        said |= marked.texts
    for script in (script for folder in folders for script in sorted(folder.glob("*.js"))):
        source = script.read_text(encoding="utf-8")
        for call in _CALL.finditer(source) if script.name != "words.js" else ():
            text = re.compile(_TEXTS).match(source, call.end())
            if text is None:
                line = source.count("\n", 0, call.start()) + 1
                raise ValueError(f"{script.name}, line {line}: say() is not given a text in double quotes.")
            said.add(joined(text[0]))
        for call in _COUNTED.finditer(source) if script.name != "words.js" else ():
            texts = re.compile(rf"({_TEXTS}),\s*({_TEXTS}),").match(source, call.end())
            if texts is None:
                line = source.count("\n", 0, call.start()) + 1
                raise ValueError(f"{script.name}, line {line}: sayCount() is not given two texts in double quotes.")
            said |= {joined(texts[1]), joined(texts[2])}
        for name, label in _COMMAND.findall(source):
            commands[f"{_key(joined(name))}/label"] = joined(label)
        for constant, name, tooltip in _SETTING.findall(source):
            found = re.search(rf"const {constant} = ({_TEXT});", source)
            assert found is not None
            settings |= {
                f"{_key(joined(found[1]))}/name": joined(name),
                f"{_key(joined(found[1]))}/tooltip": joined(tooltip),
            }
    return {"main": {text: text for text in sorted(said)}, "commands": commands, "settings": settings}


def _key(name: str) -> str:
    """An id as ComfyUI looks for its translations."""
    return name.replace(".", "_")


def read_page(path: Path) -> dict[str, Texts]:
    """What `keep_page_true` wrote, as `page_texts` gives it."""
    table = read(path) or {"main": [], "commands": {}, "settings": {}}
    return {
        "main": {text: text for text in table["main"]},
        "commands": flat(table["commands"]),
        "settings": flat(table["settings"]),
    }


def translated(language: Path) -> dict[str, Texts]:
    """The page's texts in a language."""
    return {
        "main": read(language / "main.json").get(PAGE, {}),
        "commands": flat(read(language / "commands.json")),
        "settings": flat(read(language / "settings.json")),
    }


def keep_page_true(english: Mapping[str, Texts], folder: Path = LOCALES) -> dict[str, list[str]]:
    """Write english_page.json, and take stale translations away. Returns the texts that each language lacks."""
    before = read_page(folder / "english_page.json")
    lacking: dict[str, list[str]] = {}
    for language in languages(folder):
        fresh = {
            file: {
                name: texts[name]
                for name, text in english[file].items()
                if name in texts and before[file].get(name, text) == text
            }
            for file, texts in translated(language).items()
        }
        # ComfyUI's menus look for a command by what it is called, and lists of commands by what it is.
        menu = {_key(english["commands"][name]): text for name, text in fresh["commands"].items()}
        write(language / "main.json", {"menuLabels": menu, PAGE: fresh["main"]})
        for file in ("commands", "settings"):
            write(language / f"{file}.json", nested(fresh[file]))
        lacking[language.name] = [
            text for file, texts in english.items() for name, text in texts.items() if name not in fresh[file]
        ]
    commands, settings = nested(english["commands"]), nested(english["settings"])
    write(folder / "english_page.json", {"main": list(english["main"]), "commands": commands, "settings": settings})
    return lacking


def node_infos(host: Path) -> list[dict[str, Any]]:
    """Of all nodes of the pack, by the ComfyUI in `host`, in this process."""
    sys.path[:] = [str(host), *(path for path in sys.path if Path(path or ".").resolve() != PACK)]
    sys.argv = [sys.argv[0], "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    spec = importlib.util.spec_from_file_location(
        "wan_train", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    assert spec is not None
    sys.modules["wan_train"] = importlib.util.module_from_spec(spec)
    from wan_train.nodes import NODES

    return [node.GET_NODE_INFO_V1() for node in NODES]


def main() -> int:
    """Bring the files up to date, and say what is not translated."""
    host = find_host(PACK, os.environ, Path.home())
    if host is None:
        print("Failed: no ComfyUI was found: set COMFYUI_PATH to its folder.", file=sys.stderr)
        return 1
    of_nodes = keep_true(english_texts(node_infos(host)))
    of_page = keep_page_true(page_texts())
    from . import help_pages

    cut_pages = help_pages.pages()
    help_pages.put(help_pages.files(cut_pages))
    for language, names in of_nodes.items():
        missing = [*names, *of_page[language]]
        of_help = len(help_pages.still_to_do(LOCALES / language, (), cut_pages))
        said = f"{language}: {len(missing)} texts are not translated, and {of_help} of the help pages"
        print(said, *missing[:20], sep="\n  ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
