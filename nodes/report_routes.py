"""What the page asks and tells of the reports on its nodes."""

import asyncio

from aiohttp import web

from ..core.safe_json import parse_object
from . import host
from .report_file import MAX_BYTES, MAX_REPORTS, keep_report, read_reports
from .routes import guarded, read_all, refusal, threads


def register() -> None:
    """Add the routes to the host's server."""
    routes = host.routes()
    routes.get("/wan_train/reports")(guarded(get_reports))
    routes.post("/wan_train/reports")(guarded(post_report))


async def get_reports(request: web.Request) -> web.Response:
    """{token: {"text", "values"}} of the nodes whose tokens stand in the query, as far as their reports are kept."""
    tokens = request.query.getall("token", [])[:MAX_REPORTS]
    loop = asyncio.get_running_loop()
    return web.json_response(await loop.run_in_executor(threads, read_reports, host.reports_path(), tokens))


async def post_report(request: web.Request) -> web.Response:
    """Keep {"token", "text", "values"}: what the host had kept of a node, which was not executed again; {}."""
    if request.content_type != "application/json":  # a page of another site can't send that without asking first
        return refusal(415, "the request must be JSON")
    body = await read_all(request, MAX_BYTES)
    try:
        given = parse_object(body or b"")
        token, text, values = given["token"], given["text"], given["values"]
    except (KeyError, ValueError):
        return refusal(400, "the request holds no report, or too long a one.")
    if not isinstance(token, str) or not isinstance(text, str):
        return refusal(400, "the token and the text of a report must be texts.")
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(threads, keep_report, host.reports_path(), token, text, values)
    return web.json_response({})
