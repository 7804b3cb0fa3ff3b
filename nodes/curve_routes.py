"""What the chart asks the server: curves of runs, with which others a run can be compared, and a table of all steps.

Diaries are read in threads, and curves thinned to what a chart can show: see `core.train.history`.
"""

import asyncio
from dataclasses import asdict
from itertools import islice
from typing import Any

from aiohttp import web

from ..core.errors import WanTrainError
from ..core.limits import check_number
from ..core.settings.job import Job
from ..core.train.curves import LOSS, SERIES, CurvePart, CurveTable, other_runs, run_curves, sigma_note
from ..core.train.legend import settings_that_differ
from ..core.train.run_folder import RunFolder
from . import host
from .routes import guarded, histories, refusal, run_folder, threads

MAX_RUNS = 8  # in one chart
_MOST = 2.0**53  # a step, or a window
_LINES = 5000  # of a table at once


def register() -> None:
    """Add the routes to the host's server."""
    routes = host.routes()
    routes.get("/wan_train/curves")(guarded(get_curves))
    routes.get("/wan_train/runs/{run}/others")(guarded(get_others))
    routes.get("/wan_train/runs/{run}/curve.csv")(guarded(get_table))


async def get_curves(request: web.Request) -> web.Response:
    """Series of runs, and the settings in which the runs differ.

    In the query: `run` and `of` (see SERIES), each as often as wanted; `from` and `to`, steps; `window`, of the averages. 400
    for what is no number or no series, 404 if the first run is not there; others that are not are left out.
    """
    folders = [run_folder(name) for name in dict.fromkeys(request.query.getall("run", []))][:MAX_RUNS]
    if not folders or folders[0] is None:
        return refusal(404, "there is no such run")
    names = tuple(dict.fromkeys(request.query.getall("of", [LOSS])))
    unknown = [name for name in names if name not in SERIES]
    if unknown:
        return refusal(400, f"there is no such series: choose among {', '.join(SERIES)}.")
    try:
        part = _part(request)
    except WanTrainError as error:
        return refusal(400, str(error))
    loop, first = asyncio.get_running_loop(), folders[0]
    there = [folder for folder in folders if folder is not None]
    try:
        return web.json_response(await loop.run_in_executor(threads, _curves, there, names, part))
    except WanTrainError as error:
        return refusal(422, str(error).replace(f"{first.path}", first.path.name))


def _part(request: web.Request) -> CurvePart:
    def number(name: str, least: float) -> float | None:
        text = request.query.get(name)
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        check_number(value, name, least, _MOST)
        return value

    first, last = number("from", 0), number("to", 0)
    return CurvePart(
        first=None if first is None else int(first),
        last=None if last is None else int(last),
        window=number("window", 1),
    )


def _curves(folders: list[RunFolder], names: tuple[str, ...], part: CurvePart) -> dict[str, Any]:
    runs: list[dict[str, Any]] = []
    jobs: list[Job] = []
    for folder in folders:
        try:
            job = folder.read_job()
        except WanTrainError:
            if folder is folders[0]:
                raise
            continue
        with histories.reader(folder.events_path).reading() as history:
            told = {
                "run": folder.path.name,
                "name": job.name,
                "stage": job.stage,
                "steps": job.loop.steps,
                "series": run_curves(job, history, names, part),
                "note": sigma_note(job, history),
            }
        jobs.append(job)
        runs.append(told)
    return {"runs": runs, "differences": [asdict(setting) for setting in settings_that_differ(jobs)]}


async def get_others(request: web.Request) -> web.Response:
    """The runs that can be shown beside this one: see `other_runs`."""
    folder = run_folder(request.match_info["run"])
    if folder is None:
        return refusal(404, "there is no such run")
    loop = asyncio.get_running_loop()
    found = await loop.run_in_executor(threads, other_runs, host.runs_path(), folder)
    return web.json_response([asdict(one) for one in found])


async def get_table(request: web.Request) -> web.StreamResponse:
    """All steps of a run, as a CSV file."""
    name = request.match_info["run"]
    folder = run_folder(name)
    if folder is None:
        return refusal(404, "there is no such run")
    loop = asyncio.get_running_loop()
    try:
        table = await loop.run_in_executor(threads, _table, folder)
    except WanTrainError as error:
        return refusal(422, str(error).replace(f"{folder.path}", name))
    answer = web.StreamResponse(
        headers={"Content-Type": "text/csv; charset=utf-8", "Content-Disposition": f'attachment; filename="{name}.csv"'}
    )
    await answer.prepare(request)
    lines = table.lines()
    while piece := await loop.run_in_executor(threads, lambda: "".join(islice(lines, _LINES))):
        await answer.write(piece.encode())
    await answer.write_eof()
    return answer


def _table(folder: RunFolder) -> CurveTable:
    job = folder.read_job()
    with histories.reader(folder.events_path).reading() as history:
        return CurveTable(job, history)
