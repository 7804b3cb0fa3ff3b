"""The tools that check the page's JavaScript: installed from `package-lock.json` into `node_modules`, by npm."""

import hashlib
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from .comfyui import SetupError, say

STAMP = ".wan-train-lock"  # in node_modules: digest of the lock file that it was installed from


def find_npm(pack: Path, environ: Mapping[str, str]) -> str | None:
    """npm, with what it runs installed; None, and a sentence, where there is no Node.js.

    SetupError under CI where the packages can't be installed; elsewhere that is a sentence, too.
    """
    npm = shutil.which("npm", path=environ.get("PATH"))
    if npm is None:
        say("Node.js is not installed: the page's JavaScript is not checked.")
        return None
    digest = hashlib.sha256((pack / "package-lock.json").read_bytes()).hexdigest()
    stamp = pack / "node_modules" / STAMP
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == digest:
        return npm
    say("Installing the tools that check the page's JavaScript into node_modules")
    if subprocess.run([npm, "ci", "--loglevel", "error"], cwd=pack, env=dict(environ), check=False).returncode != 0:
        sentence = "npm could not install what package-lock.json names: look at its message, or try with a network."
        if environ.get("CI"):
            raise SetupError(sentence)
        say(f"{sentence} The page's JavaScript is not checked.")
        return None
    stamp.write_text(digest, encoding="utf-8")
    return npm


def list_page_checks(npm: str | None) -> list[tuple[str, list[str]]]:
    """The scripts of `package.json`, each with a name; none without npm."""
    return [(f"page {name}", [npm, "run", "--silent", name]) for name in ("types", "lint", "test")] if npm else []
