"""What nodes have reported, for whoever opens their workflow later: a file for each node, called by its token.

The token is that of `page_file`. With a report are kept the values that its node's widgets had: of other values it says
nothing.
"""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..core.disk import write_atomic
from ..core.errors import WanTrainError
from ..core.safe_json import read_object
from . import host
from .page_file import node_of, node_token

TOKEN = re.compile(r"[0-9a-f-]{16,64}")
MAX_REPORTS, MAX_BYTES = 1000, 100_000  # that are kept; of one with its values


def keep_shown(output: Any) -> None:
    """Keep what the node that is being executed says by this output of it, if it was queued from the page.

    A training's text is in the folder of its run.
    """
    shown = getattr(output, "ui", None) or {}
    texts: list[str] = [] if "wan_run" in shown else shown.get("text", [])
    node_id, workflow = host.executing()
    token = node_token(workflow, node_id)
    if texts and token:
        values = node_of(workflow, node_id).get("widgets_values", [])
        keep_report(host.reports_path(), token, "\n".join(texts), values)


def keep_report(folder: Path, token: str, text: str, values: Any) -> None:
    """Keep a node's newest report. What is too long, or what the disk refuses, is not kept."""
    data = json.dumps({"text": text, "values": values}).encode()
    if not TOKEN.fullmatch(token) or len(data) > MAX_BYTES:
        return
    with suppress(WanTrainError, OSError):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / f"{token}.json", lambda file: file.write(data))
        files = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in files[:-MAX_REPORTS]:
            path.unlink()


def read_reports(folder: Path, tokens: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{token: {"text", "values"}} of those that are kept."""
    found = {token: read_object(folder / f"{token}.json") for token in tokens if TOKEN.fullmatch(token)}
    return {
        token: {"text": kept["text"], "values": kept.get("values")}
        for token, kept in found.items()
        if kept is not None and isinstance(kept.get("text"), str)
    }
