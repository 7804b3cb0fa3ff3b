"""What the front end asks the server: the curve of a run, after a page reload, and its previews; the presets."""

import re

from aiohttp import web
from server import PromptServer

from ..core.errors import WanTrainError
from ..core.launch.presets import PRESETS
from ..core.train.events import read_history
from ..core.train.preview_folder import VIDEO_NAME, PreviewFolder
from ..core.train.run_folder import RunFolder
from . import host


def register() -> None:
    """Add the routes to the host's server."""
    routes = PromptServer.instance.routes
    routes.get("/wan_train/runs/{run}")(get_run)
    routes.get("/wan_train/runs/{run}/previews/{name}")(get_preview)
    routes.get("/wan_train/presets")(get_presets)


async def get_run(request: web.Request) -> web.Response:
    """The history of one run: losses, validation losses, previews, state."""
    name = request.match_info["run"]
    folder = _run_folder(name)
    if folder is None:
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
            "previews": PreviewFolder.of(folder).videos(),
        }
    )


async def get_preview(request: web.Request) -> web.StreamResponse:
    """A preview that a run made, as an animated picture."""
    folder, name = _run_folder(request.match_info["run"]), request.match_info["name"]
    if folder is None or not VIDEO_NAME.fullmatch(name):
        return web.json_response({"error": "there is no such preview"}, status=404)
    path = PreviewFolder.of(folder).path / name
    if not path.is_file():
        return web.json_response({"error": "there is no such preview"}, status=404)
    return web.FileResponse(path, headers={"Content-Type": "image/webp"})


def _run_folder(name: str) -> RunFolder | None:
    """The run of this name; None where there is none, or the name is a path to somewhere else."""
    folder = RunFolder(host.runs_path() / name)
    is_name = re.fullmatch(r"[\w .+()-]+", name) and not name.startswith(".")
    return folder if is_name and folder.job_path.is_file() else None


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
