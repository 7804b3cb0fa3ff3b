"""What the page asks of runs: which there are, which one a node shows, and to stop, pause, save, compare or delete them."""

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web
from safetensors import SafetensorError, safe_open

from ..core.data.links import is_file, leads_within
from ..core.errors import WanTrainError
from ..core.settings.job import Stage
from ..core.train.catalogue import Catalogue, Entry
from ..core.train.find_run import is_in_use
from ..core.train.legend import settings_of, settings_that_differ
from ..core.train.remove_run import contents, remove_run
from ..core.train.run_folder import RunFolder
from . import host
from .follow import followed
from .page_file import as_run, find_shown
from .routes import guarded, refusal, run_folder, threads
from .train_nodes import STAGES

Answer = TypeVar("Answer")
_PICTURE = {
    "Content-Type": "image/webp",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "private, max-age=86400",
}
_catalogues: dict[Path, Catalogue] = {}


def register() -> None:
    """Add the routes to the host's server."""
    routes = host.routes()
    routes.get("/wan_train/shown")(guarded(get_shown))
    routes.get("/wan_train/runs")(guarded(get_runs))
    routes.get("/wan_train/compare")(guarded(get_differences))
    routes.get("/wan_train/runs/{run}/about")(guarded(get_about))
    routes.get("/wan_train/runs/{run}/workflow")(guarded(get_workflow))
    routes.get("/wan_train/runs/{run}/picture")(guarded(get_picture))
    routes.post("/wan_train/runs/{run}/ask/{what}")(guarded(post_ask))
    routes.post("/wan_train/runs/{run}/delete")(guarded(post_delete))


async def get_shown(request: web.Request) -> web.Response:
    """The run that a training node shows: {"run": name of the folder, or ""}. See `find_shown`.

    In the query: its `token`; the `run` that its workflow names; its `name` (lora_name) and `stage`. Each may be left out.
    """
    asked = {name: request.query.get(name, "") for name in ("token", "run", "name")}
    stage = STAGES.get(request.query.get("stage", ""), "single")
    found = await _in_thread(lambda: find_shown(host.runs_path(), stage=stage, **asked))
    return web.json_response({"run": found})


async def get_runs(_: web.Request) -> web.Response:
    """All runs, the one that changed last first: {"runs": [...]}; see `_line`."""
    catalogue = _catalogues.setdefault(host.runs_path(), Catalogue(host.runs_path()))
    entries = await _in_thread(catalogue.entries)
    return web.json_response({"runs": [_line(entry) for entry in entries]})


def _line(entry: Entry) -> dict[str, Any]:
    """A run in the list. Of one that is trained by this server, what its follower knows goes before what its files say."""
    follower = followed(entry.folder.name)
    line = {
        **dataclasses.asdict(entry),
        "run": entry.folder.name,
        "can_resume": entry.has_workflow,
        "facts": [],
        "asks": [],
    }
    for name in ("folder", "latents", "has_workflow"):
        del line[name]
    line["has_picture"] = bool(entry.latents)
    if follower is not None:
        line |= {"state": follower.state, "why": "", "facts": follower.facts, "asks": follower.asks}
        line |= {"line": follower.line, "steps": follower.job.loop.steps}
    return line


async def get_about(request: web.Request) -> web.Response:
    """What a run's folder holds and where it is: {"path", "size", "holds", "in_use"}, and "settings", [name, value] of each.

    The whole path goes to programs on this machine alone; others get its end.
    """
    folder = run_folder(request.match_info["run"])
    if folder is None:
        return refusal(404, "there is no such run")

    def describe() -> dict[str, Any]:
        held = contents(folder)
        path = folder.path if host.listens_locally() else Path(*folder.path.parts[-4:])
        try:
            settings = settings_of(folder.read_job())
        except WanTrainError:  # a run can be deleted whose job is damaged
            settings = []
        return {
            "path": str(path),
            "size": held.size,
            "holds": str(held),
            "in_use": is_in_use(folder),
            "settings": settings,
        }

    return await _answer(describe)


