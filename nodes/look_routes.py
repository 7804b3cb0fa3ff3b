"""What the page behind the dataset node's "Look" asks the server: a dataset as the model will see it, and edits of it.

A dataset is named as on the node, so that only folders below the dataset roots are read, and a file by its number in the
scan: no path comes from the page. What is changed on disk are caption files and in and out points beside the media.
"""

import asyncio
import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from aiohttp import web

from ..core.data.links import is_file, leads_within
from ..core.data.points import Points, points_path, write_points
from ..core.data.scan import scan_folder
from ..core.data.types import Dataset, Sample
from ..core.encoders.text import read_tokenizer
from ..core.errors import DatasetError, WanTrainError
from ..core.look.captions import CaptionFiles, write_caption
from ..core.look.page import page, policy
from ..core.look.strips import StripStore
from ..core.look.tokens import Tokenizer
from ..core.look.view import Looker, exact_frame, source_strip
from ..core.serial import digest, from_dict, to_dict
from ..core.settings.dataset import DatasetOptions
from . import host
from .host import folders
from .routes import guarded, refusal
from .widgets import meanings

log = logging.getLogger(__name__)

_MOST_BYTES = 2_000_000  # of a request: a caption of 100,000 signs in JSON
_MOST_LOOKS = 16  # datasets that are remembered
_OPTIONS = {field.name for field in fields(DatasetOptions)}
_PICTURE = {
    "Content-Type": "image/webp",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "private, max-age=86400",
}
_threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="wan_train_look")
_looks: "OrderedDict[str, _Look]" = OrderedDict()


@dataclass(frozen=True)
class _Look:
    """A dataset that a page shows."""

    folder: Path
    options: DatasetOptions
    dataset: Dataset

    def sample(self, number: Any) -> Sample:
        """A sample by its number."""
        if type(number) is not int or not 0 <= number < len(self.dataset.samples):
            raise DatasetError("there is no such sample in this dataset: load the page again.")
        return self.dataset.samples[number]


class _LeftError(Exception):
    """The page has gone; nobody waits for the answer."""


def register() -> None:
    """Add the routes to the host's server."""
    routes = host.routes()
    routes.get("/wan_train/look")(guarded(get_page))
    routes.get("/wan_train/look/strips/{name}")(guarded(get_strip))
    routes.get("/wan_train/look/{look}/frames/{sample}/{frame}")(guarded(get_frame))
    routes.get("/wan_train/look/{look}/source/{sample}/{start}")(guarded(get_source))
    routes.post("/wan_train/look/dataset")(guarded(post_dataset))
    routes.post("/wan_train/look/caption")(guarded(post_caption))
    routes.post("/wan_train/look/points")(guarded(post_points))


