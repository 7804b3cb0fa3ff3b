"""`page.json` in a run's folder: which nodes have shown the run, and what they said of it before it began.

A node of the page is known by a token of its own, which the page writes into the node's properties and so into the
workflow that it queues. By it the page finds the run again after a reload, whatever the run or the node is called now.
"""

import copy
import json
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..core.disk import write_atomic
from ..core.errors import WanTrainError
from ..core.safe_json import read_object
from ..core.settings.job import Stage
from ..core.train.run_folder import RunFolder

PAGE = "page.json"
TOKEN, RUN = "wan_node", "wan_run"  # properties of a node: its token, and the run that it showed
MAX_TOKENS, MAX_TOKEN = 50, 64  # of a run; characters of one
MAX_DEPTH = 20  # of subgraphs in subgraphs


def node_of(workflow: Any, node_id: str) -> Mapping[str, Any]:
    """The node with an execution id ("12", or "3:12" inside a subgraph) in a workflow; empty if it has none."""
    subgraphs = {graph.get("id"): graph for graph in _tables(workflow, "definitions", "subgraphs")}
    graph, node = workflow, {}
    for part in str(node_id).split(":")[:MAX_DEPTH]:
        node = next((found for found in _tables(graph, "nodes") if str(found.get("id")) == part), {})
        graph = subgraphs.get(node.get("type"), {})
    return node


def node_token(workflow: Any, node_id: str) -> str:
    """The token of a node, see `node_of`; "" if it has none."""
    properties = node_of(workflow, node_id).get("properties")
    token = properties.get(TOKEN) if isinstance(properties, Mapping) else None
    return token if isinstance(token, str) and len(token) <= MAX_TOKEN else ""


def _tables(value: Any, *names: str) -> list[Mapping[str, Any]]:
    """The tables of a list inside tables; workflows come from others, and may hold anything."""
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def note_shown(folder: RunFolder, token: str, notes: Sequence[str]) -> None:
    """A node shows this run from now on, and says this of it. What the disk refuses is not kept: it costs a curve, no run."""
    shown = {**_shown(folder.path), token: round(time.time(), 3)}
    newest = dict(sorted(shown.items(), key=lambda item: item[1])[-MAX_TOKENS:])
    text = json.dumps({"shown": {name: at for name, at in newest.items() if name}, "notes": list(notes)})
    with suppress(WanTrainError, OSError):
        write_atomic(folder.path / PAGE, lambda file: file.write(text.encode()))


def notes_of(folder: RunFolder) -> list[str]:
    """What the node that showed the run last said of it."""
    notes = (read_object(folder.path / PAGE) or {}).get("notes")
    return [note for note in notes if isinstance(note, str)] if isinstance(notes, list) else []


def tokens_of(folder: RunFolder) -> list[str]:
    """The tokens of the nodes that have shown the run, the last first."""
    shown = _shown(folder.path)
    return sorted((token for token in shown if token), key=lambda token: -shown[token])


def as_run(workflow: Any, runs: Path, folder: RunFolder) -> Any:
    """The workflow that started a run, in which the run's node shows this run.

    A node that has shown another since is told the run by name, and gets a new token when it is queued.
    """
    shown = set(tokens_of(folder))
    workflow = copy.deepcopy(workflow)
    for graph in (workflow, *_tables(workflow, "definitions", "subgraphs")):
        for node in _tables(graph, "nodes"):
            properties = node.get("properties")
            token = properties.get(TOKEN) if isinstance(properties, dict) else None
            if isinstance(properties, dict) and isinstance(token, str) and token in shown:
                properties[RUN] = folder.path.name
                if find_shown(runs, token=token, run="", name="", stage="single") != folder.path.name:
                    del properties[TOKEN]
    return workflow


def find_shown(runs: Path, *, token: str, run: str, name: str, stage: Stage) -> str:
    """The run that a node shows, as the name of its folder; "" where there is none.

    That is the one it has shown last by its token; else `run`, which its workflow names; else the newest run called `name`,
    exactly, of `stage`, or of both experts where that is one.
    """
    folders = [path for path in runs.glob("*") if (path / "job.json").is_file()]
    if token:
        times = {path: at for path in folders if (at := _shown(path).get(token)) is not None}
        if times:
            return max(times, key=lambda path: times[path]).name
    if any(path.name == run for path in folders):
        return run
    stages = stage if stage == "single" else f"({stage}|both)"
    called = re.compile(rf"{re.escape(name)}_{stages}(_\d+steps)?(_\d+)?_[0-9a-f]+")
    found = [path for path in folders if name and called.fullmatch(path.name)]
    return max(found, key=_changed).name if found else ""


def _shown(path: Path) -> dict[str, float]:
    shown = (read_object(path / PAGE) or {}).get("shown")
    if not isinstance(shown, dict):
        return {}
    return {token: float(at) for token, at in shown.items() if isinstance(at, (int, float))}


def _changed(path: Path) -> float:
    try:
        return (path / "events.jsonl").stat().st_mtime
    except OSError:
        return 0.0
