"""What the page asks of runs while they go on: which one a node shows, and Stop, Pause, Save and their like."""

import asyncio

from aiohttp import web

from ..core.errors import WanTrainError
from . import host
from .follow import followed
from .page_file import find_shown
from .routes import guarded, refusal, threads
from .train_nodes import STAGES


def register() -> None:
    """Add the routes to the host's server."""
    routes = host.routes()
    routes.get("/wan_train/shown")(guarded(get_shown))
    routes.post("/wan_train/runs/{run}/ask/{what}")(guarded(post_ask))


async def get_shown(request: web.Request) -> web.Response:
    """The run that a training node shows: {"run": name of the folder, or ""}. See `find_shown`.

    In the query: its `token`; the `run` that its workflow names; its `name` (lora_name) and `stage`. Each may be left out.
    """
    asked = {name: request.query.get(name, "") for name in ("token", "run", "name")}
    stage = STAGES.get(request.query.get("stage", ""), "single")
    loop = asyncio.get_running_loop()
    found = await loop.run_in_executor(threads, lambda: find_shown(host.runs_path(), stage=stage, **asked))
    return web.json_response({"run": found})


async def post_ask(request: web.Request) -> web.Response:
    """Ask a run that is trained by this server for `what`, one of the `asks` that it tells: {} when it is asked.

    404 for a run that nobody trains here, 409 with a sentence for what it can't do at the moment.
    """
    follower = followed(request.match_info["run"])
    if follower is None:
        return refusal(404, "this run is not being trained here at the moment: queue again to go on with it.")
    try:
        follower.ask(request.match_info["what"])
    except WanTrainError as error:
        return refusal(409, str(error))
    return web.json_response({})
