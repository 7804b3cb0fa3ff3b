"""The diary of a rank that does not write one: the first rank does, for all."""

import logging
from pathlib import Path
from typing import Any

from .events import EventWriter

log = logging.getLogger(__name__)


class Silent(EventWriter):
    """Tells the log what should be known, and writes nothing."""

    def __init__(self, path: Path):
        self.path = path
        self.trouble = None

    @property
    def is_overfull(self) -> bool:
        """Never."""
        return False

    def write(self, event: str, **fields: Any) -> None:
        """Into the log, if it is a warning or an error."""
        if event in ("warning", "error"):
            log.warning("%s", fields.get("message", ""))
