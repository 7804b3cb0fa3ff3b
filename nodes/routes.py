"""What the front end asks the server: the curve of a run, after a page reload, and its previews; the presets; imports.

A diary may have a million lines: it is read in a thread, so that the server goes on answering, and its curve is thinned
to what a chart can show. What can't be answered is a sentence with a 4xx status, and names no path of this machine.
"""

import asyncio
import ipaddress
import logging
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from ..core.data.links import is_file
from ..core.errors import WanTrainError
from ..core.importers.families import FAMILIES, families_like
from ..core.importers.report import report
from ..core.importers.setup import import_setup
from ..core.importers.texts import MAX_BYTES, SetupFile
from ..core.importers.workflow import workflow
from ..core.names import is_plain
from ..core.recipe.presets import PRESETS, node_values
from ..core.recipe.recipe import recipe_to_toml
from ..core.safe_json import parse_object
from ..core.train.find_run import is_in_use
from ..core.train.history import MAX_ALARMS, Histories
from ..core.train.preview_folder import VIDEO_NAME, PreviewFolder
from ..core.train.run_folder import RunFolder
from ..core.wan.checkpoint import inspect
from . import host
from .follow import followed
from .host import folders
from .told import is_finished, told

log = logging.getLogger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

HOSTS_VARIABLE = "WANTRAIN_HOSTS"
_MOST_BYTES = 255  # of a file name
_MOST_MODELS = 20  # that are asked for at once
_MOST_IMPORTED = 4 * MAX_BYTES  # of all files of a setup together
histories = Histories()
threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="wan_train_routes")  # the host keeps its own for itself


def register() -> None:
    """Add the routes to the host's server."""
    routes = host.routes()
    routes.get("/wan_train/runs/{run}")(guarded(get_run))
    routes.get("/wan_train/runs/{run}/previews")(guarded(get_gallery))
    routes.get("/wan_train/runs/{run}/previews/{name}")(guarded(get_preview))
    routes.get("/wan_train/presets")(guarded(get_presets))
    routes.get("/wan_train/families")(guarded(get_families))
    routes.post("/wan_train/import")(guarded(post_import))


