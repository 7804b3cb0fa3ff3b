"""Keeps the translations of the nodes true: a text whose English has changed loses its translations.

In the pack's folder, with the Python of the tests and a ComfyUI (as for the tests): python -m tools.locales
It writes locales/english.json, the texts to translate, and takes from locales/LANGUAGE/nodeDefs.json what was made from another
English text. ComfyUI shows the English text where there is no translation.
"""

import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .comfyui import find_host

PACK = Path(__file__).resolve().parent.parent
LOCALES = PACK / "locales"
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


def languages(folder: Path = LOCALES) -> list[Path]:
    """Folders of the languages."""
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def keep_true(english: Mapping[str, str], folder: Path = LOCALES) -> dict[str, list[str]]:
    """Write english.json, and take stale translations away. Returns what each language lacks."""
    before = read(folder / "english.json")
    lacking = {}
    for language in languages(folder):
        path = language / "nodeDefs.json"
        texts = flat(read(path))
        fresh = {
            name: texts[name] for name, text in english.items() if name in texts and before.get(name, text) == text
        }
        write(path, nested(fresh))
        lacking[language.name] = [name for name in english if name not in fresh]
    write(folder / "english.json", english)
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
    lacking = keep_true(english_texts(node_infos(host)))
    for language, names in lacking.items():
        print(f"{language}: {len(names)} texts are not translated", *names[:20], sep="\n  ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
