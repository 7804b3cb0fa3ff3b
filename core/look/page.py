"""The page as one HTML text with its style and scripts inside: it asks no other address for anything."""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from ..disk import check_writable, write_atomic
from ..errors import ConfigError
from .strips import StripStore

_FOLDER = Path(__file__).parent / "page"
WORDS = _FOLDER / "words.js"  # of any page that stands alone
_SCRIPTS = ("words.js", "cards.js", "detail.js", "main.js")
_NO_DATA = "/*data*/null"
# The scripts are modules of each other; in the page they are one.
_MODULE = re.compile(r"^import [^;]+;$|^export ", re.MULTILINE)
_KEPT = re.compile(r"[0-9a-f]{32}\.(webp|json)")


def page(data: dict[str, Any] | None = None) -> str:
    """The page. With `data`, {"dataset": {...}, "events": [...]}, it shows these; without, it asks its server."""
    if data is None:
        return _page()
    # A caption may hold "</script>": in JSON a bracket can be written as a number.
    written = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    before, _, after = _page().partition(_NO_DATA)
    return before + written + after


@cache
def policy() -> str:
    """The Content-Security-Policy of the page without data: its own scripts alone, and nothing of other servers."""
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", _page(), re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'"
    )


def files_folder(file: Path) -> Path:
    """Where the strips of a page that is written to a file lie: `look_files` beside `look.html`."""
    return file.with_name(f"{file.stem}_files")


def check_place(file: Path, datasets: Sequence[Path]) -> None:
    """ConfigError for a place that no page can be written to, or that is in a dataset: strips are pictures."""
    if file.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{file} does not end with .html: give the page a name such as look.html.")
    if any(file.resolve().is_relative_to(folder.resolve()) for folder in datasets):
        raise ConfigError(
            f"{file} lies in a dataset folder, where the page's pictures would be trained on: choose a place outside."
        )
    check_writable(file.absolute().parent)


def write_page(file: Path, events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Write a page of what was seen, and remove strips beside it that it does not show; what it holds of the dataset."""
    dataset: dict[str, Any] = {}
    told: list[dict[str, Any]] = []
    for event in events:
        if event["event"] == "dataset":
            dataset = {**event, "files": files_folder(file).name}
        else:
            told.append(event)
    text = page({"dataset": dataset, "events": told})
    write_atomic(file, lambda stream: stream.write(text.encode()))
    used = {item["key"] for event in told for item in event.get("items", []) if "key" in item}
    folder = files_folder(file)
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if _KEPT.fullmatch(path.name) and path.stem not in used:
            with suppress(OSError):  # on Windows: shown to somebody at the moment
                path.unlink(missing_ok=True)
    return {**dataset, "told": told}


def strips_beside(file: Path) -> StripStore:
    """The strips of a page that is written to a file. They are used again when it is written again."""
    return StripStore(files_folder(file))


def alone(script: str) -> str:
    """A script as it stands in a page with those that it imports: without what makes it a module."""
    return _MODULE.sub("", script)


@cache
def _page() -> str:
    """The page without data."""
    text = (_FOLDER / "page.html").read_text(encoding="utf-8")
    style = (_FOLDER / "page.css").read_text(encoding="utf-8")
    scripts = "\n".join(alone((_FOLDER / name).read_text(encoding="utf-8")) for name in _SCRIPTS)
    return text.replace("/*style*/", style).replace("/*script*/", scripts)