async def get_workflow(request: web.Request) -> web.Response:
    """The workflow that started a run, and by what its training node is known: {"workflow", "name", "stage"}.

    Where the node had a token, its property wan_run names the run.

    404 with a sentence where a program or the command line started it.
    """
    folder = run_folder(request.match_info["run"])
    if folder is None:
        return refusal(404, "there is no such run")
    graph = await _in_thread(lambda: folder.read_workflow()["workflow"])
    if not isinstance(graph, dict):
        return refusal(
            404,
            "this run keeps no workflow: it was started from the command line, or by a program. Go on with it there.",
        )

    def describe() -> dict[str, Any]:
        job = folder.read_job()
        own: Stage = "high" if job.stage == "both" else job.stage
        stage = next(name for name, stage in STAGES.items() if stage == own)
        return {"workflow": as_run(graph, host.runs_path(), folder), "name": job.name, "stage": stage}

    return await _answer(describe)


async def get_picture(request: web.Request) -> web.Response:
    """A small picture of the first sample that a run is trained on, from its cached latents."""
    folder = run_folder(request.match_info["run"])
    picture = None if folder is None else await _in_thread(lambda: _picture(folder))
    return refusal(404, "there is no such picture") if picture is None else web.Response(body=picture, headers=_PICTURE)


def _picture(folder: RunFolder) -> bytes | None:
    """Of latents in the cache alone: run folders are passed on, and may name any file."""
    try:
        path = Path(folder.read_job().data.samples[0].latents_path)
        if not is_file(path) or not leads_within(path, [host.cache_path()]):
            return None
        with safe_open(path, "pt") as file:
            latents = file.get_slice("latents")
            frames = latents.get_shape()[1]
            return host.latent_picture(latents[:, frames // 2])
    except (WanTrainError, SafetensorError, OSError, IndexError, ValueError, TypeError):
        return None


async def get_differences(request: web.Request) -> web.Response:
    """What the runs `one` and `other` were trained with that is not the same: {"differences": [{"name", "one", "other"}]}."""
    folders = [run_folder(request.query.get(name, "")) for name in ("one", "other")]
    one, other = folders
    if one is None or other is None:
        return refusal(404, "there is no such run")

    def compare() -> dict[str, Any]:
        found = settings_that_differ([one.read_job(), other.read_job()])
        return {
            "differences": [dict(zip(("name", "one", "other"), (it.name, *it.values), strict=True)) for it in found]
        }

    return await _answer(compare)


async def post_ask(request: web.Request) -> web.Response:
    """Ask a run that is trained by this server for `what`, one of the `asks` that it tells: {} when it is asked.

    404 for a run that nobody trains here, 409 with a sentence for what it can't do at the moment.
    """
    if not _is_own_page(request):
        return refusal(415, "a page must send this as JSON: reload it.")
    follower = followed(request.match_info["run"])
    if follower is None:
        return refusal(404, "this run is not being trained here at the moment: press Run to go on with it.")
    try:
        await _in_thread(lambda: follower.ask(request.match_info["what"]))
    except WanTrainError as error:
        return refusal(409, str(error))
    return web.json_response({})


async def post_delete(request: web.Request) -> web.Response:
    """Delete a run's folder for good: {} when it is gone. The request is JSON. 409 with a sentence where it is not deleted."""
    if request.content_type != "application/json":
        return refusal(415, "the request must be JSON")
    run = request.match_info["run"]
    if run_folder(run) is None:
        return refusal(404, "there is no such run")
    try:
        await _in_thread(lambda: remove_run(host.runs_path(), run))
    except WanTrainError as error:
        return refusal(409, _without_place(str(error)))
    return web.json_response({})


def _is_own_page(request: web.Request) -> bool:
    """Whether a request that changes something comes from our page, or from a program.

    A page of another site can post, too, and its browser says then which it is (Origin); but it can't post JSON without
    asking the host first, who does not allow it.
    """
    return "Origin" not in request.headers or request.content_type == "application/json"


async def _answer(describe: Callable[[], dict[str, Any]]) -> web.Response:
    try:
        return web.json_response(await _in_thread(describe))
    except WanTrainError as error:
        return refusal(422, _without_place(str(error)))


async def _in_thread(work: Callable[[], Answer]) -> Answer:
    return await asyncio.get_running_loop().run_in_executor(threads, work)


def _without_place(sentence: str) -> str:
    """A sentence that names no place of this machine."""
    runs = host.runs_path()
    return sentence.replace(f"{runs}/", "").replace(f"{runs}\\", "").replace(str(runs), runs.name)