def guarded(handler: Handler) -> Handler:
    """The handler, for requests that are meant for this server, with a sentence in the place of an error."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if not is_own_name(request.headers.get("Host", ""), host.listens_locally()):
            return refusal(
                403,
                "this server is only for programs on its own machine, and the address asked for has another name: open "
                f"ComfyUI as localhost, or set the environment variable {HOSTS_VARIABLE} to the name that you use.",
            )
        try:
            return await handler(request)
        except OSError as error:
            log.warning("%s could not be answered: %s", request.rel_url, error)
            return refusal(409, f"it can't be read at the moment ({error.strerror or 'disk error'}): try again.")

    return answer


def is_own_name(address: str, listens_locally: bool) -> bool:
    """Whether a Host header names this server.

    A page of somebody else can have its own name lead to 127.0.0.1 and read what answers there (DNS rebinding). The host
    compares Host with Origin, which are alike then. A server that listens on this machine alone is therefore known by an
    address, as localhost, or by a name in WANTRAIN_HOSTS (several with commas, * for any); others have names of their own.
    """
    if not listens_locally or not address:
        return True
    try:
        name = (urlsplit(f"//{address}").hostname or "").rstrip(".")
    except ValueError:
        return False
    if name == "localhost" or name.endswith(".localhost"):
        return True
    allowed = [own.strip().lower() for own in os.environ.get(HOSTS_VARIABLE, "").split(",")]
    if name in allowed or "*" in allowed:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def refusal(status: int, sentence: str) -> web.Response:
    """An answer that says why there is no other."""
    return web.json_response({"error": sentence}, status=status)


async def get_run(request: web.Request) -> web.Response:
    """The history of one run: losses (thinned, with averages, if there are many), held-out losses, previews, state."""
    name = request.match_info["run"]
    folder = run_folder(name)
    if folder is None:
        return refusal(404, "there is no such run")
    loop = asyncio.get_running_loop()
    try:
        return web.json_response(await loop.run_in_executor(threads, _describe, folder))
    except WanTrainError as error:
        return refusal(422, str(error).replace(f"{folder.path}", name))


def _describe(folder: RunFolder) -> dict[str, Any]:
    job, follower = folder.read_job(), followed(folder.path.name)
    steps = job.loop.steps
    with histories.reader(folder.events_path).reading() as history:
        state, line = history.state, history.message
        if follower is not None:
            state, line = follower.state, follower.line
        elif state in ("waiting", "training") and not is_in_use(folder):
            state, line = "stopped", "the training process is gone: press Run to go on"
        elif state == "finished" and not is_finished(folder, job, history):  # made longer, and not begun anew yet
            state, line = "stopped", ""
        return {
            "run": folder.path.name,
            "steps": steps,
            "state": state,
            "line": line,
            "facts": [] if follower is None else follower.facts,
            "asks": [] if follower is None else follower.asks,
            "notes": told(folder, job, history, is_over=follower is None),
            "losses": history.losses.thinned(),
            "smoothed": history.losses.smoothed(steps),
            "validation": history.validation.thinned(),
            "alarms": history.alarms[-MAX_ALARMS:],
            "previews": PreviewFolder.of(folder).videos(),
        }


async def get_gallery(request: web.Request) -> web.Response:
    """The previews of a run by prompt and step."""
    folder = run_folder(request.match_info["run"])
    if folder is None:
        return refusal(404, "there is no such run")
    loop = asyncio.get_running_loop()
    return web.json_response(await loop.run_in_executor(threads, PreviewFolder.of(folder).gallery))


async def get_preview(request: web.Request) -> web.StreamResponse:
    """A preview that a run made, as an animated picture."""
    folder, name = run_folder(request.match_info["run"]), request.match_info["name"]
    path = None if folder is None or not VIDEO_NAME.fullmatch(name) else PreviewFolder.of(folder).path / name
    loop = asyncio.get_running_loop()
    if folder is None or path is None or not await loop.run_in_executor(threads, _is_file_in, folder.path, path):
        return refusal(404, "there is no such preview")
    return web.FileResponse(path, headers={"Content-Type": "image/webp", "X-Content-Type-Options": "nosniff"})


def _is_file_in(folder: Path, path: Path) -> bool:
    """Whether a file is there, and no link to somewhere else: run folders are passed on."""
    return is_file(path) and path.resolve().is_relative_to(folder.resolve())


def run_folder(name: str) -> RunFolder | None:
    """The run of this name; None where there is none, or the name is a path to somewhere else."""
    if not is_plain(name) or len(os.fsencode(name)) > _MOST_BYTES:
        return None
    folder = RunFolder(host.runs_path() / name)
    return folder if is_file(folder.job_path) else None


async def get_presets(_: web.Request) -> web.Response:
    """What each preset puts into the inputs of which nodes, and where its own values come from."""
    presets = [
        {
            "name": name,
            "title": preset.title,
            "description": preset.description,
            "family": preset.family,
            "model": FAMILIES[preset.family].title,
            "asks": preset.asks,
            "source": preset.source,
            "values": node_values(preset),
            "why": preset.why,
        }
        for name, preset in PRESETS.items()
    ]
    return web.json_response(presets)


async def get_families(request: web.Request) -> web.Response:
    """Which families the model files of the query (`name`, each as a loader offers it) can be of: {name: {family: title}}.

    {} of one that nothing is known of: no file of this name is there, and the name does not tell. {"other": ""} of one with
    sizes that no published model has, such as the miniatures.
    """
    names = request.query.getall("name", [])[:_MOST_MODELS]
    running = asyncio.get_running_loop()
    return web.json_response({name: await running.run_in_executor(threads, families_of, name) for name in names})


def families_of(name: str) -> dict[str, str]:
    """The families that a model file can be of, each with its title."""
    try:
        config = inspect(folders.diffusion_model_path(name)).config
    except WanTrainError:  # it is not there, or no model: the training will say which
        config = None
    found = {family: FAMILIES[family].title for family in families_like(config, name)}
    return found or ({} if config is None else {"other": ""})


async def post_import(request: web.Request) -> web.Response:
    """A workflow, a recipe and a report of the files of another trainer: {"files": [{"name", "text"}]}. Nothing is written.

    400 for a request that holds no files, 413 for too much, 422 with a sentence for files that are no such setup.
    """
    body = await read_all(request, _MOST_IMPORTED)
    if body is None:
        return refusal(
            413, f"the files have more than {_MOST_IMPORTED / 1e6:g} MB together, and no setup of a training has."
        )
    sources = _sources_in(body)
    if sources is None:
        return refusal(400, "the request holds no files.")
    loop = asyncio.get_running_loop()
    try:
        return web.json_response(await loop.run_in_executor(threads, _import, sources))
    except WanTrainError as error:
        return refusal(422, str(error))


async def read_all(request: web.Request, most: int) -> bytes | None:
    """The body of a request; None where it is larger than `most`. The host's own limit is 100 MB and more."""
    body = b""
    async for chunk in request.content.iter_chunked(2**16):
        body += chunk
        if len(body) > most:
            return None
    return body


def _sources_in(body: bytes) -> list[SetupFile] | None:
    try:
        files = parse_object(body)["files"]
        found = [SetupFile(file["name"], file["text"]) for file in files]
    except (KeyError, TypeError, ValueError):
        return None
    return found if all(isinstance(one, str) for source in found for one in (source.name, source.text)) else None


def _import(sources: list[SetupFile]) -> dict[str, Any]:
    imported = import_setup(sources)
    graph, notes = workflow(imported, folders.known_files())
    told = (
        f"{report(imported)}\nOf the workflow:\n" + "".join(f"  - {note}\n" for note in notes)
        if notes
        else report(imported)
    )
    return {
        "name": imported.recipe.name,
        "trainer": imported.trainer,
        "workflow": graph,
        "recipe": recipe_to_toml(imported.recipe),
        "report": told,
        "options": len(imported.given),
        "unsupported": sum(line.answer.outcome == "not supported" for line in imported.given),
    }
