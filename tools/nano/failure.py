"""Why a process of a bench failed, in one line: what its log says last of an error."""

import re
import signal
from pathlib import Path

_ERROR = re.compile(r"(\w+\.)*\w*(Error|Exception|Interrupt)(:|$)")  # how the last line of a traceback begins
LONGEST = 300  # characters: PyTorch lists every process on a card that is full


def error_line(said: str) -> str:
    """The last line that names an error, else the last line; errors of several lines have their name in the first."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    found = next((line for line in reversed(lines) if _ERROR.match(line)), lines[-1] if lines else "")
    return found if len(found) <= LONGEST else f"{found[:LONGEST]}..."


def why_failed(code: int, log: Path) -> str:
    """Of a process that ended with `code`, what it said being in `log`."""
    ended = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with the code {code}"
    line = error_line(log.read_text(encoding="utf-8", errors="replace")) if log.exists() else ""
    return f"{ended if not line else line if code > 0 else f'{ended}, after: {line}'} (all of it: {log})"