async def get_page(_: web.Request) -> web.Response:
    """The page; which dataset it shows stands behind the # of its address."""
    headers = {"Content-Security-Policy": policy(), "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
    return web.Response(text=page(), content_type="text/html", headers=headers)


async def get_strip(request: web.Request) -> web.StreamResponse:
    """The small frames of one sample."""
    name = request.match_info["name"]
    key = name.removesuffix(".webp")
    path = _strips().picture(key)
    is_key = len(key) == 32 and not set(key) - set("0123456789abcdef")
    loop = asyncio.get_running_loop()
    if not is_key or not await loop.run_in_executor(_threads, _is_strip, path):
        return refusal(404, "there is no such picture")
    return web.FileResponse(path, headers=_PICTURE)


def _is_strip(path: Path) -> bool:
    return is_file(path) and leads_within(path, [path.parent])


async def get_frame(request: web.Request) -> web.Response:
    """One frame of a sample in its full size, as training reads it."""
    look, sample, frame = (request.match_info[name] for name in ("look", "sample", "frame"))
    return await _picture(lambda: (exact_frame(_look(look).sample(_number(sample)), _number(frame)), {}))


async def get_source(request: web.Request) -> web.Response:
    """Some of a clip's own frames, for choosing its in and out points."""
    look, sample, start = (request.match_info[name] for name in ("look", "sample", "start"))
    return await _picture(lambda: source_strip(_look(look).sample(_number(sample)), _number(start)))


async def _picture(read: Callable[[], tuple[bytes, dict[str, int]]]) -> web.Response:
    try:
        picture, strip = await asyncio.get_running_loop().run_in_executor(_threads, read)
    except WanTrainError as error:
        return refusal(422, _without_paths(str(error)))
    return web.Response(body=picture, headers={**_PICTURE, "X-Strip": json.dumps(strip), "Cache-Control": "no-store"})


async def post_dataset(request: web.Request) -> web.StreamResponse:
    """{"folder", "settings", "text_encoder"} to a line of JSON for each event, as long as the page is there."""
    body = await _body(request)
    if isinstance(body, web.Response):
        return body
    loop, events, gone = asyncio.get_running_loop(), asyncio.Queue[dict[str, Any] | None](), threading.Event()

    def tell(event: dict[str, Any] | None) -> None:
        loop.call_soon_threadsafe(events.put_nowait, event)

    work = loop.run_in_executor(_threads, _tell_all, body, tell, gone)
    answer = web.StreamResponse(headers={"Content-Type": "application/x-ndjson", "X-Accel-Buffering": "no"})
    try:
        await answer.prepare(request)
        while (event := await events.get()) is not None:
            await answer.write(json.dumps(event, separators=(",", ":")).encode() + b"\n")
        await answer.write_eof()
    finally:
        gone.set()
        await work
    return answer


def _tell_all(body: dict[str, Any], tell: Callable[[dict[str, Any] | None], None], gone: threading.Event) -> None:
    """Scan and look, on a thread; the last thing that is told is None."""

    def check() -> None:
        if gone.is_set():
            raise _LeftError

    def on_file(done: int, total: int) -> None:
        check()
        tell({"event": "scan", "done": done, "total": total})

    try:
        look = _scan(body, on_file, check)
        looker = Looker(store=_strips(), tokenizer=_tokenizer(body.get("text_encoder")), within=_within(look))
        for event in looker.look(look.dataset, check):
            check()
            added = {"look": _remember(look), "locked": _locked(look)} if event["event"] == "dataset" else {}
            tell({**event, **added})
    except _LeftError:
        pass
    except WanTrainError as error:
        tell({"event": "error", "text": _without_paths(str(error))})
    except OSError as error:
        log.warning("a dataset could not be looked at: %s", error)
        tell({"event": "error", "text": f"the folder can't be read at the moment ({error.strerror or 'disk error'})."})
    except Exception:
        log.exception("a dataset could not be looked at")
        tell({"event": "error", "text": "this dataset can't be shown, for a reason that stands in ComfyUI's log."})
    finally:
        tell(None)


def _scan(body: dict[str, Any], on_file: Callable[[int, int], None], check: Callable[[], object]) -> _Look:
    """As the node does it. Settings that are not the dataset's own are other widgets of the node."""
    settings = body.get("settings")
    if not isinstance(settings, dict):
        raise DatasetError("the page names no settings: press Look on the node.")
    own = {name: value for name, value in settings.items() if name in _OPTIONS}
    options = from_dict(DatasetOptions, meanings("DatasetFromFolder", own), "dataset")
    folder = folders.resolve_dataset_folder(body.get("folder", ""))
    dataset = scan_folder(
        folder, options, index_path=host.cache_path() / "files.json", progress=on_file, within=_places(), check=check
    )
    return _Look(folder, options, dataset)


async def post_caption(request: web.Request) -> web.Response:
    """{"look", "sample", "text", "state"}: put a caption into its file."""

    def save(body: dict[str, Any]) -> None:
        look = _edited(body.get("look"))
        text, state = body.get("text"), body.get("state")
        if not isinstance(text, str) or not isinstance(state, str):
            raise DatasetError("the page sent no caption: load it again.")
        media = Path(look.sample(body.get("sample")).file.path)
        write_caption(CaptionFiles(look.options, _within(look)).of(media), text, state)

    return await _save(request, save)


async def post_points(request: web.Request) -> web.Response:
    """{"look", "sample", "points": [in, out] or null}: keep which part of a clip is used."""

    def save(body: dict[str, Any]) -> None:
        look = _edited(body.get("look"))
        file = look.sample(body.get("sample")).file
        points = _points(body.get("points"))
        problem = points.problem(file.num_frames) if points else ""
        if problem or file.kind == "image":
            raise DatasetError(f"{file.name} can't have these points: {problem or 'it is a picture'}.")
        if not leads_within(points_path(Path(file.path)), _within(look)):
            raise DatasetError(f"the points of {file.name} are a link that leads outside the dataset folders.")
        write_points(Path(file.path), points)

    return await _save(request, save)


async def _save(request: web.Request, save: Callable[[dict[str, Any]], None]) -> web.Response:
    body = await _body(request)
    if isinstance(body, web.Response):
        return body
    try:
        await asyncio.get_running_loop().run_in_executor(_threads, save, body)
    except WanTrainError as error:
        return refusal(422, _without_paths(str(error)))
    return web.json_response({})


async def _body(request: web.Request) -> dict[str, Any] | web.Response:
    """The object in a request. As JSON alone: a page of another site can't send that without asking first."""
    if request.content_type != "application/json":
        return refusal(415, "the request must be JSON")
    if (request.content_length or 0) > _MOST_BYTES:
        return refusal(413, f"the request has more than {_MOST_BYTES} bytes")
    data = await request.content.read(_MOST_BYTES + 1)
    while len(data) <= _MOST_BYTES and not request.content.at_eof():
        data += await request.content.read(_MOST_BYTES + 1 - len(data))
    try:
        body = json.loads(data) if len(data) <= _MOST_BYTES else None
    except (ValueError, RecursionError):
        body = None
    return body if isinstance(body, dict) else refusal(400, "the request is no object of JSON, or too large")


def _points(value: Any) -> Points | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or any(type(number) is not int for number in value):
        raise DatasetError("points are two frames: the first that is used, and the first after them.")
    return Points(in_frame=value[0], out_frame=value[1])


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise DatasetError("there is no such frame: load the page again.")
    return int(text)


def _look(name: Any) -> _Look:
    found = _looks.get(name) if isinstance(name, str) else None
    if found is None:
        raise DatasetError("ComfyUI was started again, or many other datasets were looked at: load this page again.")
    return found


def _edited(name: Any) -> _Look:
    """A dataset that may be changed."""
    look = _look(name)
    if _locked(look):
        raise DatasetError(_locked(look))
    return look


def _locked(look: _Look) -> str:
    """Why a dataset is not changed, as a sentence; "" if it may be."""
    if leads_within(look.folder, [root for _, root in folders.user_dataset_roots()]):
        return ""
    return "This dataset came with the pack: copy its folder into ComfyUI's input folder to change it."


def _remember(look: _Look) -> str:
    name = digest([str(look.folder), to_dict(look.options), look.dataset.digest, len(look.dataset.notes)], 32)
    _looks[name] = look
    _looks.move_to_end(name)
    while len(_looks) > _MOST_LOOKS:
        _looks.popitem(last=False)
    return name


def _strips() -> StripStore:
    return StripStore(host.cache_path() / "look")


def _within(look: _Look) -> tuple[Path, ...]:
    """Where links in a dataset may lead to."""
    return (look.folder, *_places())


def _places() -> list[Path]:
    return [root for _, root in folders.dataset_roots()]


def _tokenizer(name: Any) -> Tokenizer | None:
    """That of the workflow's text encoder, or of any umT5 that is there; None where there is none."""
    names = [name] if isinstance(name, str) else []
    others = (found for found in folders.text_encoder_names() if "umt5" in found.lower())
    names += sorted(found for found in others if not found.startswith("wan_nano"))  # which counts otherwise
    for candidate in names:
        try:
            return read_tokenizer(folders.text_encoder_path(candidate))
        except (WanTrainError, OSError):
            continue
    return None


def _without_paths(sentence: str) -> str:
    """A sentence that names no place of this machine: the page may be another one's."""
    for root in _places():
        sentence = sentence.replace(f"{root}/", "").replace(f"{root}\\", "").replace(str(root), root.name)
    return sentence
