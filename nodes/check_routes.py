"""What the page's Check asks: see check_graph.py."""

import asyncio
import logging

from aiohttp import web

from ..core.errors import WanTrainError
from ..core.safe_json import parse_object
from . import host
from .check_graph import check
from .routes import guarded, read_all, refusal, threads

log = logging.getLogger(__name__)
_MOST_BYTES = 20_000_000  # of a prompt


def register() -> None:
    """Add the route to the host's server."""
    host.routes().post("/wan_train/check")(guarded(post_check))


async def post_check(request: web.Request) -> web.Response:
    """{"prompt": as it would be queued} to {"nodes": {id: {"text", "failed"}}}: what each node has to say.

    With "light": true of what is known without opening files and without measuring the GPU, and without what is yet to be
    connected. 400 for a request without a prompt, 415 for what is no JSON, 422 with a sentence for one without trainings.
    """
    if request.content_type != "application/json":  # a page of another site can't send that without asking first
        return refusal(415, "the request must be JSON")
    body = await read_all(request, _MOST_BYTES)
    try:
        asked = parse_object(body or b"")
        prompt, light = asked["prompt"], asked.get("light") is True
    except (KeyError, ValueError):
        return refusal(400, "the request holds no workflow, or too large a one.")
    try:
        found = await asyncio.get_running_loop().run_in_executor(
            threads, check, prompt, light, lambda: _is_gone(request)
        )
    except WanTrainError as error:
        return refusal(422, str(error))
    except Exception:
        log.exception("a workflow could not be checked")
        return refusal(500, "this workflow can't be checked, for a reason that stands in ComfyUI's log.")
    return web.json_response({"nodes": found})


def _is_gone(request: web.Request) -> bool:
    """Whether nobody waits for the answer any more: the page asks anew when inputs change."""
    return request.transport is None or request.transport.is_closing()
