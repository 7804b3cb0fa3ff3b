"""What long work tells whoever shows it: a terminal, a log, or nobody."""

from typing import Protocol


class ProgressDisplay(Protocol):
    """Any number of named amounts of work, and messages between them."""

    def say(self, message: str, /) -> None:
        """A line that stays."""
        ...

    def update(self, name: str, done: int, total: int, text: str = "", /) -> None:
        """So much of the work called `name` is done."""
        ...

    def end(self, name: str, /) -> None:
        """The work called `name` is over."""
        ...


class NoDisplay:
    """Shows nothing."""

    def say(self, message: str, /) -> None:
        """Nothing."""

    def update(self, name: str, done: int, total: int, text: str = "", /) -> None:
        """Nothing."""

    def end(self, name: str, /) -> None:
        """Nothing."""
