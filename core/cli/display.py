"""Progress for people: bars in a terminal, elsewhere a line now and then."""

import sys
import time
from typing import TextIO

from tqdm import tqdm

LINE_EVERY_SECONDS = 15.0


class Display:
    """Any number of named progress bars, and messages between them."""

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._bars: dict[str, tqdm] = {}
        self._shown: dict[str, tuple[float, int]] = {}  # when the name's last line was written, and how far it was

    def say(self, message: str) -> None:
        """A line that stays."""
        if self._is_terminal:
            tqdm.write(message, file=self._stream)
        else:
            self._stream.write(message + "\n")
            self._stream.flush()

    def update(self, name: str, done: int, total: int, text: str = "") -> None:
        """Move the bar `name`; in a file, the first, the last and now and then one more become a line."""
        if self._is_terminal:
            self._move_bar(name, done, total, text)
            return
        now = time.monotonic()
        last, shown = self._shown.get(name, (-LINE_EVERY_SECONDS, -1))
        if done != shown and (done == total or now - last >= LINE_EVERY_SECONDS):
            self._shown[name] = now, done
            self.say(f"{name}: {done}/{total}  {text}".rstrip())

    def end(self, name: str) -> None:
        """Take the bar `name` away; its last state stays in the terminal."""
        self._shown.pop(name, None)
        bar = self._bars.pop(name, None)
        if bar is not None:
            bar.close()

    def close(self) -> None:
        """Take all bars away."""
        for name in list(self._bars):
            self.end(name)

    def _move_bar(self, name: str, done: int, total: int, text: str) -> None:
        bar = self._bars.get(name)
        if bar is None:
            bar = tqdm(total=total, initial=done, desc=name, file=self._stream, dynamic_ncols=True)
            self._bars[name] = bar
        bar.set_postfix_str(text, refresh=False)
        bar.total = total
        bar.update(done - bar.n)
        bar.refresh()
