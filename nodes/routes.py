"""What the front end asks the server: the curve of a run, after a page reload; the presets."""

import re

from aiohttp import web
from server import PromptServer

from ..core.errors import WanTrainError
from ..core.launch.presets import PRESETS
from ..core.train.events import read_history
from ..core.train.run_folder import RunFolder
from . import host


def register() -> None:
    """Add the routes to the host's server."""
    routes = PromptServer.instance.routes
    routes.get("/wan_train/runs/{run}")(get_run)
    routes.get("/wan_train/presets")(get_presets)


async def get_run(request: web.Request) -> web.Response:
    """The history of one run: losses, validation losses, state."""
    name = request.match_info["run"]
    folder = RunFolder(host.runs_path() / name)
    if not re.fullmatch(r"[\w .+()-]+", name) or name.startswith(".") or not folder.job_path.is_file():
        return web.json_response({"error": "there is no such run"}, status=404)
    history = read_history(folder.events_path)
    try:
        steps = folder.read_job().loop.steps
    except WanTrainError as error:
        return web.json_response({"error": str(error)}, status=500)
    return web.json_response(
        {
            "run": name,
            "steps": steps,
            "state": history.state,
            "line": history.message,
            "losses": sorted(history.losses.items()),
            "validation": sorted(history.validation.items()),
        }
    )


async def get_presets(_: web.Request) -> web.Response:
    """What each preset puts into the inputs of which nodes."""
    presets = [
        {
            "title": preset.title,
            "description": preset.description,
            "values": {
                "DatasetFromFolder": preset.dataset,
                "LoadWanDiT": preset.model,
                "TrainLoRAStage": {**preset.train, "epochs": preset.epochs},
            },
        }
        for preset in PRESETS.values()
    ]
    return web.json_response(presets)
