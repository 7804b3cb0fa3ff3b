"""Names of files: those that every system can have, and those that stay below the folder that they are looked up in."""

import re
import unicodedata

from .errors import ConfigError
from .paths import shown

# Of a name: with what is put around it, it stays below the 255 bytes of most disks.
MOST_CHARACTERS, MOST_BYTES = 100, 190
_SHOWN = 60  # characters of a name that a sentence repeats
_ALLOWED = re.compile(r"\w[\w .+()-]*")
_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in "123456789¹²³")}


def is_device(file_name: str) -> bool:
    """Whether Windows takes the name for a device, whatever ending follows: NUL, con.txt, COM1.tar.gz."""
    return file_name.split(".")[0].rstrip(" ").upper() in _DEVICES


def without_marks(name: str) -> str:
    """The name without what `\\w` does not know of letters: vowels of Hindi or Arabic, the dots of an u from a Mac."""
    return "".join(char for char in name if not _is_mark(char))


def _is_mark(char: str) -> bool:
    return unicodedata.category(char).startswith("M")


def clean_name(text: str) -> str:
    """A name that files can have everywhere, as near as possible to a text; "" where nothing of it can be in one."""
    known = "".join(char if _is_mark(char) or _ALLOWED.fullmatch(f"a{char}") else "\0" for char in text)
    name = re.sub("\0+", "_", known)
    start = next((place for place, char in enumerate(name) if char.isalnum()), len(name))
    name = name[start:][:MOST_CHARACTERS].encode()[:MOST_BYTES].decode(errors="ignore").rstrip(" ._-+()")
    return f"my_{name}" if is_device(name) else name


def same_name(name: str) -> str:
    """The same for names that Windows or the Mac take for the same: in any case, and in either form of letters with marks."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def in_short(value: object) -> str:
    """A value for a sentence: in one line, and not longer than one."""
    return shown(" ".join(str(value).split()), _SHOWN)


def check_file_name(name: str, field: str) -> str:
    """A name that can be the start of a file name everywhere; ConfigError, which calls it `field`, for any other."""
    if not isinstance(name, str):
        raise ConfigError(f"{field} must be a text, but it is {kind_of(name)}.")
    if not _ALLOWED.fullmatch(name[:1] + without_marks(name[1:])) or name.endswith((".", " ")):
        raise ConfigError(
            f"{field} is '{in_short(name)}': use letters, digits, spaces and . _ - + ( ) only, beginning with a letter or "
            "digit and not ending with a dot or space."
        )
    if len(name) > MOST_CHARACTERS or len(name.encode()) > MOST_BYTES:
        raise ConfigError(
            f"{field} is '{in_short(name)}', which is too long for a file's name: use {MOST_CHARACTERS} characters at most "
            f"({MOST_BYTES} bytes)."
        )
    if is_device(name):
        raise ConfigError(f"{field} is '{name}': Windows keeps that name for a device; choose another.")
    return name


def check_name(name: str, field: str = "name") -> str:
    """A name that can be part of a file name everywhere; ConfigError, which calls it `field`, for any other.

    What is put around it (_low_noise, _v2, a key, an ending, a temporary file's mark) makes no name of it that a system
    can't have: see above.
    """
    return check_file_name(name, field)


def check_below(name: str, field: str) -> str:
    """A relative path that stays below its folder as it is written, links apart; ConfigError for any other."""
    if not isinstance(name, str):
        raise ConfigError(f"{field} must be a text, but it is {kind_of(name)}.")
    parts = re.split(r"[/\\]", name)
    if not name or "\0" in name:
        raise ConfigError(f"{field} is '{in_short(name)}', which is no file's name: choose one of the list.")
    if not parts[0] or re.match(r"[A-Za-z]:", name) or ".." in parts:
        raise ConfigError(f"{field} is '{in_short(name)}', which leads outside its folder: choose one of the list.")
    return name


def kind_of(value: object) -> str:
    """What a value from JSON is called in a sentence."""
    if value is None:
        return "nothing (null)"
    kinds: dict[type, str] = {
        dict: "a dictionary",
        list: "a list",
        tuple: "a list",
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return kinds.get(type(value), type(value).__name__)
