"""Finds a ComfyUI, or fetches the pinned release of it into `.demo` of this pack. Standard library only."""

import os
import re
import shutil
import subprocess
import urllib.request
import zipfile
from collections.abc import Mapping
from pathlib import Path

HOST_VERSION = "0.33.0"
HOST_REPOSITORY = "https://github.com/comfyanonymous/ComfyUI"


class SetupError(Exception):
    """Something that the person at the terminal has to mend. The message is one sentence."""


class UnreachableError(SetupError):
    """There is no ComfyUI, and none can be fetched."""


def say(text: str) -> None:
    """Print one line at once, also when the output is a file."""
    print(text, flush=True)


def is_host(path: Path) -> bool:
    """Whether `path` is the folder of a ComfyUI."""
    return (path / "comfy" / "sd.py").is_file() and (path / "main.py").is_file()


def find_host(pack: Path, environ: Mapping[str, str], home: Path) -> Path | None:
    """The ComfyUI to use: COMFYUI_PATH, the one that the pack lies in, comfy-cli's default, the one fetched before.

    Raises SetupError if COMFYUI_PATH is set to something else than a ComfyUI.
    """
    named = environ.get("COMFYUI_PATH")
    if named:
        path = Path(named).expanduser()
        if not is_host(path):
            raise SetupError(f"COMFYUI_PATH is '{named}', but there is no ComfyUI: point it at the folder of main.py.")
        return path.resolve()
    for path in (pack.parent.parent, home / "comfy" / "ComfyUI", pack / ".demo" / "ComfyUI"):
        if is_host(path):
            return path.resolve()
    return None


def fetch_host(pack: Path) -> Path:
    """Download the pinned release of ComfyUI to `.demo/ComfyUI`, with git or else as a zip file. UnreachableError."""
    target = pack / ".demo" / "ComfyUI"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    say(f"Fetching ComfyUI {HOST_VERSION} to {target}")
    tag = f"v{HOST_VERSION}"
    if shutil.which("git"):
        command = ["git", "clone", "--quiet", "--depth", "1", "--branch", tag, HOST_REPOSITORY, str(target)]
        if subprocess.run(command, env={**os.environ, "GIT_TERMINAL_PROMPT": "0"}, check=False).returncode == 0:
            return target
        shutil.rmtree(target, ignore_errors=True)
    try:
        _fetch_zip(f"{HOST_REPOSITORY}/archive/refs/tags/{tag}.zip", target)
    except (OSError, zipfile.BadZipFile) as error:
        raise UnreachableError(
            f"No ComfyUI was found and {HOST_REPOSITORY} could not be reached ({error}): install ComfyUI and set "
            "COMFYUI_PATH to its folder, or try again with a network."
        ) from error
    return target


def _fetch_zip(url: str, target: Path) -> None:
    archive = target.with_suffix(".zip")
    with urllib.request.urlopen(url, timeout=60) as answer, archive.open("wb") as file:
        shutil.copyfileobj(answer, file)
    unpacked = target.with_suffix(".unpacked")
    shutil.rmtree(unpacked, ignore_errors=True)
    with zipfile.ZipFile(archive) as content:
        content.extractall(unpacked)
    (folder,) = unpacked.iterdir()
    folder.replace(target)
    unpacked.rmdir()
    archive.unlink()


def host_version(host: Path) -> str:
    """Version that the ComfyUI in `host` says it has, or "unknown"."""
    file = host / "comfyui_version.py"
    found = re.search(r'__version__\s*=\s*"([^"]+)"', file.read_text(encoding="utf-8")) if file.is_file() else None
    return found.group(1) if found else "unknown"
