"""The words of the pages that stand alone (Look, and the one for a phone) in a language: they do not load ComfyUI's own."""

import json
from functools import cache
from pathlib import Path

from aiohttp import web

from . import host
from .routes import guarded

_LOCALES = Path(__file__).parent.parent / "locales"
_PAGE = "wanTrain"  # the part of main.json that pages read


def register() -> None:
    """Add the route to the host's server."""
    host.routes().get("/wan_train/words/{language}")(guarded(get_words))


async def get_words(request: web.Request) -> web.Response:
    """Translations by the English text; {} of a language that there is none of."""
    return web.json_response(words(request.match_info["language"]))


def words(language: str) -> dict[str, str]:
    """The same, as a table."""
    return _read(language) if language in _languages() else {}


@cache
def _languages() -> frozenset[str]:
    return frozenset(path.parent.name for path in _LOCALES.glob("*/main.json"))


@cache
def _read(language: str) -> dict[str, str]:
    return json.loads((_LOCALES / language / "main.json").read_text(encoding="utf-8"))[_PAGE]
