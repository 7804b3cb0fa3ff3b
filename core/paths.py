"""Paths that come out of files: told apart from what is no plain file, and shown without harm."""

import ctypes
import os
import stat
import unicodedata
from pathlib import Path

_WINDOWS_PATH = 259  # characters, unless longer ones are allowed
MAX_PATH = 4096  # characters; Linux takes no more bytes, Windows 32767 in all and far fewer in practice

# Unicode's categories: control, format, halves of letters, private use, ends of lines and of paragraphs.
_NEVER_SHOWN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
# Of "format": what joins emoji and letters of Persian and India, or does not, and the letters of a flag.
_JOINERS = frozenset({"\u200c", "\u200d", *map(chr, range(0xE0020, 0xE0080))})

GONE = "does not exist"
_KINDS = (
    (stat.S_ISDIR, "is a folder"),
    (stat.S_ISFIFO, "is a pipe, not a file"),
    (stat.S_ISCHR, "is a device, not a file"),
    (stat.S_ISBLK, "is a device, not a file"),
    (stat.S_ISSOCK, "is a socket, not a file"),
)


def path_problem(path: Path | str, *, folders: bool = False) -> str:
    """Why `path` can't be opened and read to its end, as the end of a sentence; "" if it can: it is a plain file.

    Links are followed. Opening a pipe or a device could wait for ever, so this only looks. With `folders` a folder does
    as well.
    """
    text = str(path)
    if len(text) > MAX_PATH:
        return f"is {len(text)} characters long, and no path is"
    try:
        mode = os.stat(text).st_mode  # noqa: PTH116 - text that is no path at all is part of the question
    except ValueError:  # a null character, or half of a surrogate pair
        return "holds characters that no file name has"
    except FileNotFoundError:
        return GONE
    except OSError as error:
        return f"can't be read ({error.strerror or error})"
    if stat.S_ISREG(mode) or (folders and stat.S_ISDIR(mode)):
        return ""
    return next((kind for check, kind in _KINDS if check(mode)), "is not a file")


def too_long(path: Path, *, windows: bool = os.name == "nt") -> str:
    """What is wrong with the length of a path that would be written, as the end of a sentence; "" if nothing is."""
    length = len(str(path.absolute()))
    if not windows or length <= _WINDOWS_PATH or _takes_long_paths():
        return ""
    return (
        f"would be {length} characters long, of which Windows takes {_WINDOWS_PATH}: choose a shorter name, or a folder nearer "
        "to the top of the disk, or allow long paths (Windows' setting LongPathsEnabled) and restart"
    )


def _takes_long_paths() -> bool:
    """Whether Windows does, in this process: it has to be allowed for both."""
    try:
        return bool(ctypes.windll.ntdll.RtlAreLongPathsEnabled())  # type: ignore[attr-defined]
    except (AttributeError, OSError):
        return False


def is_of_network(path: str, *, windows: bool = os.name == "nt") -> bool:
    r"""Whether Windows would ask another machine (\\SERVER\SHARE, and show it who we are) or a device (\\.\, \\?\) for it."""
    return windows and path.replace("/", "\\").startswith("\\\\")


def can_be_shown(char: str) -> bool:
    """Whether a character may be printed: it is none that terminals obey, that turns the writing round, or half of a letter.

    The signs that join emoji and letters, and spaces of all widths, are parts of what people write.
    """
    return char in _JOINERS or unicodedata.category(char) not in _NEVER_SHOWN


def shown(text: object, limit: int = 200) -> str:
    """Text from a file as it may be printed: without control characters, and not longer than this."""
    text = str(text)
    clean = "".join(char if can_be_shown(char) else "\N{REPLACEMENT CHARACTER}" for char in text[:limit])
    return clean if len(text) <= limit else f"{clean}... ({len(text)} characters)"
