"""`python run.py test`: tests, lint, formatting and types, of the page's JavaScript too, and what of it failed.

Standard library only.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from . import versions
from .comfyui import SetupError, fetch_host, find_host, host_version, say
from .environment import ensure_python
from .page import find_npm, list_page_checks

Check = tuple[str, list[str]]


def list_checks(python: Path, pack: Path, pytest_args: list[str], cores: int, npm: str | None = None) -> list[Check]:
    """The commands, in order, each with its name. With extra pytest arguments only the tests are run.

    `npm`: None where there is none, and the page's JavaScript is not checked.
    """
    # One more than two cores: tests of a running ComfyUI wait for it, and it for its training processes.
    workers = ["-n", "3", "--dist", "loadfile", "--no-loadscope-reorder"] if cores >= 2 else []
    places = [] if any((pack / arg.split("::")[0]).exists() for arg in pytest_args) else ["tests"]
    tests = [str(python), "-m", "pytest", "-c", "tests/pytest.ini", *places, *workers, *pytest_args]
    if pytest_args:
        return [("tests", tests)]
    typed = [name for name in ("core", "nodes") if (pack / name).is_dir()]
    return [
        ("lint", [str(python), "-m", "ruff", "check", "."]),
        ("format", [str(python), "-m", "ruff", "format", "--check", "."]),
        ("types", [str(python), "-m", "pyright", "--pythonpath", str(python), *typed]),
        *list_page_checks(npm),
        ("tests", tests),
    ]


def find_or_fetch(pack: Path, environ: Mapping[str, str], home: Path) -> Path | None:
    """A ComfyUI; None if there is none and none can be had, which is an error under CI."""
    try:
        return find_host(pack, environ, home) or fetch_host(pack)
    except SetupError as error:
        if environ.get("CI") or environ.get("COMFYUI_PATH"):
            raise
        say(f"{error} The tests that need ComfyUI are skipped.")
        return None


def surroundings(environ: Mapping[str, str], host: Path | None, cores: int) -> dict[str, str]:
    """The environment of the checks. What is set already stays so, but for the ComfyUI."""
    found = {"WANTRAIN_FORKS": "1"}  # processes of `wantrain` are forks, without imports (tests/warm.py)
    if cores >= 2:
        found["OMP_NUM_THREADS"] = "1"  # two test processes that each take every core wait for each other
    found |= environ
    if host is not None:
        found["COMFYUI_PATH"] = str(host)
    return found


def run_checks(
    pack: Path, environ: Mapping[str, str], home: Path, pytest_args: list[str], only: Collection[str]
) -> int:
    """Run every check, also after one failed; print a summary. `only`: first words of their names. Returns the exit status."""
    host = find_or_fetch(pack, environ, home)
    if host is not None:
        say(f"ComfyUI {host_version(host)}: {host}")
    environ = surroundings(environ, host, os.cpu_count() or 1)
    python = ensure_python(host, pack, tools=True)
    say(f"Python: {python}")
    npm = find_npm(pack, environ) if "page" in only and not pytest_args else None
    checks = list_checks(python, pack, pytest_args, os.cpu_count() or 1, npm)
    checks = [check for check in checks if check[0].split()[0] in only]
    failed = run_each(checks, pack, environ)
    say("")
    for name, _ in checks:
        say(f"{'FAILED' if name in failed else 'ok':6}  {name}")
    return 1 if failed else 0


def run_each(checks: list[Check], pack: Path, environ: Mapping[str, str]) -> list[str]:
    """Run them in order; the names of those that failed.

    Types, which keep one core busy for a minute, are checked beside the others, and told at the end.
    """
    failed = []
    types = next((check for check in checks if check[0] == "types" and len(checks) > 1), None)
    checks = [check for check in checks if check is not types]
    with tempfile.TemporaryFile() as said:
        beside = None
        if types is not None:
            beside = subprocess.Popen(types[1], cwd=pack, env=dict(environ), stdout=said, stderr=subprocess.STDOUT)
        for name, command in [*checks, *([types] if types else [])]:
            say(f"\n== {name}: {' '.join(command)}")
            if beside is not None and name == "types":
                status = beside.wait()
                said.seek(0)
                say(said.read().decode(errors="replace").rstrip())
            else:
                status = subprocess.run(command, cwd=pack, env=dict(environ), check=False).returncode
            if status != 0:
                failed.append(name)
    return failed


def main(
    pack: Path, pytest_args: list[str], only: Collection[str], *, torch: str | None = None, peft: str | None = None
) -> int:
    """Run the checks, or with a version of `torch` or `peft` a subset of the tests. Returns the exit status.

    Expected failures are printed as one sentence.
    """

    def run() -> int:
        if torch:
            return versions.run_with_torch(pack, torch, pytest_args)
        if peft:
            host = find_or_fetch(pack, os.environ, Path.home())
            return versions.run_with_peft(pack, host, peft, pytest_args)
        return run_checks(pack, os.environ, Path.home(), pytest_args, only)

    return _in_a_sentence(run)


def run_campaign(pack: Path, arguments: list[str]) -> int:
    """Run one of the campaigns in `tests/campaigns` in the tests' Python. Returns the exit status."""

    def run() -> int:
        host = find_or_fetch(pack, os.environ, Path.home())
        environ = os.environ if host is None else {**os.environ, "COMFYUI_PATH": str(host)}
        python = ensure_python(host, pack, tools=True)
        command = [str(python), str(pack / "tests" / "campaigns" / "run.py"), *arguments]
        return subprocess.run(command, cwd=pack, env=dict(environ), check=False).returncode

    return _in_a_sentence(run)


def _in_a_sentence(run: Callable[[], int]) -> int:
    try:
        return run()
    except SetupError as error:
        print(f"Failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        say("Stopped.")
        return 130
