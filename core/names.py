"""Names of files: those that every system can have, and those that stay below the folder that they are looked up in."""

import re
import unicodedata

from .errors import ConfigError
from .paths import can_be_shown, shown

# Of a name: with what is put around it, it stays below the 255 bytes of most disks.
MOST_CHARACTERS, MOST_BYTES = 100, 190
_SHOWN = 60  # characters of a name that a sentence repeats
_BREAKS = '<>:"/\\|?*'  # what paths are made of, and what Windows has in no name
_PLAIN = re.compile(
    r"[\w .+()-]"
)  # what a name that is made of a text keeps, besides symbols and what belongs to letters
_SKINS = "\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff"  # colours that an emoji is given
_NO_START = " .-~"  # hidden, taken for an option or for a home, or cut off
_DEVICES = {
    "CON",
    "PRN",
    "AUX",
    "NUL",
    "CONIN$",
    "CONOUT$",
    *(f"{port}{n}" for port in ("COM", "LPT") for n in "123456789¹²³"),
}


def is_device(file_name: str) -> bool:
    """Whether Windows takes the name for a device, whatever ending follows: NUL, con.txt, COM1.tar.gz."""
    return file_name.split(".")[0].rstrip(" ").upper() in _DEVICES


def is_plain(name: str) -> bool:
    """Whether it is one name, of characters that every system has in names: no path, not hidden, no control characters."""
    return bool(name) and not name.startswith(".") and not any(map(_breaks, name))


def _breaks(char: str) -> bool:
    return char in _BREAKS or not can_be_shown(char)


def _goes_on(char: str) -> bool:
    """Whether it belongs to the letter or emoji before it: vowels of Hindi or Arabic, dots of an u from a Mac, joiners."""
    return unicodedata.category(char) in ("Mn", "Mc", "Me", "Cf") or char in _SKINS


def clean_name(text: str) -> str:
    """A name that files can have everywhere, as near as possible to a text; "" where nothing of it can be in one."""
    known = "".join(char if can_be_shown(char) and _is_kept(char) else "\0" for char in text)
    name = re.sub("\0+", "_", known)
    start = next((place for place, char in enumerate(name) if char.isalnum() or _is_symbol(char)), len(name))
    name = name[start:][:MOST_CHARACTERS].encode()[:MOST_BYTES].decode(errors="ignore").rstrip(" ._-+()\u200c\u200d")
    return f"my_{name}" if is_device(name) else name


def _is_kept(char: str) -> bool:
    return bool(_PLAIN.fullmatch(char)) or _is_symbol(char) or _goes_on(char)


def _is_symbol(char: str) -> bool:
    return unicodedata.category(char) == "So"  # emoji among them


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
    wrong = next(filter(_breaks, name), "")
    if wrong:
        called = f"'{wrong}'" if wrong in _BREAKS else f"a character that can't be seen (U+{ord(wrong):04X})"
        raise ConfigError(
            f"{field} is '{in_short(name)}', which holds {called}: a file's name has no control characters and none of "
            f"{' '.join(_BREAKS)}; leave that out."
        )
    if not name or name[0] in _NO_START or _goes_on(name[0]) or name.endswith((".", " ", "\u200c", "\u200d")):
        raise ConfigError(
            f"{field} is '{in_short(name)}': let it begin with a letter, a digit or a symbol other than . - and ~, and not end "
            "with a dot or a space."
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
