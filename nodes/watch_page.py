"""A page for a phone that shows one run at a time, at /wan_train/watch: it reads what the sidebar reads, and can press Stop.

It is one text with its style and script inside. What changes something goes through the same routes as everywhere.
"""

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from aiohttp import web

from ..core.look.page import WORDS, alone
from . import host
from .routes import guarded

_FOLDER = Path(__file__).parent / "watch"
_WEB = Path(__file__).parent.parent / "web"
_SHARED = (WORDS, _WEB / "curve.js", _WEB / "prompt_title.js", _WEB / "run_states.js")  # with other pages


def register() -> None:
    """Add the route to the host's server."""
    host.routes().get("/wan_train/watch")(guarded(get_page))


async def get_page(_: web.Request) -> web.Response:
    """The page; the run that it shows stands behind the # of its address."""
    headers = {"Content-Security-Policy": policy(), "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
    return web.Response(text=page(), content_type="text/html", headers=headers)


@cache
def page() -> str:
    """The page's text."""
    text, style, own = (
        (_FOLDER / name).read_text(encoding="utf-8") for name in ("watch.html", "watch.css", "watch.js")
    )
    scripts = "\n".join(alone(one) for one in (*(path.read_text(encoding="utf-8") for path in _SHARED), own))
    return text.replace("/*style*/", style).replace("/*script*/", scripts)


@cache
def policy() -> str:
    """Its Content-Security-Policy: its own script alone, and nothing of other servers; no page shows it in a frame."""
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", page(), re.DOTALL)
    allowed = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in scripts
    )
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
