"""Files in which runs keep what they learnt of a machine for the next ones.

What a file holds was found with one version of all that it depends on. Of another version, of an older pack or damaged, it says
nothing, and is replaced.
"""

import json
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..disk import write_atomic
from ..safe_json import as_table

_CORE = Path(__file__).parent.parent
_PREDICTING = ("plan", "adapters/kinds", "memory/precisions", "optimizers", "objective")  # folders of what is predicted


def read_kept(path: Path, version: str) -> dict[str, Any]:
    """What `path` holds for this `version`; nothing if there is nothing, or damage."""
    try:
        found = as_table(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
    return found if found.get("version") == version else {}


def write_kept(path: Path, version: str, content: Mapping[str, Any]) -> None:
    """RunError if the folder cannot be written."""
    data = json.dumps({"version": version, **content}, indent=1).encode()
    write_atomic(path, lambda file: file.write(data))


@cache
def predictions_version(core: Path = _CORE) -> str:
    """Of what memory and time are predicted with, by its text: how far other predictions were off says nothing of these."""
    files = [file for folder in _PREDICTING for file in (core / folder).iterdir() if file.suffix in (".py", ".json")]
    return sha256(b"\0".join(file.read_bytes() for file in sorted(files))).hexdigest()[:12]
