"""`wantrain download`: fetch the files of a Wan model from Hugging Face into a models folder, checked by their digests."""

import argparse
import sys
from pathlib import Path

from ...errors import ConfigError
from ..catalog import PARTS, SETS, ask_hub, fetch

_KNOWN = SETS | PARTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"one or more of {', '.join(_KNOWN)}")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="ComfyUI's folder models, or any other")
    parser.add_argument("--list", action="store_true", help="only name the files")


def run(options: argparse.Namespace) -> int:
    """List, or download one after another."""
    unknown = [name for name in options.models if name not in _KNOWN]
    if unknown:
        raise ConfigError(f"'{unknown[0]}' is not known; there are {', '.join(_KNOWN)}.")
    if options.list:
        for name in options.models or _KNOWN:
            _say(name)
            for file in _KNOWN[name]:
                _say(f"  {file.folder}/{file.name}  https://huggingface.co/{file.repository}")
        return 0
    if not options.models or options.to is None:
        raise ConfigError(f"name what to download ({', '.join(_KNOWN)}) and with --to the folder for it.")
    files = tuple(dict.fromkeys(file for name in options.models for file in _KNOWN[name]))
    remotes = ask_hub(files)
    for file in files:
        fetch(file, remotes[file], options.to, on_state=_say)
    _say(f"{'the file is' if len(files) == 1 else f'all {len(files)} files are'} in {options.to}")
    return 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
